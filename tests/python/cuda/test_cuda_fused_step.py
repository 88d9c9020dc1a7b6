"""The fused launches of a training step, its CUDA graph, and batches drawn on the GPU."""

import json
import threading

import pytest
import torch
from support import needs_cuda, poison
from test_cuda_training import bits, largest_relative_difference, losses, make_config

import dmamba
from dmamba import _C, data

pytestmark = needs_cuda


def make(device, d_model=128, model_keys=None, **training):
    """A trainer of this width, and the model."""
    config = make_config(device, **training)
    config.model.d_model = d_model
    for key, value in (model_keys or {}).items():
        setattr(config.model, key, value)
    store = data.load("hopper-medium")
    torch.manual_seed(config.seed)
    model = dmamba.nn.DMamba(store.state_dim, store.act_dim, config=config.model)
    return _C.Trainer(config, store, model.cpp_module), model


def window(state_dim, act_dim, batch=5, K=7):
    """A batch in float64: padding, one timestep that many rows share."""
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(batch, K, state_dim, generator=generator, dtype=torch.float64)
    actions = torch.randn(batch, K, act_dim, generator=generator, dtype=torch.float64)
    rtg = torch.randn(batch, K, 1, generator=generator, dtype=torch.float64)
    timesteps = torch.randint(0, 9, (batch, K), generator=generator)
    mask = torch.arange(K) >= torch.arange(batch)[:, None]
    return states, actions, rtg, timesteps, mask


# Every number of turns that a row takes, whole and in part; an act_dim beyond one round.
@pytest.mark.parametrize("d_model", [64, 128, 192, 256, 320, 576, 1024])
@pytest.mark.parametrize("channel_mixing", ["mlp", "none"])
def test_the_gradients_are_those_of_float64(d_model, channel_mixing):
    config = _C.ModelConfig()
    config.d_model = d_model
    config.n_layer = 2
    config.channel_mixing = channel_mixing
    config.max_timestep = 11
    torch.manual_seed(0)
    reference = dmamba.nn.DMamba(13, 9, config=config).eval()
    fused = dmamba.nn.DMamba(13, 9, config=config).eval()
    fused.load_state_dict(reference.state_dict())
    reference, fused = reference.double(), fused.to("cuda")
    *inputs, mask = window(13, 9)
    weights = torch.randn(5, 7, 9, dtype=torch.float64)
    (reference(*inputs, mask) * weights).sum().backward()
    poison()
    on_gpu = [x.float().cuda() if x.is_floating_point() else x.cuda() for x in inputs]
    out = fused(*on_gpu, mask.cuda())
    (out * weights.float().cuda()).sum().backward()
    for (name, expected), got in zip(reference.named_parameters(), fused.parameters(), strict=True):
        scale = expected.grad.abs().max()
        error = (got.grad.cpu().double() - expected.grad).abs().max() / scale
        assert error <= 2e-5, f"{name}: {error:.2e}"


# Rows of the table that a few steps share, that all share, that none use; several slices of steps.
@pytest.mark.parametrize("share", ["segments", "one", "padding"])
@pytest.mark.parametrize("state_dim", [7, 17])
def test_the_embeddings_gradients_are_those_of_float64(share, state_dim):
    batch, K = 61, 21
    config = _C.ModelConfig()
    config.d_model = 64
    config.n_layer = 1
    config.max_timestep = 1000
    torch.manual_seed(0)
    reference = dmamba.nn.DMamba(state_dim, 3, config=config).eval()
    fused = dmamba.nn.DMamba(state_dim, 3, config=config).eval()
    fused.load_state_dict(reference.state_dict())
    reference, fused = reference.double(), fused.to("cuda")
    states, actions, rtg, *_ = window(state_dim, 3, batch, K)
    timesteps = torch.arange(K) + torch.arange(batch)[:, None] * 15
    if share == "one":
        timesteps = torch.full_like(timesteps, 999)
    if share == "padding":
        timesteps = timesteps * (torch.arange(K) >= torch.arange(batch)[:, None] % K)
    weights = torch.randn(batch, K, 3, dtype=torch.float64)
    (reference(states, actions, rtg, timesteps) * weights).sum().backward()
    on_gpu = [x.float().cuda() for x in (states, actions, rtg)]
    runs = []
    for _ in range(2):
        fused.zero_grad()
        poison()
        out = fused(*on_gpu, timesteps.cuda())
        (out * weights.float().cuda()).sum().backward()
        runs.append({name: p.grad.clone() for name, p in fused.named_parameters()})
    for name, expected in reference.named_parameters():
        if not name.startswith("embed") and ".h.0.norm_" not in name:
            continue
        error = (runs[0][name].cpu().double() - expected.grad).abs().max()
        assert error <= 2e-5 * expected.grad.abs().max(), name
    assert all(torch.equal(grad, runs[1][name]) for name, grad in runs[0].items())


@pytest.mark.parametrize("d_model", [64, 128, 320])
@pytest.mark.parametrize("padding", ["masked", "paper"])
def test_losses_with_dropout_are_the_cpus(d_model, padding):
    keys = {"padding": padding}
    got = losses(make("cuda", d_model, keys)[0], 30)
    expected = losses(make("cpu", d_model, keys)[0], 30)
    assert largest_relative_difference(got[:5], expected[:5]) <= 1e-5
    assert largest_relative_difference(got, expected) <= 2e-3


