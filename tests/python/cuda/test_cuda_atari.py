"""Games on the GPU: the encoder, batches drawn there, the captured step, policies."""

import copy

import numpy as np
import pytest
import torch
from support import needs_cuda, poison, write_recording
from test_cuda_training import largest_relative_difference

import dmamba
from dmamba import _C

pytestmark = needs_cuda


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return _C.open_replay(
        str(write_recording(tmp_path_factory.mktemp("games"), lengths=(40, 9, 60)))
    )


def make(store, device, steps=12, precision="fp32", **keys):
    """A trainer of a small model, and the model."""
    config = _C.Config()
    config.seed = 3
    config.dataset.rtg_scale = 2.0
    config.model.d_model, config.model.n_layer, config.model.context_length = 64, 2, 12
    config.model.max_timestep = 50
    config.training.batch_size, config.training.steps, config.training.log_every = 6, steps, 1
    config.training.warmup_steps = 3
    config.training.device, config.training.precision = device, precision
    for key, value in keys.items():
        section = config.model if hasattr(config.model, key) else config.training
        setattr(section, key, value)
    torch.manual_seed(config.seed)
    model = dmamba.nn.AtariDMamba(4, config=config.model)
    return _C.Trainer(config, store, model.cpp_module), model


def losses(rows):
    return [row["training/loss"] for row in rows]


def bits(model):
    return {name: value.cpu().numpy().tobytes() for name, value in model.state_dict().items()}


def batch(K=12, count=3, seed=0):
    """Strips, actions, returns-to-go, timesteps, mask; the last segment is short."""
    generator = torch.Generator().manual_seed(seed)
    strips = torch.randint(0, 256, (count, K + 3, 84, 84), generator=generator, dtype=torch.uint8)
    actions = torch.randint(0, 4, (count, K), generator=generator)
    rtg = torch.randn(count, K, 1, generator=generator, dtype=torch.float64)
    mask = torch.ones(count, K, dtype=torch.bool)
    mask[-1, :4] = False
    return strips, actions, rtg, torch.tensor([0, 7, 49]), mask


def on_gpu(tensors):
    return [t.float().cuda() if t.is_floating_point() else t.cuda() for t in tensors]


@pytest.mark.parametrize("encoder", ["nature", "impala"])
@pytest.mark.parametrize("position", ["segment", "timestep"])
def test_the_gradients_are_those_of_float64(encoder, position, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # of torch's own convolutions
    torch.manual_seed(0)
    reference = dmamba.nn.AtariDMamba(
        4,
        d_model=64,
        n_layer=2,
        context_length=12,
        max_timestep=50,
        encoder=encoder,
        position=position,
    ).eval()
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            if name.endswith("pos_emb"):
                parameter.normal_(0.0, 0.2)
    fused = copy.deepcopy(reference).cuda()
    reference = reference.double()
    inputs = batch()
    expected = reference.cpp_module.loss(*inputs)
    expected.backward()
    poison()
    loss = fused.cpp_module.loss(*on_gpu(inputs))
    loss.backward()
    assert abs(loss.item() - expected.item()) <= 2e-6 * abs(expected.item())
    for (name, p), got in zip(reference.named_parameters(), fused.parameters(), strict=True):
        error = (got.grad.cpu().double() - p.grad).abs().max() / p.grad.abs().max()
        assert error <= 2e-5, f"{name}: {error:.2e}"


@pytest.mark.parametrize(("count", "K"), [(1, 1), (3, 8), (2, 9), (2, 19), (1, 30), (300, 2)])
def test_the_encoder_in_bfloat16_is_near(count, K):
    torch.manual_seed(0)
    reference = dmamba.nn.AtariDMamba(4, d_model=64, n_layer=1, context_length=20).double()
    with torch.no_grad():  # a rounded activation must not be on the other side of a ReLU
        for name, parameter in reference.named_parameters():
            if name in [f"state_encoder.{i}.bias" for i in (0, 2, 4)]:
                parameter.fill_(1.0)
            elif name in [f"state_encoder.{i}.weight" for i in (0, 2, 4)]:
                parameter.mul_(0.2)
    model = copy.deepcopy(reference).float().cuda()
    strips = torch.randint(0, 256, (count, K + 3, 84, 84), dtype=torch.uint8)
    stacks = strips.unfold(1, 4, 1).permute(0, 1, 4, 2, 3).flatten(0, 1)
    weights = torch.randn(count * K, 64, dtype=torch.float64)
    expected = reference.encode(stacks)
    (expected * weights).sum().backward()
    poison()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        got = model.cpp_module.encode_strips(strips.cuda()).flatten(0, 1)
    (got * weights.float().cuda()).sum().backward()
    assert (got.cpu().double() - expected).abs().max() <= 1e-2 * expected.abs().max()
    parameters = dict(model.named_parameters())
    for name, p in reference.named_parameters():
        if name.startswith("state_encoder"):
            error = (parameters[name].grad.cpu().double() - p.grad).norm() / p.grad.norm()
            assert error <= 2e-2, f"{name}: {error:.2e}"


def test_a_segment_of_padding_alone_and_unknown_actions_stay_in_bounds():
    torch.manual_seed(0)
    model = dmamba.nn.AtariDMamba(
        4, d_model=64, n_layer=1, context_length=12, max_timestep=50
    ).eval()
    strips, actions, rtg, timesteps, mask = batch()
    mask[-1] = False
    expected = model.cpp_module.loss(strips, actions, rtg.float(), timesteps, mask)
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    model.cuda()
    actions[-1] = 17  # a segment of padding alone
    model.cpp_module.loss(*on_gpu([strips, actions, rtg, timesteps, mask])).backward()
    torch.cuda.synchronize()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad.cpu(), gradients[name], rtol=1e-3, atol=1e-5)


