"""What lies between the scans of two layers in one launch, beside the same layers op by op."""

import math

import pytest
import torch
from support import needs_cuda, poison
from test_cuda_atari import batch as game_batch
from test_cuda_atari import on_gpu
from test_cuda_fused_step import make
from test_cuda_training import bits, largest_relative_difference, losses

import dmamba
from dmamba import _C

pytestmark = needs_cuda
STATE_DIM, ACT_DIM = 13, 9


@pytest.fixture(autouse=True)
def chained():
    """The chain is on before each test and after it, on a card whose instructions it uses."""
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("the token chain is for cards of compute capability 9.0")
    _C.set_token_chain(True)
    yield
    _C.set_token_chain(True)


def spread_vectors(model):
    """Biases and norms that are not all alike."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.cuda()


def make_model(**options):
    torch.manual_seed(0)
    options = {"d_model": 128, "n_layer": 3, "max_timestep": 11, "context_length": 30, **options}
    return spread_vectors(dmamba.nn.DMamba(STATE_DIM, ACT_DIM, **options))


def make_batch(batch, K, seed=1):
    """Inputs, targets, a mask by which the first steps of most rows are padding."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(batch, K, STATE_DIM, generator=generator)
    actions = torch.rand(batch, K, ACT_DIM, generator=generator) * 2 - 1
    rtg = torch.randn(batch, K, 1, generator=generator)
    timesteps = torch.randint(0, 9, (batch, K), generator=generator)
    mask = torch.arange(K) >= torch.arange(batch)[:, None] % K
    return [t.cuda() for t in (states, actions, rtg, timesteps, mask)]


def loss_of(model, states, actions, rtg, timesteps, mask):
    out = model(states, actions, rtg, timesteps, mask).float()
    return ((out - actions).square() * mask[:, :, None]).sum() / mask.sum()


def results(model, function, inputs, chain, autocast=True):
    """The loss and every parameter's gradient; dropout's keys are always the same ones."""
    _C.set_token_chain(chain)
    model.zero_grad(set_to_none=True)
    torch.manual_seed(11)
    poison()
    with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
        loss = function(model, *inputs)
    loss.backward()
    named = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach()} | named


def assert_as_near_as_op_by_op(model, function, batches):
    """|x - fp32| / |fp32| over the batches is at most 1.3 times that of single ops, and a little.

    The little is what a rounding to bfloat16 makes (2^-9) of a result that single ops met by luck.
    """
    squares = {}
    for inputs in batches:
        exact = results(model, function, inputs, chain=False, autocast=False)
        got = results(model, function, inputs, chain=True)
        single = results(model, function, inputs, chain=False)
        assert exact.keys() == got.keys() == single.keys()
        for name, expected in exact.items():
            sums = squares.setdefault(name, [0.0, 0.0, 0.0])
            for i, value in enumerate((got[name] - expected, single[name] - expected, expected)):
                sums[i] += value.double().square().sum().item()
    wrong = {}
    for name, sums in squares.items():
        mine, theirs, scale = (math.sqrt(s) for s in sums)
        if not mine <= 1.3 * theirs + 4e-3 * scale:  # NaN is wrong, too
            wrong[name] = (mine, theirs, scale)
    assert not wrong, wrong


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize(("batch", "K"), [(1, 1), (3, 7), (64, 20), (64, 22)])
def test_gradients_are_as_near_to_float32_as_those_of_single_ops(batch, K, dropout):
    model = make_model(dropout=dropout, embedding_dropout=dropout)
    batches = [make_batch(batch, K, seed) for seed in range(3)]
    assert_as_near_as_op_by_op(model, loss_of, batches)


@pytest.mark.parametrize(
    "options",
    [{"n_layer": 1}, {"n_layer": 2, "expand": 1}, {"n_layer": 2, "expand": 4}],
    ids=["one-layer", "narrow", "wide"],
)
def test_other_widths_are_as_near(options):
    model = make_model(**options)
    assert_as_near_as_op_by_op(model, loss_of, [make_batch(5, 9, seed) for seed in range(3)])


def test_it_is_at_work_and_gives_the_same_bits_each_time():
    model = make_model()
    inputs = make_batch(64, 20)
    first, again = (results(model, loss_of, inputs, chain=True) for _ in range(2))
    for name, value in first.items():
        assert torch.equal(value, again[name]), name
    single = results(model, loss_of, inputs, chain=False)
    assert any(not torch.equal(value, single[name]) for name, value in first.items())