def test_the_optimizer_is_the_cpus():
    """Moments and parameters after steps whose clip is at work, decay and none."""
    models = [make(device, weight_decay=0.1, gradient_clip=0.05) for device in ("cpu", "cuda")]
    for trainer, _ in models:
        losses(trainer, 6)
    for (name, expected), got in zip(
        models[0][1].named_parameters(), models[1][1].parameters(), strict=True
    ):
        difference = (got.detach().cpu() - expected.detach()).abs().max()
        assert difference <= 2e-4 * expected.detach().abs().max() + 1e-5, name


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_graph_and_place_of_the_data_do_not_change_the_bits(tmp_path, precision):
    folders = {}
    for graph in ("on", "off"):
        for place in ("device", "host"):
            trainer, _ = make("cuda", precision=precision, graph=graph, data=place, log_every=7)
            assert trainer.data_on_device == (place == "device")
            losses(trainer)
            assert trainer.uses_graph == (graph == "on")
            folders[graph, place] = tmp_path / f"{graph}-{place}"
            trainer.save(str(folders[graph, place]))
    contents = [bits(folder) for folder in folders.values()]
    assert all(content == contents[0] for content in contents)
    states = [json.loads((folder / "state.json").read_text()) for folder in folders.values()]
    assert len({(state["loss_sum"], state["gradient_norm_sum"]) for state in states}) == 1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_resumed_and_cut_into_bursts_a_graph_gives_the_same_bits(tmp_path, precision):
    whole, _ = make("cuda", precision=precision)
    losses(whole)
    whole.save(str(tmp_path / "whole"))
    begun, _ = make("cuda", precision=precision)
    for _ in range(23):
        begun.run(max_steps=1)
    begun.save(str(tmp_path / "half"))
    resumed, _ = make("cuda", precision=precision)
    resumed.load(str(tmp_path / "half"))
    losses(resumed)
    resumed.save(str(tmp_path / "resumed"))
    assert bits(tmp_path / "whole") == bits(tmp_path / "resumed")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_captured_step_sees_what_happens_to_parameters(precision):
    trainer, model = make("cuda", precision=precision)
    losses(trainer, 10)
    frozen = model.get_parameter("embed_state.weight")
    frozen.requires_grad_(False)
    before = frozen.detach().clone()
    other = model.get_parameter("embed_return.weight").detach().clone()
    losses(trainer, 10)
    assert torch.equal(before, frozen)
    assert not torch.equal(other, model.get_parameter("embed_return.weight"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    rows = trainer.run(seconds=1e9, max_steps=1)
    assert rows[0]["training/grad_norm"] > 0  # only the head's bias sees a gradient
    assert rows[0]["training/loss"] > 0


@pytest.mark.parametrize("graph", ["on", "off"])
def test_any_parameter_may_be_frozen(graph):
    trainer, model = make("cuda", graph=graph)
    frozen = [
        p
        for n, p in model.named_parameters()
        if "A_log" in n or "conv1d" in n or n.endswith("bias")
    ]
    for parameter in frozen:
        parameter.requires_grad_(False)
    before = [p.detach().clone() for p in frozen]
    host, of_host = make("cpu")
    for (name, theirs), mine in zip(of_host.named_parameters(), model.parameters(), strict=True):
        theirs.requires_grad_(mine.requires_grad)
        assert torch.equal(theirs.detach(), mine.detach().cpu()), name
    assert largest_relative_difference(losses(trainer, 10), losses(host, 10)) <= 1e-4
    assert all(torch.equal(p, q) for p, q in zip(frozen, before, strict=True))


def test_inputs_on_another_device_are_refused():
    model = dmamba.nn.DMamba(3, 2, d_model=64, n_layer=1, context_length=4).to("cuda")
    states, actions, rtg = (torch.zeros(1, 4, n, device="cuda") for n in (3, 2, 1))
    with pytest.raises(RuntimeError, match="timesteps must be on cuda:0.*got a tensor on cpu"):
        model(states, actions, rtg, torch.zeros(1, 4, dtype=torch.long))


def test_inputs_may_have_gradients():
    model = dmamba.nn.DMamba(3, 2, d_model=64, n_layer=1, context_length=4).to("cuda")
    states, actions, rtg = (torch.ones(1, 4, n, device="cuda") for n in (3, 2, 1))
    timesteps = torch.zeros(1, 4, dtype=torch.long, device="cuda")
    states.requires_grad_(True)
    model(states, actions, rtg, timesteps).sum().backward()
    assert states.grad.abs().sum() > 0


def test_trainers_in_threads_give_the_bits_of_trainers_alone(tmp_path):
    alone, _ = make("cuda", precision="bf16")
    losses(alone)
    alone.save(str(tmp_path / "alone"))
    trainers = [make("cuda", precision="bf16")[0] for _ in range(4)]
    threads = [
        threading.Thread(target=trainer.run, kwargs={"seconds": 1e9}) for trainer in trainers
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, trainer in enumerate(trainers):
        assert trainer.finished
        trainer.save(str(tmp_path / str(i)))
        assert bits(tmp_path / "alone") == bits(tmp_path / str(i))


def test_memory_does_not_grow():
    trainer, _ = make("cuda", steps=2000, log_every=500)
    losses(trainer, 500)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    losses(trainer, 1500)
    torch.cuda.synchronize()
    assert (torch.cuda.memory_allocated(), torch.cuda.memory_reserved()) == before


def test_data_that_must_fit_and_does_not_is_an_error():
    with pytest.raises(_C.ConfigError, match="training.data"):
        make("cuda", data="nowhere")
