"""Layers for models of one's own: ``Mamba`` in the place of mamba_ssm's, ``MambaBlock``."""

import copy
import inspect
import math
import pickle
from types import SimpleNamespace

import pytest
import torch
from mamba_reference import ReferenceMamba

import dmamba
from dmamba.nn import DMamba, GraphMamba, Mamba, MambaBlock

# What stands in mamba_ssm 2.2's modules/mamba_simple.py, in its order.
ARGUMENTS = [
    ("d_model", inspect.Parameter.empty), ("d_state", 16), ("d_conv", 4), ("expand", 2),
    ("dt_rank", "auto"), ("dt_min", 0.001), ("dt_max", 0.1), ("dt_init", "random"),
    ("dt_scale", 1.0), ("dt_init_floor", 1e-4), ("conv_bias", True), ("bias", False),
    ("use_fast_path", True), ("layer_idx", None), ("device", None), ("dtype", None),
]  # fmt: skip


def test_the_constructor_is_mamba_ssms():
    found = inspect.signature(Mamba).parameters.values()
    assert [(p.name, p.default) for p in found] == ARGUMENTS


SIZES = [
    {"d_model": 16},
    {"d_model": 20, "d_state": 3, "d_conv": 2, "expand": 3, "dt_rank": 5},
    {"d_model": 8, "d_conv": 1},
    {"d_model": 8, "conv_bias": False, "bias": True},
]


