"""Several sets at once, from the configuration to fine-tuning on one of them."""

import json
import shutil

import pytest
import torch
from conftest import tiny, write_dataset

import dmamba
from dmamba import _C
from dmamba.commands import main
from dmamba.data import pretraining


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two sets of two robots."""
    folder = tmp_path_factory.mktemp("sets")
    write_dataset(folder / "jumps-v2.hdf5", metadata={"environment": "Hopper-v4"})
    write_dataset(
        folder / "runs.v1.hdf5", 17, 6, lengths=(40, 9), metadata={"environment": "HalfCheetah-v4"}
    )
    return folder


def two_sets(folder, **training):
    config = tiny("", **training)
    del config["dataset"]
    config["pretraining"] = {
        "sets": [str(folder / "jumps-v2.hdf5"), str(folder / "runs.v1.hdf5")],
        "temperature": 3,
    }
    config["evaluation"] = {"episodes": 1}
    return config


@pytest.fixture(scope="module")
def pretrained(folder, tmp_path_factory):
    """A finished run; tests must not write to it."""
    config = two_sets(folder)
    config["evaluation"]["every"] = 20
    return dmamba.train(config, output=tmp_path_factory.mktemp("run") / "run", progress=False)


def test_the_configuration_is_resolved_for_each_set(pretrained, folder):
    config = pretrained.config
    assert config.pretraining.environments == ["Hopper-v4", "HalfCheetah-v4"]
    stores = [dmamba.data.load(path) for path in config.pretraining.sets]
    assert config.pretraining.rtg_scales == [dmamba.data.rtg_scale(store) for store in stores]
    assert config.dataset.path == "" and config.evaluation.targets == []
    for name, store in zip(("jumps", "runs_v1"), stores, strict=True):
        own = dmamba.Run(pretrained.folder / "sets" / name).config
        assert own.dataset.path == store.name
        assert own.evaluation.targets == dmamba.data.default_targets(store)
        assert own.dataset.max_episode_length == 1000
        assert own.pretraining.sets == []


def test_each_set_is_evaluated_in_its_own_environment(pretrained):
    summary = pretrained.summary()
    assert set(summary["sets"]) == {"jumps", "runs_v1"}
    for name, environment in (("jumps", "Hopper-v4"), ("runs_v1", "HalfCheetah-v4")):
        run = dmamba.Run(pretrained.folder / "sets" / name)
        steps = [result["checkpoint_step"] for result in run.evaluations()]
        assert steps == [20, 30]
        assert {result["environment"] for result in run.evaluations()} == {environment}
        assert run.summary()["environment"] == environment
        assert summary["sets"][name]["last"] == run.summary()["last"]
    assert pretrained.plot_path.is_file()
    assert pretrained.metrics()["step"][-1] == 30


def test_a_checkpoint_has_the_trunk_once(pretrained):
    info = _C.read_checkpoint(str(pretrained.latest_checkpoint()[1]))
    assert [known["name"] for known in info["sets"]] == ["jumps", "runs_v1"]
    assert sum(known["steps"] for known in info["sets"]) == 30
    models = {}
    for name, sizes in (("jumps", (11, 3)), ("runs_v1", (17, 6))):
        models[name], of_set = dmamba.nn.load(pretrained.latest_checkpoint()[1], set=name)
        assert (of_set["state_dim"], of_set["act_dim"]) == sizes
        assert of_set["rtg_scale"] > 0 and len(of_set["state_mean"]) == sizes[0]
    first, second = (dict(model.named_parameters()) for model in models.values())
    shared = [name for name in first if first[name].shape == second[name].shape]
    for name in shared:
        own = name in ("embed_state.bias", "embed_action.bias")
        assert torch.equal(first[name], second[name]) != own, name


def test_a_set_must_be_named_to_be_loaded(pretrained):
    latest = pretrained.latest_checkpoint()[1]
    with pytest.raises(_C.CheckpointError, match="models of several sets; name one of jumps, runs"):
        dmamba.nn.load(latest)
    with pytest.raises(_C.CheckpointError, match="has no set 'walks'; name one of jumps, runs_v1"):
        dmamba.nn.load(latest, set="walks")


def test_one_set_can_be_evaluated_again(pretrained, capsys, tmp_path):
    again = dmamba.evaluate(pretrained, set="jumps")
    before = dmamba.Run(pretrained.folder / "sets" / "jumps").evaluations()[-1]
    assert again["targets"][0]["returns"].tolist() == before["targets"][0]["returns"]
    output = tmp_path / "result.json"
    arguments = ["evaluate", str(pretrained.folder), "--set", "jumps", "--output", str(output)]
    assert main(arguments) == 0
    assert "Hopper-v4" in capsys.readouterr().out
    assert json.loads(output.read_text())["environment"] == "Hopper-v4"


def test_a_stopped_run_on_several_sets_continues_to_the_same_bits(pretrained, folder, tmp_path):
    class Stop(dmamba.Callback):
        def on_evaluation(self, run, result):
            if result["environment"] == "Hopper-v4" and result["checkpoint_step"] == 20:
                raise KeyboardInterrupt

    config = two_sets(folder)
    config["evaluation"]["every"] = 20
    with pytest.raises(KeyboardInterrupt):
        dmamba.train(config, output=tmp_path / "run", progress=False, callbacks=[Stop()])
    stopped = tmp_path / "run" / "sets"
    assert len(dmamba.Run(stopped / "jumps").evaluations()) == 1
    assert len(dmamba.Run(stopped / "runs_v1").evaluations()) == 0
    run = dmamba.train(None, output=tmp_path / "run", resume=True, progress=False)
    for name in ("model.safetensors", "optimizer.safetensors"):
        mine, theirs = (r.latest_checkpoint()[1] / name for r in (run, pretrained))
        assert mine.read_bytes() == theirs.read_bytes(), name
    for name in ("jumps", "runs_v1"):
        mine, theirs = (
            dmamba.Run(folder / "sets" / name).evaluations()
            for folder in (run.folder, pretrained.folder)
        )
        assert [r["targets"] for r in mine] == [r["targets"] for r in theirs]


def test_fine_tuning_takes_the_trunk_and_a_named_set(pretrained, dataset, tmp_path):
    theirs = dmamba.nn.load(pretrained.latest_checkpoint()[1], set="jumps")[0].state_dict()
    for name, fresh in (("", 6), ("jumps", 0)):
        config = tiny(dataset, keep_checkpoints=9)
        config["transfer"] = {"init_from": str(pretrained.folder), "set": name}
        run = dmamba.train(config, output=tmp_path / f"run{name}", progress=False, evaluate=False)
        began = json.loads((run.folder / "transfer.json").read_text())
        assert len(began["fresh"]) == fresh
        first = dmamba.nn.load(run.checkpoints()[0][1])[0].state_dict()
        for key in began["taken"]:
            assert torch.equal(first[key], theirs[key]), key


def test_statistics_of_a_named_set(pretrained, dataset, tmp_path):
    config = tiny(dataset)
    config["transfer"] = {"init_from": str(pretrained.folder), "statistics": "checkpoint"}
    with pytest.raises(_C.ConfigError, match="those of several sets; name one in transfer.set"):
        dmamba.train(config, output=tmp_path / "run", progress=False, evaluate=False)
    config["transfer"]["set"] = "jumps"
    run = dmamba.train(config, output=tmp_path / "run", progress=False, evaluate=False)
    info = _C.read_checkpoint(str(run.latest_checkpoint()[1]))
    known = _C.read_checkpoint(str(pretrained.latest_checkpoint()[1]))["sets"][0]
    assert info["state_mean"] == known["state_mean"]


def test_pretraining_can_begin_from_a_checkpoint(trained, folder, tmp_path):
    config = two_sets(folder)
    config["transfer"] = {"init_from": str(trained.folder)}
    run = dmamba.train(config, output=tmp_path / "run", progress=False, evaluate=False)
    began = json.loads((run.folder / "transfer.json").read_text())
    assert len(began["fresh"]) == 12 and all(name.startswith("sets.") for name in began["fresh"])


def test_names_of_sets():
    assert pretraining.set_name("hopper-medium-v2") == "hopper-medium"
    assert pretraining.set_name("/a/b/hopper-medium.hdf5") == "hopper-medium"
    assert pretraining.set_name("a.b.hdf5") == "a_b"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sets": ["jumps-v2.hdf5"]}, "a list of 1"),
        ({"sets": ["jumps-v2.hdf5", "jumps-v1.hdf5"]}, "two sets are called 'jumps'"),
        ({"sets": ["jumps-v2.hdf5", "nothing.hdf5"]}, "nothing.hdf5"),
        ({"environments": ["Hopper-v4"]}, "one per set"),
        ({"environments": ["HalfCheetah-v4", "HalfCheetah-v4"]}, "11.*17|17.*11"),
    ],
)
def test_what_cannot_be_is_said_before_anything_starts(folder, tmp_path, change, message):
    config = two_sets(folder)
    if "sets" in change:
        change = {"sets": [str(folder / name) for name in change["sets"]]}
    config["pretraining"] |= change
    with pytest.raises(_C.Error, match=message):
        dmamba.train(config, output=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_what_is_for_one_set_is_refused(folder, dataset, tmp_path):
    for key, value in (
        ("dataset.path", "x.hdf5"),
        ("dataset.rtg_scale", 10),
        ("evaluation.targets", [1]),
    ):
        with pytest.raises(_C.ConfigError, match=f"{key}.*for a run on one set"):
            dmamba.train(two_sets(folder), [f"{key}={value}"], output=tmp_path / "run")
    with pytest.raises(_C.ConfigError, match="dataset= exclude each other"):
        dmamba.train(two_sets(folder), dataset=dmamba.data.load(dataset), output=tmp_path / "run")
    with pytest.raises(_C.ConfigError, match="several sets are evaluated between the steps"):
        dmamba.train(two_sets(folder), evaluate="beside", output=tmp_path / "run", progress=False)
    shutil.copyfile(folder / "jumps-v2.hdf5", tmp_path / "jumps.hdf5")
    assert not (tmp_path / "run").exists()


def test_models_over_one_trunk_copy_as_one():
    import copy
    import pickle

    model = dmamba.nn.MultiDMamba({"a": (3, 2), "b": (4, 1)}, d_model=8, n_layer=1)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert sorted(twin.state_dict()) == sorted(model.state_dict())
        for name, values in model.state_dict().items():
            assert torch.equal(twin.state_dict()[name], values), name
        with torch.no_grad():
            twin.models["a"].get_parameter("embed_return.bias").add_(1.0)
        assert torch.equal(
            twin.models["b"].get_parameter("embed_return.bias"),
            twin.get_parameter("embed_return.bias"),
        )
        assert not torch.equal(
            twin.get_parameter("embed_return.bias"), model.get_parameter("embed_return.bias")
        )
    with pytest.raises(TypeError, match="has that one's options"):
        dmamba.nn.DMamba(3, 2, trunk=model.models["a"], d_model=16)


def test_a_report_is_on_the_parts(pretrained, tmp_path):
    report = dmamba.report(pretrained.folder, output=tmp_path / "report.html")
    text = report.html.read_text()
    assert "Hopper-v4, jumps" in text and "HalfCheetah-v4, runs" in text


def test_one_of_its_sets_is_exported(pretrained, tmp_path):
    folder = dmamba.export(pretrained, tmp_path / "jumps", set="jumps")
    asked = {"targets": [50.0], "episodes": 2, "progress": False, "workers": 1}
    expected = dmamba.evaluate(pretrained, set="jumps", **asked)["targets"][0]
    found = dmamba.evaluate(folder, **asked)
    assert found["environment"] == "Hopper-v4"
    assert found["targets"][0]["returns"].tolist() == expected["returns"].tolist()
    assert "## Scores" in (folder / "README.md").read_text()
    with pytest.raises(dmamba.CheckpointError, match="has no set 'jumps'; it holds one model"):
        dmamba.nn.load(folder, set="jumps")
    with pytest.raises(dmamba.CheckpointError, match="name one of jumps, runs_v1"):
        dmamba.export(pretrained, tmp_path / "both")