def test_not_a_number_goes_through_the_encoder():
    for precision in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        model = dmamba.nn.AtariDMamba(4, d_model=64, n_layer=1, context_length=12).cuda()
        with torch.no_grad():
            model.get_parameter("state_encoder.0.bias")[0] = float("nan")
        with torch.autocast("cuda", dtype=precision, enabled=precision == torch.bfloat16):
            states = model.encode(torch.zeros(2, 4, 84, 84, dtype=torch.uint8, device="cuda"))
        assert states.isnan().all()


@pytest.mark.parametrize("K", [1, 7, 12, 40])
def test_batches_drawn_on_the_gpu_are_the_cpus(store, K):
    drawn = {}
    for data in ("device", "host"):
        trainer, _ = make(store, "cuda", context_length=K, data=data, graph="off")
        assert trainer.data_on_device == (data == "device")
        drawn[data] = losses(trainer.run(1e9))
    assert drawn["device"] == drawn["host"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_graph_gives_the_same_bits(store, precision):
    results = []
    for graph in ("on", "off", "on"):
        trainer, model = make(store, "cuda", precision=precision, graph=graph)
        rows = trainer.run(1e9)
        assert trainer.uses_graph == (graph == "on")
        results.append((losses(rows), bits(model)))
    assert results[0] == results[1] == results[2]


def test_losses_with_dropout_are_the_cpus(store):
    expected = losses(make(store, "cpu")[0].run(1e9))
    got = losses(make(store, "cuda")[0].run(1e9))
    assert largest_relative_difference(got, expected) <= 2e-4


def test_a_resumed_run_gives_the_same_bits(store, tmp_path):
    whole, model = make(store, "cuda")
    whole.run(1e9)
    first, _ = make(store, "cuda")
    first.run(1e9, 5)
    first.save(str(tmp_path / "checkpoint"))
    second, resumed = make(store, "cuda")
    second.load(str(tmp_path / "checkpoint"))
    second.run(1e9)
    assert bits(model) == bits(resumed)


@pytest.mark.parametrize("kind", ["windowed", "recurrent"])
@pytest.mark.parametrize("position", ["segment", "timestep"])
def test_policies_play_as_on_the_cpu(kind, position):
    torch.manual_seed(0)
    model = dmamba.nn.AtariDMamba(
        4, d_model=64, n_layer=2, context_length=6, max_timestep=50, position=position
    ).eval()
    policies = [
        _C.AtariPolicy(m.cpp_module, kind, 3, 1.0, 1.0)
        for m in (model, copy.deepcopy(model).cuda())
    ]
    generator = np.random.default_rng(0)
    targets, seeds = torch.tensor([1.0, 5.0, 9.0]).double(), torch.tensor([1, 2, 3])
    for step in range(15):
        anew = torch.tensor([step in (0, 9), step == 0, step in (0, 4)])
        frames = torch.from_numpy(generator.integers(0, 256, (3, 4, 84, 84), dtype=np.uint8))
        logits = []
        for policy in policies:
            policy.reset(anew, targets, seeds)
            policy.act(frames)
            logits.append(policy.logits)
            policy.observe(torch.from_numpy(generator.random(3)) * 0 + 0.5)
        assert (logits[0] - logits[1]).abs().max() <= 1e-4, step
