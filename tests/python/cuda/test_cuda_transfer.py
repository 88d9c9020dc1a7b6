"""Fine-tuning and several sets on a GPU, beside the CPU's."""

import pytest
import torch
from conftest import write_dataset
from support import needs_cuda, poison
from test_cuda_training import make_config as training_config

import dmamba
from dmamba import _C, data

pytestmark = needs_cuda

STEPS = 30


def make_config(device, **training):
    """Thirty steps of short segments."""
    config = training_config(device, **{"steps": STEPS, **training})
    config.model.context_length = 5
    return config


def tune(device, **transfer):
    """The model after a run, and its losses."""
    config = make_config(device, weight_decay=0.1)
    for key, value in transfer.items():
        setattr(config.transfer, key, value)
    store = data.load("hopper-medium")
    torch.manual_seed(config.seed)
    model = dmamba.nn.DMamba(store.state_dim, store.act_dim, config=config.model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer = _C.Trainer(config, store, model.cpp_module)
    poison()
    losses = [row["training/loss"] for row in trainer.run(seconds=1e9)]
    return before, {name: p.detach().cpu() for name, p in model.named_parameters()}, losses


@pytest.mark.parametrize(
    "patterns",
    [["transformer.*"], ["embed_*"], ["transformer.*", "embed_*"], ["*.A_log", "predict_action.*"]],
    ids=["trunk", "embeddings", "all-but-the-head", "some"],
)
def test_frozen_parameters_keep_their_bits(patterns):
    from fnmatch import fnmatch

    before, after, losses = tune("cuda", freeze=patterns)
    _, expected, of_the_cpu = tune("cpu", freeze=patterns)
    for name, values in after.items():
        frozen = any(fnmatch(name, pattern) for pattern in patterns)
        assert torch.equal(values, before[name]) == frozen, name
        torch.testing.assert_close(values, expected[name], rtol=1e-2, atol=1e-3, msg=name)
    assert losses == pytest.approx(of_the_cpu, rel=1e-3)


def test_learning_rates_are_the_cpus():
    rates = ["*=0.5", "transformer.*=0.1", "*.A_log=2"]
    _, after, losses = tune("cuda", learning_rates=rates)
    _, expected, of_the_cpu = tune("cpu", learning_rates=rates)
    assert losses == pytest.approx(of_the_cpu, rel=1e-3)
    for name, values in after.items():
        torch.testing.assert_close(values, expected[name], rtol=1e-2, atol=1e-3, msg=name)


def test_a_factor_of_one_changes_no_bit():
    _, plain, _ = tune("cuda")
    _, scaled, _ = tune("cuda", learning_rates=["*=1"])
    for name, values in plain.items():
        assert torch.equal(values, scaled[name]), name


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    other = write_dataset(folder / "other.hdf5", 17, 6, lengths=(60, 200, 31))
    return [data.load("hopper-medium"), data.load(other)]


def make_trainer(device, sets, **training):
    config = make_config(device, **training)
    config.dataset.rtg_scale = 0.0
    config.pretraining.sets = ["hopper.hdf5", "other.hdf5"]
    config.pretraining.rtg_scales = [1000.0, 100.0]
    config.pretraining.temperature = 100.0
    torch.manual_seed(config.seed)
    model = dmamba.nn.MultiDMamba({"hopper": (11, 3), "other": (17, 6)}, config.model)
    return _C.Trainer(config, sets, model.cpp_module), model


@pytest.mark.parametrize("where", ["device", "host"])
def test_several_sets_learn_as_on_the_cpu(sets, where):
    trainer, model = make_trainer("cuda", sets, data=where, graph="on")
    reference, expected = make_trainer("cpu", sets)
    poison()
    losses = [row["training/loss"] for row in trainer.run(seconds=1e9)]
    assert trainer.uses_graph
    of_the_cpu = [row["training/loss"] for row in reference.run(seconds=1e9)]
    assert losses == pytest.approx(of_the_cpu, rel=1e-3)
    assert trainer.sets == reference.sets
    assert all(known["steps"] > 5 for known in trainer.sets)  # both are replays by then
    values = dict(expected.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter.detach().cpu(), values[name].detach(), rtol=1e-2, atol=1e-3, msg=name
        )


def test_a_step_leaves_the_other_set_alone(sets):
    trainer, model = make_trainer("cuda", sets)
    for _ in range(STEPS):
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        done = [known["steps"] for known in trainer.sets]
        trainer.run(seconds=1e9, max_steps=1)
        moved = [now["steps"] > was for now, was in zip(trainer.sets, done, strict=True)]
        resting = "sets.other." if moved[0] else "sets.hopper."
        for name, values in model.named_parameters():
            assert torch.equal(values, before[name]) == name.startswith(resting), name


def test_a_resumed_run_on_several_sets_has_the_same_bits(sets, tmp_path):
    whole, _ = make_trainer("cuda", sets)
    whole.run(seconds=1e9)
    whole.save(str(tmp_path / "whole"))
    stopped, _ = make_trainer("cuda", sets)
    stopped.run(seconds=1e9, max_steps=11)
    stopped.save(str(tmp_path / "stopped"))
    resumed, _ = make_trainer("cuda", sets)
    resumed.load(str(tmp_path / "stopped"))
    resumed.run(seconds=1e9)
    resumed.save(str(tmp_path / "resumed"))
    for name in ("model", "optimizer"):
        mine, theirs = (
            (tmp_path / run / f"{name}.safetensors").read_bytes() for run in ("resumed", "whole")
        )
        assert mine == theirs, name
