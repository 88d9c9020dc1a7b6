"""Fine-tuning: where parameters begin, what is frozen, how fast the rest learns, on what data."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import tiny, write_dataset

import dmamba
from dmamba import _C, data
from dmamba.training import transfer


@pytest.fixture(scope="module")
def cheetah(tmp_path_factory):
    """A dataset with states and actions of other sizes than the fixture of Hopper-v4."""
    path = tmp_path_factory.mktemp("cheetah") / "cheetah.hdf5"
    return write_dataset(path, 17, 6, metadata={"environment": "HalfCheetah-v4"})


def fine_tuning(path, origin, training=None, **keys):
    config = tiny(path, **(training or {}))
    config["seed"] = 8
    config["transfer"] = {"init_from": str(origin), **keys}
    return config


def train(config, folder, **options):
    return dmamba.train(config, output=folder, progress=False, evaluate=False, **options)


def parameters(checkpoint):
    model, _ = dmamba.nn.load(checkpoint)
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_a_run_begins_with_what_another_learned(trained, dataset, tmp_path):
    run = train(fine_tuning(dataset, trained.folder), tmp_path / "run")
    began = json.loads((run.folder / "transfer.json").read_text())
    step, latest = trained.latest_checkpoint()
    assert (began["from"], began["step"], began["fresh"]) == (str(latest), step, [])
    learned = parameters(latest)
    assert sorted(began["taken"]) == sorted(learned)
    assert run.config.transfer.init_from == str(trained.folder)


def test_its_first_checkpoint_holds_the_bits_it_began_with(trained, cheetah, tmp_path):
    config = fine_tuning(cheetah, trained.folder, {"keep_checkpoints": 9})
    run = train(config, tmp_path / "run")
    step, first = run.checkpoints()[0]
    assert step == 0
    theirs, ours = parameters(trained.latest_checkpoint()[1]), parameters(first)
    fresh = set(json.loads((run.folder / "transfer.json").read_text())["fresh"])
    assert fresh == {
        f"{module}.{part}"
        for module in ("embed_state", "embed_action", "predict_action.0")
        for part in ("weight", "bias")
    }
    torch.manual_seed(8)
    as_seeded = dict(dmamba.nn.DMamba(17, 6, config=run.config.model).named_parameters())
    for name, values in ours.items():
        expected = as_seeded[name] if name in fresh else theirs[name]
        assert torch.equal(values, expected), name


def test_what_it_began_with_is_said(trained, cheetah, tmp_path, capsys):
    dmamba.train(
        fine_tuning(cheetah, trained.folder), output=tmp_path / "run", evaluate=False, progress=True
    )
    out = capsys.readouterr().out
    assert "transfer: " in out and "parameters from" in out and "new: embed_state.weight" in out


def test_a_run_or_checkpoint_folder_or_a_file(trained, tmp_path):
    latest = trained.latest_checkpoint()[1]
    assert transfer.locate(str(trained.folder)) == latest
    assert transfer.locate(str(latest)) == latest
    file = latest / "model.safetensors"
    assert transfer.locate(str(file)) == file
    with pytest.raises(_C.CheckpointError, match="no such folder"):
        transfer.locate(str(tmp_path / "nothing"))


def test_what_does_not_fit_is_said_before_anything_starts(trained, dataset, tmp_path):
    config = fine_tuning(dataset, trained.folder)
    config["model"]["d_model"] = 32
    with pytest.raises(
        _C.CheckpointError, match=r"\[\d+(, \d+)*\] there, .* here; model.d_model is 16 there, 32"
    ):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(_C.ConfigError, match=r"'transfer.freeze': 'trunk.\*' matches no parameter"):
        train(fine_tuning(dataset, trained.folder, freeze=["trunk.*"]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_fine_tuning_run_resumes_without_what_it_began_from(trained, dataset, tmp_path):
    origin = tmp_path / "origin"
    shutil.copytree(trained.folder, origin)
    config = fine_tuning(
        dataset,
        origin,
        freeze=["embed_*"],
        learning_rates=["transformer.*=0.1"],
        statistics="checkpoint",
    )
    config["dataset"] |= {"fraction": 0.6, "selection_seed": 4}

    class Stop(dmamba.Callback):
        def on_checkpoint(self, run, checkpoint):
            if checkpoint.name == "step-00000010":
                raise KeyboardInterrupt

    whole = train(config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "stopped", callbacks=[Stop()])
    shutil.rmtree(origin)
    stopped = train(None, tmp_path / "stopped", resume=True)
    for name in ("model.safetensors", "optimizer.safetensors"):
        mine, theirs = (r.latest_checkpoint()[1] / name for r in (stopped, whole))
        assert mine.read_bytes() == theirs.read_bytes(), name
    assert (stopped.folder / "metrics.csv").read_bytes() == (
        whole.folder / "metrics.csv"
    ).read_bytes()


def test_frozen_parameters_keep_their_bits(trained, dataset, tmp_path):
    run = train(
        fine_tuning(dataset, trained.folder, freeze=["transformer.*", "embed_*"]), tmp_path / "run"
    )
    before = parameters(trained.latest_checkpoint()[1])
    for name, values in parameters(run.latest_checkpoint()[1]).items():
        assert torch.equal(values, before[name]) == (not name.startswith("predict_action")), name


def test_learning_rates_are_those_of_torch(dataset):
    """Five steps beside torch.optim.AdamW with a group for each rate, on the trainer's batches."""
    config = dmamba.configuration.load_config(
        tiny(dataset, steps=5, schedule="constant", decay="all")
    )
    config.model.dropout = config.model.embedding_dropout = 0.0
    config.training.weight_decay, config.training.gradient_clip = 0.1, 0.25
    config.transfer.learning_rates = ["*=0.5", "transformer.*=0.1", "*.A_log=2"]
    store = dmamba.data.load(dataset)
    config = data.resolve(config, store)

    def rate(name):
        return 2 if name.endswith("A_log") else 0.1 if name.startswith("transformer.") else 0.5

    torch.manual_seed(0)
    mine = dmamba.nn.DMamba(11, 3, config=config.model)
    theirs = dmamba.nn.DMamba(11, 3, config=config.model)
    theirs.load_state_dict(mine.state_dict())
    _C.Trainer(config, store, mine.cpp_module).run(100.0)
    groups = {
        factor: [p for n, p in theirs.named_parameters() if rate(n) == factor]
        for factor in (0.1, 0.5, 2)
    }
    optimizer = torch.optim.AdamW(
        [{"params": group, "lr": 0.0, "factor": f} for f, group in groups.items()],
        weight_decay=0.1,
    )
    mean, std = (values.tolist() for values in store.state_statistics())
    sampler = _C.SegmentSampler(
        store, 8, 5, config.seed, False, config.dataset.rtg_scale, mean, std, 1000
    )
    for step in range(5):
        states, actions, rtg, timesteps, mask = map(torch.from_numpy, sampler.sample(step))
        predicted = theirs(states, actions, rtg, timesteps, mask)
        weight = mask.float().unsqueeze(2)
        loss = ((predicted - actions).square() * weight).sum() / (weight.sum() * 3)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.25)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, (step + 1) / 5) * group["factor"]
        optimizer.step()
    expected = dict(theirs.named_parameters())
    for name, values in mine.named_parameters():
        torch.testing.assert_close(values, expected[name], rtol=2e-4, atol=2e-6, msg=name)


