"""Convolution and products before the scan: one launch in bfloat16 and TF32, beside float32."""

import contextlib

import pytest
import torch
from support import needs_cuda, poison
from torch.profiler import ProfilerActivity, profile

import dmamba

pytestmark = [
    needs_cuda,
    pytest.mark.skipif(
        torch.cuda.is_available() and torch.cuda.get_device_capability()[0] not in (8, 9, 10),
        reason="the kernels are for cards of compute capability 8 to 10",
    ),
]


# Of a gradient's norm; what TF32 keeps is three bits more than bfloat16.
LIMITS = {"bf16": 5e-2, "tf32": 5e-3}


@contextlib.contextmanager
def products_in(precision):
    """bf16 by autocast, TF32 or float32 by torch's switch."""
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    try:
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False


def run(layer, x, weights, precision, backward=None, **flags):
    """The output and every gradient of a weighted sum of it. The backward pass is outside of
    autocast, as torch recommends; in TF32 if the forward pass is, or `backward` says so."""
    x = x.clone().requires_grad_()
    layer.zero_grad(set_to_none=True)
    poison()
    with products_in(precision):
        y = layer(x, **flags)
    with products_in(backward or ("tf32" if precision == "tf32" else "fp32")):
        (y.float() * weights).sum().backward()
    return {"y": y.detach().float(), "x": x.grad} | {n: p.grad for n, p in layer.named_parameters()}


def kernels(layer, x, precision="bf16", part="projections"):
    with profile(activities=[ProfilerActivity.CUDA]) as profiled, products_in(precision):
        layer(x.detach().clone().requires_grad_()).float().sum().backward()
        torch.cuda.synchronize()
    return [event.name for event in profiled.events() if part in event.name]


def check_close(got, expected, precision):
    for name, value in expected.items():
        error = (got[name] - value).norm() / value.norm().clamp_min(1e-12)
        assert error <= LIMITS[precision], name  # NaN is wrong, too


# Also widths and precisions that single products take.
@pytest.mark.parametrize(
    ("precision", "d_model", "d_state", "fused"),
    [
        ("bf16", 128, 16, True),
        ("bf16", 256, 16, True),
        ("bf16", 256, 8, True),
        ("bf16", 128, 8, True),
        ("bf16", 96, 16, False),
        ("tf32", 128, 16, True),
        ("tf32", 128, 8, True),
        ("tf32", 256, 16, False),
        ("fp32", 128, 16, False),
    ],
)
@pytest.mark.parametrize(("batch", "L"), [(1, 7), (3, 11), (5, 129)])
def test_gradients_are_those_of_float32_to_rounding(precision, d_model, d_state, fused, batch, L):
    torch.manual_seed(0)
    layer = dmamba.nn.Mamba(d_model, d_state).cuda()
    x, weights = torch.randn(2, batch, L, d_model, device="cuda")
    expected, got = (run(layer, x, weights, of) for of in ("fp32", precision))
    if precision != "fp32":
        check_close(got, expected, precision)
    again = run(layer, x, weights, precision)
    assert all(torch.equal(got[name], value) for name, value in again.items())
    assert len(kernels(layer, x, precision)) == (2 if fused else 0)
    names = kernels(layer, x, precision, "conv")
    assert names
    assert any("forward" in name for name in names) != fused


# Blocks of 32 tokens that begin in the midst of sequences, masked tokens and segments.
@pytest.mark.parametrize("precision", ["bf16", "tf32"])
@pytest.mark.parametrize("given", ["mask", "segment_starts", "both"])
@pytest.mark.parametrize(("batch", "L"), [(40, 1), (40, 2), (5, 33), (64, 60)])
def test_flags_reach_the_convolution(batch, L, given, precision):
    torch.manual_seed(0)
    layer = dmamba.nn.Mamba(128).cuda()
    x, weights = torch.randn(2, batch, L, 128, device="cuda")
    flags = {
        "mask": torch.rand(batch, L, device="cuda") > 0.3,
        "segment_starts": torch.rand(batch, L, device="cuda") < 0.2,
    }
    if given != "both":
        flags = {given: flags[given]}
    expected, got = (run(layer, x, weights, of, **flags) for of in ("fp32", precision))
    check_close(got, expected, precision)


def test_it_is_the_same_without_gradients_and_with_frozen_projections():
    torch.manual_seed(0)
    layer = dmamba.nn.Mamba(128).cuda()
    x, weights = torch.randn(2, 3, 11, 128, device="cuda")
    expected = run(layer, x, weights, "bf16")
    with torch.no_grad(), products_in("bf16"):
        assert torch.equal(layer(x).float(), expected["y"])
    for name in ("x_proj.weight", "dt_proj.weight", "dt_proj.bias", "A_log", "D"):
        parameter = dict(layer.named_parameters())[name]
        parameter.requires_grad_(False)
        got = run(layer, x, weights, "bf16")
        parameter.requires_grad_(True)
        assert got.pop(name) is None
        assert all(torch.equal(value, expected[other]) for other, value in got.items())


@pytest.mark.parametrize(("forward", "backward"), [("tf32", "fp32"), ("fp32", "tf32")])
def test_tf32_may_be_switched_between_the_passes(forward, backward):
    torch.manual_seed(0)
    layer = dmamba.nn.Mamba(128).cuda()
    x, weights = torch.randn(2, 5, 33, 128, device="cuda")
    got = run(layer, x, weights, forward, backward)
    check_close(got, run(layer, x, weights, "fp32"), "tf32")


def test_long_batches_take_single_products():
    layer = dmamba.nn.Mamba(256).cuda()
    assert len(kernels(layer, torch.randn(64, 132, 256, device="cuda"))) == 2
    assert not kernels(layer, torch.randn(64, 133, 256, device="cuda"))


def test_long_batches_of_narrow_layers_do_not():
    torch.manual_seed(0)
    layer = dmamba.nn.Mamba(128).cuda()
    x, weights = torch.randn(2, 64, 300, 128, device="cuda")
    expected = run(layer, x, weights, "fp32")
    for precision in LIMITS:
        check_close(run(layer, x, weights, precision), expected, precision)
        assert len(kernels(layer, x, precision)) == 2
