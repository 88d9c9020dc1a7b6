"""Training, checkpoints and policies on a GPU, beside the CPU's."""

import copy
import math
import pickle

import pytest
import torch
from support import needs_cuda, poison

import dmamba
from dmamba import _C, data

pytestmark = needs_cuda

STEPS = 50


def make_config(device, **training):
    """Two layers, dropout on; every batch has padding, many rows share a timestep."""
    config = _C.Config()
    config.seed = 3
    config.dataset.rtg_scale = 1000.0
    config.model.d_model = 32
    config.model.n_layer = 2
    config.model.context_length = 20
    values = {"steps": STEPS, "batch_size": 16, "warmup_steps": 5, "log_every": 1}
    for key, value in {**values, **training, "device": device}.items():
        setattr(config.training, key, value)
    return config


def make_trainer(device, **training):
    """A trainer with the parameters that its seed gives, and the model."""
    config = make_config(device, **training)
    store = data.load("hopper-medium")
    torch.manual_seed(config.seed)
    model = dmamba.nn.DMamba(store.state_dim, store.act_dim, config=config.model)
    return _C.Trainer(config, store, model.cpp_module), model


def losses(trainer, steps=STEPS):
    """The loss of each step."""
    poison()
    return [row["training/loss"] for row in trainer.run(seconds=1e9, max_steps=steps)]


def bits(folder):
    """The bytes of a checkpoint's tensors."""
    return [(folder / f"{name}.safetensors").read_bytes() for name in ("model", "optimizer")]


def largest_relative_difference(got, expected):
    return max(abs(a - b) / abs(b) for a, b in zip(got, expected, strict=True))


def test_the_losses_are_the_cpus():
    trainer, model = make_trainer("cuda")
    assert trainer.device.startswith("cuda:")
    assert {p.device.type for p in model.parameters()} == {"cuda"}
    got, expected = losses(trainer), losses(make_trainer("cpu")[0])
    assert expected[-1] < 0.8 * expected[0]
    assert largest_relative_difference(got, expected) <= 1e-3


def test_auto_takes_the_gpu():
    assert make_trainer("auto")[0].device.startswith("cuda:")


# 64 segments of 100 steps: the embedding's backward sorts above 3072 indices.
@pytest.mark.parametrize("shape", [(16, 20), (64, 100)], ids=["short", "long"])
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_two_runs_give_the_same_bits(tmp_path, shape, precision):
    batch_size, context_length = shape
    folders = []
    for name in ("first", "second"):
        config = make_config("cuda", batch_size=batch_size, precision=precision)
        config.model.context_length = context_length
        store = data.load("hopper-medium")
        torch.manual_seed(0)
        model = dmamba.nn.DMamba(store.state_dim, store.act_dim, config=config.model)
        trainer = _C.Trainer(config, store, model.cpp_module)
        losses(trainer, 20)
        trainer.save(str(tmp_path / name))
        folders.append(tmp_path / name)
    assert bits(folders[0]) == bits(folders[1])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resumed_run_gives_the_same_bits(tmp_path, precision):
    whole, _ = make_trainer("cuda", precision=precision, log_every=7)
    losses(whole)
    whole.save(str(tmp_path / "whole"))
    begun, _ = make_trainer("cuda", precision=precision, log_every=7)
    losses(begun, 23)
    begun.save(str(tmp_path / "half"))
    resumed, _ = make_trainer("cuda", precision=precision, log_every=7)
    resumed.load(str(tmp_path / "half"))
    losses(resumed)
    resumed.save(str(tmp_path / "resumed"))
    assert bits(tmp_path / "whole") == bits(tmp_path / "resumed")
    state = "state.json"
    assert (tmp_path / "whole" / state).read_text() == (tmp_path / "resumed" / state).read_text()


def test_bursts_do_not_change_the_bits(tmp_path):
    whole, _ = make_trainer("cuda")
    losses(whole)
    whole.save(str(tmp_path / "whole"))
    steps, _ = make_trainer("cuda")
    while not steps.finished:
        steps.run(max_steps=1)
    steps.save(str(tmp_path / "steps"))
    assert bits(tmp_path / "whole") == bits(tmp_path / "steps")


@pytest.mark.parametrize(("origin", "target"), [("cuda", "cpu"), ("cpu", "cuda")])
def test_a_checkpoint_crosses_devices(tmp_path, origin, target):
    first, _ = make_trainer(origin)
    losses(first, 25)
    first.save(str(tmp_path / "half"))
    second, model = make_trainer(target)
    second.load(str(tmp_path / "half"))
    assert second.step == 25
    assert {p.device.type for p in model.parameters()} == {target}
    second.save(str(tmp_path / "again"))
    assert bits(tmp_path / "half") == bits(tmp_path / "again")
    rest = losses(second)
    assert largest_relative_difference(rest, losses(first)) <= 1e-3
    loaded, _ = dmamba.nn.load(tmp_path / "half", device="cuda")
    assert {p.device.type for p in loaded.parameters()} == {"cuda"}


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.05), ("tf32", 0.01)])
def test_fast_arithmetic_stays_close_to_float32(precision, tolerance):
    trainer, model = make_trainer("cuda", precision=precision)
    got = losses(trainer)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    expected = losses(make_trainer("cuda")[0])
    assert got != expected
    assert abs(sum(got) / sum(expected) - 1) <= tolerance
    assert largest_relative_difference(got, expected) <= 3 * tolerance