def twins(kind, sizes):
    """Ours, and the reference with its parameters, all of them random."""
    torch.manual_seed(0)
    reference = ReferenceMamba(**sizes)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    ours = kind(**sizes)
    ours.load_state_dict(reference.state_dict())
    return ours, reference


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [(Mamba, sizes) for sizes in SIZES] + [(GraphMamba, sizes) for sizes in SIZES[1:]],
)
def test_state_dicts_go_both_ways_and_outputs_and_gradients_agree(kind, sizes):
    ours, reference = twins(kind, sizes)
    mine, theirs = ours.state_dict(), reference.state_dict()
    assert {n: t.shape for n, t in mine.items()} == {n: t.shape for n, t in theirs.items()}
    reference.load_state_dict(mine)
    x = torch.randn(2, 11, sizes["d_model"])
    mask = torch.ones(2, 11, dtype=torch.bool)
    mask[1, :4] = False
    torch.testing.assert_close(
        ours(x, mask=mask)[mask], reference(x, mask)[mask], rtol=1e-4, atol=1e-5
    )
    y, expected = ours(x), reference(x)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    grade = torch.randn_like(y)
    gradients = torch.autograd.grad(y, ours.parameters(), grade)
    names = [name for name, _ in ours.named_parameters()]
    inputs = [reference.get_parameter(name) for name in names]
    expected = torch.autograd.grad(expected, inputs, grade)
    for name, a, b in zip(names, gradients, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("sizes", SIZES)
def test_steps_and_the_cache_are_mamba_ssms(sizes):
    ours, _ = twins(Mamba, sizes)
    ours.layer_idx = 7
    x = torch.randn(3, 9, sizes["d_model"])
    expected = ours(x)
    conv, ssm = ours.allocate_inference_cache(3, max_seqlen=9)
    assert conv.shape == (3, ours.d_inner, ours.d_conv)
    assert ssm.shape == (3, ours.d_inner, ours.d_state)
    for t in range(9):
        y, *states = ours.step(x[:, t : t + 1], conv, ssm)
        assert states[0] is conv and states[1] is ssm, "in place"
        torch.testing.assert_close(y, expected[:, t : t + 1], rtol=1e-4, atol=1e-5)
    # A prompt at once, then token by token, as mamba_ssm's generation does.
    params = SimpleNamespace(seqlen_offset=0, key_value_memory_dict={})
    parts = [ours(x[:, :6], inference_params=params)]
    for t in range(6, 9):
        params.seqlen_offset = t
        parts.append(ours(x[:, t : t + 1], inference_params=params))
    torch.testing.assert_close(torch.cat(parts, 1), expected, rtol=1e-4, atol=1e-5)
    kept = params.key_value_memory_dict[7]
    torch.testing.assert_close(kept[0][..., 1:], conv[..., 1:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(kept[1], ssm, rtol=1e-4, atol=1e-5)
    # The states follow what the parameters become.
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.mul_(1.01)
    ours.double()
    conv, ssm = ours.allocate_inference_cache(3, max_seqlen=9)
    y = torch.cat([ours.step(x[:, t : t + 1].double(), conv, ssm)[0] for t in range(9)], 1)
    torch.testing.assert_close(y, ours(x.double()))


def step_sizes(mamba):
    return torch.nn.functional.softplus(mamba.get_parameter("dt_proj.bias").detach())


def test_initial_values_are_what_was_asked_for():
    torch.manual_seed(0)
    mamba = Mamba(256, dt_min=0.01, dt_max=0.02, dt_scale=0.5, d_state=4)
    dt = step_sizes(mamba)
    assert 0.0099 < dt.min() < 0.0105 and 0.0195 < dt.max() < 0.0201
    assert abs(dt.log().mean() - math.log(0.01 * 0.02) / 2) < 0.03, "log-uniform"
    bound = 0.5 / math.sqrt(16)
    weight = mamba.get_parameter("dt_proj.weight")
    assert 0.98 * bound < weight.abs().max() <= bound and abs(weight.mean()) < 0.02 * bound
    constant = Mamba(32, dt_init="constant", dt_scale=3.0, dt_init_floor=0.05, dt_max=0.06)
    assert (constant.get_parameter("dt_proj.weight") == 3.0 / math.sqrt(2)).all()
    assert 0.0499 < step_sizes(constant).min() < 0.0501
    expected = torch.arange(1.0, 5.0).log().expand(512, 4)
    torch.testing.assert_close(mamba.get_parameter("A_log").detach(), expected)
    assert (mamba.get_parameter("D") == 1).all()
    assert mamba.get_parameter("A_log")._no_weight_decay
    assert {p for p, t in mamba.named_parameters() if getattr(t, "_no_weight_decay", False)} == {
        "A_log", "D"
    }  # fmt: skip


def test_attributes_and_copies():
    mamba = Mamba(24, d_state=3, expand=3, bias=True, layer_idx=2, dtype=torch.float64)
    assert (mamba.d_inner, mamba.dt_rank, mamba.layer_idx) == (72, 2, 2)
    assert all(p.dtype == torch.float64 for p in mamba.parameters())
    block = MambaBlock(24, "attention", n_head=3, channel_mixing="none").eval()
    x = torch.randn(2, 5, 24)
    for twin in (copy.deepcopy(mamba), pickle.loads(pickle.dumps(mamba))):
        assert torch.equal(twin(x.double()), mamba(x.double())) and twin.layer_idx == 2
        assert twin.get_parameter("A_log")._no_weight_decay
    for twin in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        assert torch.equal(twin(x), block(x)) and not twin.training


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": torch.bfloat16}, r"dtype torch\.bfloat16.*torch\.autocast"),
        ({"dt_rank": "full"}, "dt_rank must be a number or 'auto', got 'full'"),
        ({"dt_min": 0.2}, "dt_min and dt_max must be 0 < dt_min <= dt_max, got 0.2 and 0.1"),
        ({"dt_max": math.inf}, "dt_max"),
        ({"dt_init": "zeros"}, "dt_init 'zeros' is unknown; choose random or constant"),
        ({"dt_scale": 0.0}, "dt_scale must be above 0"),
        ({"dt_init_floor": -1.0}, "must be above 0, got -1"),
        ({"d_state": 0}, "d_state must be at least 1"),
    ],
)
def test_what_cannot_be_honoured_is_refused(options, message):
    with pytest.raises(dmamba.ConfigError, match=message):
        Mamba(16, **options)


def test_sizes_in_python_are_checked_too():
    with pytest.raises(dmamba.ConfigError, match="d_conv must be at least 1, got 0"):
        GraphMamba(8, d_conv=0)


def test_wrong_calls_are_named():
    mamba, x = Mamba(8), torch.randn(2, 4, 8)
    with pytest.raises(TypeError, match="second argument is inference_params; give masks by name"):
        mamba(x, torch.ones(2, 4, dtype=torch.bool))
    params = SimpleNamespace(seqlen_offset=0, key_value_memory_dict={})
    with pytest.raises(dmamba.ConfigError, match="give the constructor a layer_idx"):
        mamba(x, params)
    with pytest.raises(dmamba.ConfigError, match="without mask"):
        mamba(x, params, mask=torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(dmamba.ConfigError, match=r"states in torch\.float16 are not kept"):
        mamba.allocate_inference_cache(2, 8, dtype=torch.float16)
    conv, ssm = mamba.allocate_inference_cache(2, 8)
    with pytest.raises(RuntimeError, match=r"must be \(batch, 1, d_model\), one token, got \[2, 4"):
        mamba.step(x, conv, ssm)
    with pytest.raises(RuntimeError, match=r"ssm_state must be \[2, 16, 16\], got \[2, 16, 15\]"):
        mamba.step(x[:, :1], conv, ssm[..., 1:])
    assert (conv == 0).all() and (ssm == 0).all(), "untouched"


MIXERS = [
    ("mamba", {}),
    ("mamba", {"channel_mixing": "none", "d_state": 3, "expand": 1}),
    ("mamba", {"channel_mixing": "ssm", "channel_group": 4}),
    ("attention", {"n_head": 4}),
    ("convolution", {"conv_window": 3}),
    ("s4d", {"d_state": 4}),
]


@pytest.mark.parametrize(("mixer", "options"), MIXERS)
def test_a_block_is_a_layer_of_the_model(mixer, options):
    """Stacked blocks with a checkpoint's parameters do what the model does."""
    torch.manual_seed(0)
    model = DMamba(5, 2, **{"d_model": 16, "n_layer": 2, "context_length": 5, "max_timestep": 9,
                            "token_mixer": mixer} | options).eval()  # fmt: skip
    batch = (torch.randn(3, 5, 5), torch.randn(3, 5, 2), torch.randn(3, 5, 1),
             torch.arange(5).repeat(3, 1), torch.ones(3, 5, dtype=torch.bool))  # fmt: skip
    batch[-1][0, :2] = False
    captured = model.capture(*batch, what=["tokens", "final", "input"])
    blocks = torch.nn.ModuleList(MambaBlock(16, mixer, **options) for _ in range(2)).eval()
    blocks.load_state_dict(
        {
            name.removeprefix("transformer.h."): tensor
            for name, tensor in model.state_dict().items()
            if name.startswith("transformer.h.")
        }
    )
    mask = batch[-1].repeat_interleave(3, 1)
    x = captured["tokens"]
    for i, block in enumerate(blocks):
        torch.testing.assert_close(captured[f"layers.{i}.input"], x)
        x = block(x, mask)
    norm = model.get_submodule("transformer.ln_f")
    final = torch.nn.functional.layer_norm(x, (16,), norm.weight, norm.bias)
    torch.testing.assert_close(final, captured["final"])


def test_steps_of_a_block_are_the_whole():
    torch.manual_seed(1)
    block = MambaBlock(16, d_state=3, channel_mixing="ssm", channel_group=4).eval()
    x = torch.randn(2, 9, 16)
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[1, :3] = False
    starts = torch.zeros(2, 9, dtype=torch.bool)
    starts[0, 5] = True
    state, parts = block.initial_state(2), []
    for part in (slice(0, 3), slice(3, 4), slice(4, 9)):
        y, state = block.step(x[:, part], state, mask[:, part], starts[:, part])
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), block(x, mask, starts), rtol=1e-4, atol=1e-5)
    with pytest.raises(dmamba.ConfigError, match="attention layers have no step here"):
        MambaBlock(16, "attention").initial_state(2)


