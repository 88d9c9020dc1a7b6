"""Folders in the Hugging Face form: what goes in comes out, and damaged ones are errors."""

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import dmamba
from dmamba.commands import main
from dmamba.nn import AtariDMamba, DMamba

SIZES = {"d_model": 16, "n_layer": 2, "context_length": 5, "max_timestep": 30}


def make_model(**options):
    torch.manual_seed(0)
    return DMamba(5, 2, **SIZES | options)


def same(a, b):
    theirs = b.state_dict()
    return a.state_dict().keys() == theirs.keys() and all(
        torch.equal(t, theirs[n]) for n, t in a.state_dict().items()
    )


def test_a_model_alone(tmp_path):
    model = make_model(token_mixer=["mamba", "attention"], padding="paper")
    folder = model.save_pretrained(tmp_path / "new" / "policy")
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "config.json",
                                                         "model.safetensors"]  # fmt: skip
    assert [p.name for p in folder.parent.iterdir()] == ["policy"], "nothing is left beside it"
    twin = DMamba.from_pretrained(folder)
    assert same(twin, model) and not twin.training and twin.config == model.config
    _, info = dmamba.nn.load(folder)
    assert info["state_mean"] == [0.0] * 5 and info["state_std"] == [1.0] * 5
    assert info["rtg_scale"] == dmamba.Config().dataset.rtg_scale and info["step"] == 0
    card = (folder / "README.md").read_text()
    assert 'DMamba.from_pretrained("policy")' in card and "evaluate" not in card
    with pytest.raises(dmamba.Error, match="environment"):
        dmamba.evaluate(folder, targets=[1.0], episodes=1, progress=False)