@pytest.mark.parametrize(
    "options",
    [
        {"d_model": 64},
        {"d_model": 256},
        {"channel_mixing": "none"},
        {"channel_mixing": "ssm"},
        {"token_mixer": ["mamba", "attention", "mamba"]},
    ],
    ids=["64", "256", "no-channels", "ssm", "attention"],
)
def test_other_layers_are_what_they_were(options):
    model = make_model(**options)
    inputs = make_batch(3, 7)
    on, off = (results(model, loss_of, inputs, chain=chain) for chain in (True, False))
    for name, value in on.items():
        assert torch.equal(value, off[name]), name


def test_more_tokens_than_fit_at_once_go_from_op_to_op():
    model = make_model(n_layer=1)
    for K, chained in ((22, True), (23, False)):  # 4224 tokens are the most
        inputs = make_batch(64, K)
        on, off = (results(model, loss_of, inputs, chain=chain) for chain in (True, False))
        assert any(not torch.equal(value, off[name]) for name, value in on.items()) == chained


def test_float32_is_what_it_was():
    model = make_model()
    inputs = make_batch(3, 7)
    on, off = (
        results(model, loss_of, inputs, chain=chain, autocast=False) for chain in (True, False)
    )
    for name, value in on.items():
        assert torch.equal(value, off[name]), name


# One at a time: in the backward pass the number of a gradient must be that of its parameter.
@pytest.mark.parametrize(
    "part", ["in_proj", "out_proj", "mlp_channels.0", "mlp_channels.2", "norm", "ln_", "embed"]
)
def test_parameters_may_be_frozen(part):
    model = make_model()
    inputs = make_batch(3, 7)
    expected = results(model, loss_of, inputs, chain=True)
    frozen = {name for name, _ in model.named_parameters() if part in name}
    assert frozen
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    got = results(model, loss_of, inputs, chain=True)
    assert got.keys() == expected.keys() - frozen
    for name, value in got.items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("batch", [3, 46])
def test_without_gradients_the_values_are_the_same(batch):
    model = make_model().eval()
    inputs = make_batch(batch, 30)
    with torch.autocast("cuda", torch.bfloat16):
        expected = loss_of(model, *inputs)
        assert expected.requires_grad
        poison()
        with torch.no_grad():
            assert torch.equal(loss_of(model, *inputs), expected)


def test_a_trainers_graph_gives_the_same_bits(tmp_path):
    folders, curves = [], []
    for graph in ("on", "off", "on"):
        trainer, _ = make("cuda", precision="bf16", graph=graph, steps=20)
        curves.append(losses(trainer, 20))
        assert trainer.uses_graph == (graph == "on")
        folders.append(tmp_path / str(len(folders)))
        trainer.save(str(folders[-1]))
    assert bits(folders[0]) == bits(folders[1]) == bits(folders[2])
    _C.set_token_chain(False)
    single = losses(make("cuda", precision="bf16", steps=20)[0], 20)
    assert single != curves[0]
    assert largest_relative_difference(curves[0], single) <= 5e-2


@pytest.mark.parametrize("graph", ["on", "off"])
def test_a_trainers_parameters_may_be_frozen(graph):
    trainer, model = make("cuda", precision="bf16", graph=graph, steps=20)
    parts = ("norm_mamba", "mlp_channels.0", "out_proj")
    frozen = [p for n, p in model.named_parameters() if any(part in n for part in parts)]
    for parameter in frozen:
        parameter.requires_grad_(False)
    before = [p.detach().clone() for p in frozen]
    curve = losses(trainer, 20)
    assert all(torch.equal(p, q) for p, q in zip(frozen, before, strict=True))
    _C.set_token_chain(False)
    other, beside = make("cuda", precision="bf16", graph=graph, steps=20)
    for name, parameter in beside.named_parameters():
        parameter.requires_grad_(not any(part in name for part in parts))
    assert largest_relative_difference(curve, losses(other, 20)) <= 5e-2


def test_games_are_as_near_to_float32_as_with_single_ops():
    torch.manual_seed(0)
    model = spread_vectors(
        dmamba.nn.AtariDMamba(4, d_model=128, n_layer=2, context_length=12, max_timestep=50)
    )

    def loss(model, *inputs):
        return model.cpp_module.loss(*inputs)

    batches = [on_gpu(game_batch(seed=seed)) for seed in range(3)]
    assert_as_near_as_op_by_op(model, loss, batches)
    on, off = (results(model, loss, batches[0], chain=chain) for chain in (True, False))
    assert any(not torch.equal(value, off[name]) for name, value in on.items())