def test_statistics_of_the_checkpoint(trained, dataset, cheetah, tmp_path):
    saved = _C.read_checkpoint(str(trained.latest_checkpoint()[1]))
    config = fine_tuning(dataset, trained.folder, statistics="checkpoint")
    config["dataset"]["fraction"] = 0.4
    info = _C.read_checkpoint(str(train(config, tmp_path / "run").latest_checkpoint()[1]))
    assert (info["state_mean"], info["state_std"]) == (saved["state_mean"], saved["state_std"])
    del config["transfer"]["statistics"]
    info = _C.read_checkpoint(str(train(config, tmp_path / "own").latest_checkpoint()[1]))
    assert info["state_mean"] != saved["state_mean"]
    config = fine_tuning(cheetah, trained.folder, statistics="checkpoint")
    with pytest.raises(_C.CheckpointError, match="11 components.*have 17.*must be data"):
        train(config, tmp_path / "other")
    file = trained.latest_checkpoint()[1] / "model.safetensors"
    config = fine_tuning(dataset, file, statistics="checkpoint")
    with pytest.raises(_C.ConfigError, match="a file of parameters alone"):
        train(config, tmp_path / "other")


def test_a_share_of_the_episodes(dataset, tmp_path):
    whole = dmamba.data.load(dataset)
    config = dmamba.configuration.load_config(
        tiny(dataset), ["dataset.fraction=0.4", "selection_seed=2"]
    )
    some = data.load_configured(config.dataset, progress=False)
    assert some.num_episodes == 2
    drawn = _C.draw_episodes(whole, 0.4, 2)
    assert some.episode_lengths.tolist() == whole.episode_lengths[drawn].tolist()
    for index, episode in enumerate(drawn):
        for key, values in some.episode(index).items():
            assert np.array_equal(values, whole.episode(episode)[key]), key
    chosen = {tuple(_C.draw_episodes(whole, 0.4, seed)) for seed in range(20)}
    assert len(chosen) > 5
    run = train(config, tmp_path / "run")
    assert run.summary()["dataset"]["episodes"] == 2
    given = train(config, tmp_path / "given", dataset=whole)  # a store takes the same way
    assert given.summary()["dataset"]["return_mean"] == run.summary()["dataset"]["return_mean"]


def test_the_seed_of_a_selection_needs_a_fraction(dataset):
    config = dmamba.configuration.load_config(tiny(dataset), ["selection_seed=2"])
    with pytest.raises(_C.ConfigError, match="dataset.selection_seed"):
        data.resolve(config, dmamba.data.load(dataset))


def test_recorded_games_have_their_own_choice():
    store = dmamba.data.load("samples/Breakout", cache="memory", progress=False)
    config = dmamba.configuration.load_config({"dataset": {"fraction": 0.5}})
    with pytest.raises(_C.ConfigError, match="dataset.fraction is for states and actions"):
        data.reshape(store, config.dataset)