@pytest.mark.parametrize("mixer", ["mamba", "attention", "convolution"])
def test_packed_segments_are_separate_ones(mixer):
    torch.manual_seed(1)
    block = MambaBlock(12, mixer, rtg="none", past_actions="none").eval()
    x = torch.randn(2, 9, 12)
    starts = torch.zeros(2, 9, dtype=torch.bool)
    starts[:, 4] = True
    apart = torch.cat([block(x[:, :4]), block(x[:, 4:])], 1)
    torch.testing.assert_close(block(x, segment_starts=starts), apart)
    with pytest.raises(dmamba.ConfigError, match="s4d: packed segments"):
        MambaBlock(12, "s4d")(x, segment_starts=starts)


def test_blocks_train_in_a_model_of_ones_own():
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(3, 16), MambaBlock(16, dropout=0.0), MambaBlock(16, "attention", n_head=2),
        torch.nn.Linear(16, 1),
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    x = torch.randn(4, 12, 3)
    target = x.cumsum(1)[..., :1]
    losses = []
    for _ in range(60):
        loss = (model(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_a_blocks_options_are_checked():
    with pytest.raises(TypeError, match="no option 'n_layer'; there are channel_mixing"):
        MambaBlock(16, n_layer=2)
    with pytest.raises(dmamba.ConfigError, match=r"mumba.*mamba, attention"):
        MambaBlock(16, "mumba")
    with pytest.raises(dmamba.ConfigError, match="at least 1, got 0"):
        MambaBlock(0)
    for options, message in (
        ({"token_mixer": "attention", "n_head": 3}, "3 heads do not divide model.d_model, 16"),
        ({"token_mixer": "s4d", "d_state": 3}, "must be even for s4d"),
        ({"token_mixer": "convolution", "conv_window": 0}, "conv_window must be at least 1"),
        ({"channel_mixing": "conv"}, "'conv' is unknown; choose one of mlp, ssm, none"),
        ({"channel_mixing": "ssm", "channel_group": 5}, "5 channels a step do not divide"),
    ):
        with pytest.raises(dmamba.ConfigError, match=message):
            MambaBlock(16, **options)