def test_safetensors_and_transformers_read_the_parameters(tmp_path):
    safetensors = pytest.importorskip("safetensors")
    folder = make_model().save_pretrained(tmp_path / "policy")
    with safetensors.safe_open(folder / "model.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt", "transformers asks for it"
        assert set(file.keys()) == set(make_model().state_dict())


def test_float64_and_saving_again(tmp_path):
    model = make_model().double()
    folder = model.save_pretrained(tmp_path / "policy")
    twin = DMamba.from_pretrained(folder)
    assert same(twin, model) and twin.get_parameter("embed_ln.bias").dtype == torch.float64
    assert json.loads((folder / "config.json").read_text())["torch_dtype"] == "float64"
    other = make_model(channel_mixing="none")
    other.save_pretrained(folder)
    assert same(DMamba.from_pretrained(folder), other), "replaced"
    (folder / "weights.bin").write_text("mine")
    with pytest.raises(dmamba.Error, match=r"holds other files \(weights\.bin\).*choose another"):
        model.save_pretrained(folder)
    assert same(DMamba.from_pretrained(folder), other) and (folder / "weights.bin").exists()
    with pytest.raises(dmamba.Error, match="not a folder"):
        model.save_pretrained(folder / "weights.bin")
    with pytest.raises(dmamba.Error, match="cannot be written"):
        model.save_pretrained(folder / "weights.bin" / "policy")


def test_a_save_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    model = make_model()
    folder = model.save_pretrained(tmp_path / "policy")

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dmamba.nn.pretrained.write_json", full)
    with pytest.raises(dmamba.Error, match="policy: cannot be written: No space left"):
        make_model(n_layer=1).save_pretrained(folder)
    with pytest.raises(dmamba.Error, match="No space left"):
        model.save_pretrained(tmp_path / "other")
    assert same(DMamba.from_pretrained(folder), model)
    assert [p.name for p in tmp_path.iterdir() if "policy" in p.name or "other" in p.name] == [
        "policy"
    ]


def test_games(tmp_path):
    torch.manual_seed(0)
    model = AtariDMamba(4, d_model=16, n_layer=1, context_length=3, max_timestep=20)
    folder = model.save_pretrained(tmp_path / "player")
    assert same(AtariDMamba.from_pretrained(folder), model)
    with pytest.raises(dmamba.CheckpointError, match=r"is of AtariDMamba; call dmamba\.nn\.Atari"):
        DMamba.from_pretrained(folder)


def test_a_run_is_exported_and_evaluates_as_it_did(trained, tmp_path, capsys):
    asked = {"targets": [100.0], "episodes": 2, "progress": False, "workers": 1}
    expected = dmamba.evaluate(trained, **asked)
    folder = dmamba.export(trained, tmp_path / "policy")
    result = dmamba.evaluate(folder, **asked)
    np.testing.assert_array_equal(
        result["targets"][0]["returns"], expected["targets"][0]["returns"]
    )
    assert result["environment"] == "Hopper-v4" and result["checkpoint_step"] == 30
    model, info = dmamba.nn.load(folder)
    origin, original = dmamba.nn.load(trained.latest_checkpoint()[1])
    assert same(model, origin)
    for key in ("step", "state_dim", "act_dim", "num_actions", "rtg_scale"):
        assert info[key] == original[key], key
    assert info["state_mean"] == original["state_mean"]
    assert info["state_std"] == original["state_std"]
    config = info["config"]
    assert config.evaluation.targets == [100, 500] and config.seed == 7
    assert config.dataset.path == "tiny.hdf5", "no folder of this machine"
    assert str(Path(trained.config.dataset.path).parent) not in (folder / "README.md").read_text()
    assert main(["evaluate", str(folder), "--targets", "100", "--episodes", "2"]) == 0
    assert f"{expected['targets'][0]['return_mean']:.1f}" in capsys.readouterr().out
    checkpoint = trained.latest_checkpoint()[1]
    assert same(DMamba.from_pretrained(checkpoint), origin), "a checkpoint is taken, too"


def test_the_card_has_the_runs_scores_and_what_repeats_it(trained, tmp_path):
    text = (dmamba.export(trained, tmp_path / "hopper") / "README.md").read_text()
    _, head, body = text.split("---\n", 2)
    head = yaml.safe_load(head)
    assert head["library_name"] == "dmamba" and "Hopper-v4" in head["tags"]
    (entry,) = head["model-index"]
    rows = trained.evaluations()[-1]["targets"]
    best = max(rows, key=lambda row: row["return_mean"])
    metric = entry["results"][0]["metrics"][0]
    assert entry["name"] == "hopper" and metric["type"] == "mean_reward"
    assert metric["value"].startswith(f"{best['return_mean']:.1f} +/- ")
    for row in rows:
        assert f"| {row['target']:g} | {row['return_mean']:.1f} |" in body
    assert "borrowed" in body and "30 steps of offline training on tiny.hdf5, seed 7" in body
    config = dmamba.Config.parse(body.split("```yaml\n")[1].split("```")[0])
    expected = trained.config.copy()
    expected.dataset.path = "tiny.hdf5"
    assert config == expected


def test_a_changed_bit_is_told(tmp_path):
    path = make_model().save_pretrained(tmp_path / "policy") / "model.safetensors"
    good = path.read_bytes()
    for place in (len(good) - 1, len(good) // 2):
        changed = bytearray(good)
        changed[place] ^= 1
        path.write_bytes(changed)
        with pytest.raises(dmamba._C.CheckpointError, match="model.safetensors': does not hold"):
            DMamba.from_pretrained(path.parent)
    path.write_bytes(good)
    assert same(DMamba.from_pretrained(path.parent), make_model())


def test_the_card_has_the_failed_episodes(trained, tmp_path):
    evaluation = copy.deepcopy(trained.evaluations()[-1])
    evaluation["targets"][1]["failed"] = 2
    evaluation["failures"] = [{"text": "Hopper-v4, step 3: it fell"}] * 2
    model, info = dmamba.nn.load(trained.latest_checkpoint()[1])
    model.save_pretrained(tmp_path / "some", info, evaluation=evaluation)
    card = (tmp_path / "some" / "README.md").read_text()
    assert "| failed |" in card and "| 2 of 3 |" in card
    assert "2 of 6 episodes failed, the means are of the others; the first: Hopper-v4, step" in card


def test_a_model_with_an_environment_of_ones_own(tmp_path):
    config = dmamba.Config()
    config.dataset.environment, config.evaluation.targets = "Hopper-v4", [1800]
    torch.manual_seed(0)
    model = DMamba(11, 3, **SIZES)
    statistics = {"state_mean": np.full(11, 0.5, np.float32), "state_std": torch.full((11,), 2.0)}
    folder = model.save_pretrained(
        tmp_path / "mine", {"config": config, "rtg_scale": 1000.0} | statistics
    )
    result = dmamba.evaluate(folder, episodes=1, progress=False, workers=1)
    assert [row["target"] for row in result["targets"]] == [1800]
    _, info = dmamba.nn.load(folder)
    assert info["state_mean"] == [0.5] * 11 and info["state_std"] == [2.0] * 11
    assert info["config"].dataset.rtg_scale == 1000.0 and info["config"].model == model.config
    card = (folder / "README.md").read_text()
    assert "for Hopper-v4, saved by" in card and "## Training" not in card, "no data to repeat it"


def test_the_command(trained, tmp_path, capsys):
    results = tmp_path / "result.json"
    assert main(["evaluate", str(trained.folder), "--targets", "321", "--episodes", "2",
                 "--output", str(results)]) == 0  # fmt: skip
    folder = tmp_path / "out"
    command = ["export", str(trained.folder), str(folder)]
    assert main([*command, "--evaluation", str(results)]) == 0
    assert f"dmamba evaluate {folder}" in capsys.readouterr().out
    assert "| 321 |" in (folder / "README.md").read_text()
    results.write_text('{"targets": [3]}')
    before = (folder / "README.md").read_text()
    assert main([*command, "--evaluation", str(results)]) == 2
    assert "evaluation: not what dmamba.evaluate returns" in capsys.readouterr().err
    assert (folder / "README.md").read_text() == before
    assert main(["export", str(tmp_path / "nowhere"), str(folder)]) == 2
    assert "nowhere: no such folder" in capsys.readouterr().err


def test_transfer_takes_such_a_folder(trained, dataset, tmp_path):
    folder = dmamba.export(trained, tmp_path / "policy")
    config = trained.config.copy()
    config.transfer.init_from, config.training.steps = str(folder), 1
    config.evaluation.every = 0
    config.training.warmup_steps = 0
    config.transfer.statistics = "checkpoint"
    run = dmamba.train(config, output=tmp_path / "next", progress=False, evaluate=False)
    began = json.loads((run.folder / "transfer.json").read_text())
    assert began["from"] == str(folder / "model.safetensors") and began["fresh"] == []
    assert began["step"] == 30
    _, mine = dmamba.nn.load(run.latest_checkpoint()[1])
    _, theirs = dmamba.nn.load(folder)
    assert mine["state_mean"] == theirs["state_mean"]


def test_a_name_of_the_hub_says_how_to_get_it():
    with pytest.raises(dmamba.CheckpointError, match="no such folder.*hf download me/hopper --loc"):
        DMamba.from_pretrained("me/hopper")
    with pytest.raises(dmamba.CheckpointError, match="hf download"):
        dmamba.evaluate("me/hopper")
    with pytest.raises(dmamba.CheckpointError, match=r"/nowhere/policy: no such folder$"):
        DMamba.from_pretrained("/nowhere/policy")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return make_model().save_pretrained(tmp_path_factory.mktemp("saved") / "policy")


def changed(saved, tmp_path, **values):
    folder = tmp_path / "changed"
    shutil.copytree(saved, folder)
    content = json.loads((folder / "config.json").read_text()) | values
    content = {key: value for key, value in content.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "llama"}, r"not of a dmamba model.*this has model_type 'llama'"),
        ({"model_type": ...}, "this has no model_type"),
        ({"format": 2}, "format 2 is not known to this version, which reads 1"),
        ({"architectures": ["GPT2Model"]}, r"architectures is \['GPT2Model'\]; known are \[DMamba"),
        ({"architectures": 3}, "architectures is 3"),
        ({"torch_dtype": "int8"}, "torch_dtype is 'int8'; known are float32, float64"),
        ({"state_dim": "five"}, "'state_dim' must be a whole number, got 'five'"),
        ({"act_dim": 0}, "'act_dim' must be at least 1"),
        ({"act_dim": 2**40}, "below 2"),
        ({"act_dim": True}, "'act_dim' must be a whole number, got True"),
        ({"step": -1}, "'step' must be at least 0"),
        ({"state_mean": ...}, "has no 'state_mean'"),
        ({"state_mean": [0.0] * 4}, "'state_mean' must be 5 finite numbers"),
        ({"state_std": [1.0, 1.0, 1.0, 1.0, "1"]}, "'state_std' must be 5 finite numbers"),
        ({"state_std": [1.0, 1.0, 1.0, 1.0, 0.0]}, "state_std holds values that are not above 0"),
        ({"config": []}, "'config' must be an object"),
        ({"config": {"model": {"d_modell": 3}}}, r"\(config\).*d_modell"),
        ({"config": {"model": {"d_model": "wide"}}}, r"\(config\).*d_model"),
        ({"config": {"model": {"d_model": 65536}}}, "describes a model of at least .* bytes, but"),
        ({"state_dim": 6, "state_mean": [0.0] * 6, "state_std": [1.0] * 6},
         r"tensor 'embed_state\.weight' is F32 \[16, 5\], the model's is F32 \[16, 6\]"),
        ({"torch_dtype": "float64"}, "is F32 .* the model's is F64|describes a model"),
    ],
)  # fmt: skip
def test_what_a_configuration_says_is_checked(saved, tmp_path, values, message):
    with pytest.raises(dmamba.CheckpointError, match=message) as caught:
        DMamba.from_pretrained(changed(saved, tmp_path, **values))
    assert "changed" in str(caught.value), "the file is named"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", b"{", "damaged, not JSON"),
        ("config.json", b"\xff\xfe", "damaged, not JSON"),
        ("config.json", b"[" * 100000, "damaged, not JSON"),
        ("config.json", b"[]", "not of a dmamba model"),
        ("config.json", b"", "damaged, not JSON"),
        ("model.safetensors", b"", "too few for safetensors"),
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
         "pointer of Git LFS.*git lfs pull"),
        ("model.safetensors", b"PK\x03\x04" + bytes(50000), "not safetensors"),
        ("model.safetensors", None, "there is no model.safetensors beside it"),
    ],
)  # fmt: skip
def test_damaged_and_foreign_files(saved, tmp_path, file, content, message):
    folder = changed(saved, tmp_path)
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content)
    with pytest.raises(dmamba.CheckpointError, match=message):
        DMamba.from_pretrained(folder)


def test_every_truncation_of_the_parameters_is_an_error(saved, tmp_path):
    folder = changed(saved, tmp_path)
    whole = (folder / "model.safetensors").read_bytes()
    for size in np.linspace(0, len(whole) - 1, 40).astype(int):
        (folder / "model.safetensors").write_bytes(whole[:size])
        with pytest.raises(dmamba.CheckpointError, match=r"changed/(model|config)"):
            DMamba.from_pretrained(folder)


def test_info_is_checked():
    with pytest.raises(TypeError, match="info has no key 'mean'; it has"):
        make_model().save_pretrained("policy", {"mean": 3})