@pytest.mark.parametrize("setting", ["highest", "high", "medium"])
def test_the_callers_precision_does_not_matter_and_comes_back(setting):
    expected = {p: losses(make_trainer("cuda", precision=p)[0], 5) for p in ("fp32", "tf32")}
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(setting)
        for precision, values in expected.items():
            assert losses(make_trainer("cuda", precision=precision)[0], 5) == values
            assert torch.get_float32_matmul_precision() == setting
            assert torch.backends.cuda.matmul.allow_tf32 == (setting != "highest")
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("batch_size", [16, 160], ids=["short", "long"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_does_not_wait_for_the_device(batch_size, precision):
    trainer, _ = make_trainer("cuda", log_every=STEPS, batch_size=batch_size, precision=precision)
    trainer.run(seconds=1e9, max_steps=3)  # first uses of libraries may wait
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.run(seconds=1e9, max_steps=20)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert trainer.step == 23


# 32 columns are none of the fused launches'; 64 are.
@pytest.mark.parametrize("d_model", [32, 64])
@pytest.mark.parametrize("kind", ["windowed", "recurrent"])
def test_a_policys_actions_are_the_cpus(kind, d_model):
    torch.manual_seed(0)
    model = dmamba.nn.DMamba(5, 2, d_model=d_model, n_layer=2, context_length=6, max_timestep=40)
    num_envs = 4
    generator = torch.Generator().manual_seed(1)
    observations = torch.randn(30, num_envs, 5, generator=generator)
    rewards = torch.rand(30, num_envs, generator=generator, dtype=torch.float64)
    ends = torch.rand(30, num_envs, generator=generator) < 0.1

    def play(device):
        model.to(device)
        policy = _C.Policy(model.cpp_module, kind, num_envs, 10.0, [0.1] * 5, [2.0] * 5)
        targets = torch.full((num_envs,), 50.0, dtype=torch.float64)
        policy.reset(torch.ones(num_envs, dtype=torch.bool), targets)
        actions = []
        for t in range(30):
            if t == 20:  # in place: a step that is recorded must see it
                with torch.no_grad():
                    model.get_parameter("predict_action.0.bias").add_(0.1)
            actions.append(policy.act(observations[t]))
            policy.observe(rewards[t])
            policy.reset(ends[t], targets)
        with torch.no_grad():
            model.get_parameter("predict_action.0.bias").sub_(0.1)
        return torch.stack(actions)

    got, expected = play("cuda"), play("cpu")
    assert got.device.type == "cpu" and got.dtype == torch.float32
    assert (got - expected).abs().max() <= 1e-4
    policy = _C.Policy(model.cpp_module, kind, num_envs, 10.0, [0.1] * 5, [2.0] * 5)
    with pytest.raises(RuntimeError, match=r"observations must be on the CPU.*got cuda:0"):
        policy.act(observations[0].cuda())
    model.to("cuda")
    with pytest.raises(RuntimeError, match=r"the model moved from cpu to cuda:0"):
        policy.act(observations[0])


def test_a_model_on_the_gpu_copies_and_pickles():
    model = dmamba.nn.DMamba(5, 2, d_model=16, n_layer=1, context_length=4).to("cuda")
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert {p.device.type for p in other.parameters()} == {"cuda"}
        for name, value in model.state_dict().items():
            assert torch.equal(other.state_dict()[name], value), name


def test_memory_does_not_grow():
    trainer, _ = make_trainer("cuda", steps=400)
    trainer.run(seconds=1e9, max_steps=20)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    trainer.run(seconds=1e9, max_steps=300)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == before


def test_an_exhausted_memory_is_torchs_error():
    config = make_config("cuda", batch_size=256)
    config.model.d_model = 512
    config.model.context_length = 100
    store = data.load("hopper-medium")
    model = dmamba.nn.DMamba(store.state_dim, store.act_dim, config=config.model)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-3)
    try:
        with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
            _C.Trainer(config, store, model.cpp_module).run(max_steps=1)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_the_shortest_context():
    config = make_config("cuda", batch_size=1)
    config.model.context_length = 1
    store = data.load("hopper-medium")
    model = dmamba.nn.DMamba(store.state_dim, store.act_dim, config=config.model)
    values = losses(_C.Trainer(config, store, model.cpp_module), 10)
    assert all(math.isfinite(value) for value in values)
