"""Convolution and products before the scan: one launch in bfloat16, beside float32."""

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


def run(layer, x, weights, autocast, **flags):
    """The output and every gradient of a weighted sum of it."""
    x = x.clone().requires_grad_()
    layer.zero_grad(set_to_none=True)
    poison()
    with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
        y = layer(x, **flags)
    (y.float() * weights).sum().backward()
    return {"y": y.detach().float(), "x": x.grad} | {n: p.grad for n, p in layer.named_parameters()}


def kernels(layer, x, part="projections"):
    with (
        profile(activities=[ProfilerActivity.CUDA]) as profiled,
        torch.autocast("cuda", torch.bfloat16),
    ):
        layer(x.requires_grad_()).float().sum().backward()
        torch.cuda.synchronize()
    return [event.name for event in profiled.events() if part in event.name]


# The last: widths that single products take.
@pytest.mark.parametrize(
    ("d_model", "d_state", "fused"),
    [(128, 16, True), (256, 16, True), (256, 8, True), (128, 8, True), (96, 16, False)],
)
@pytest.mark.parametrize(("batch", "L"), [(1, 7), (3, 11), (5, 129)])
def test_gradients_are_those_of_float32_to_rounding(d_model, d_state, fused, batch, L):
    torch.manual_seed(0)
    layer = dmamba.nn.Mamba(d_model, d_state).cuda()
    x, weights = torch.randn(2, batch, L, d_model, device="cuda")
    expected, got = (run(layer, x, weights, autocast) for autocast in (False, True))
    for name, value in expected.items():
        error = (got[name] - value).norm() / value.norm().clamp_min(1e-12)
        assert error <= 5e-2, name  # NaN is wrong, too
    again = run(layer, x, weights, True)
    assert all(torch.equal(got[name], value) for name, value in again.items())
    assert len(kernels(layer, x)) == (2 if fused else 0)
    names = kernels(layer, x, "conv")
    assert names
    assert any("forward" in name for name in names) != fused


# Blocks of 32 tokens that begin in the midst of sequences, masked tokens and segments.
@pytest.mark.parametrize("given", ["mask", "segment_starts", "both"])
@pytest.mark.parametrize(("batch", "L"), [(40, 1), (40, 2), (5, 33), (64, 60)])
def test_flags_reach_the_convolution(batch, L, given):
    torch.manual_seed(0)
    layer = dmamba.nn.Mamba(128).cuda()
    x, weights = torch.randn(2, batch, L, 128, device="cuda")
    flags = {
        "mask": torch.rand(batch, L, device="cuda") > 0.3,
        "segment_starts": torch.rand(batch, L, device="cuda") < 0.2,
    }
    if given != "both":
        flags = {given: flags[given]}
    expected, got = (run(layer, x, weights, autocast, **flags) for autocast in (False, True))
    for name, value in expected.items():
        error = (got[name] - value).norm() / value.norm().clamp_min(1e-12)
        assert error <= 5e-2, name


def test_it_is_the_same_without_gradients_and_with_frozen_projections():
    torch.manual_seed(0)
    layer = dmamba.nn.Mamba(128).cuda()
    x, weights = torch.randn(2, 3, 11, 128, device="cuda")
    expected = run(layer, x, weights, True)
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        assert torch.equal(layer(x).float(), expected["y"])
    for name in ("x_proj.weight", "dt_proj.weight", "dt_proj.bias", "A_log", "D"):
        parameter = dict(layer.named_parameters())[name]
        parameter.requires_grad_(False)
        got = run(layer, x, weights, True)
        parameter.requires_grad_(True)
        assert got.pop(name) is None
        assert all(torch.equal(value, expected[other]) for other, value in got.items())


def test_long_batches_take_single_products():
    layer = dmamba.nn.Mamba(256).cuda()
    assert len(kernels(layer, torch.randn(64, 132, 256, device="cuda"))) == 2
    assert not kernels(layer, torch.randn(64, 133, 256, device="cuda"))


def test_long_batches_of_narrow_layers_do_not():
    torch.manual_seed(0)
    layer = dmamba.nn.Mamba(128).cuda()
    x, weights = torch.randn(2, 64, 300, 128, device="cuda")
    expected, got = (run(layer, x, weights, autocast) for autocast in (False, True))
    for name, value in expected.items():
        assert (got[name] - value).norm() / value.norm() <= 5e-2, name
    assert len(kernels(layer, x)) == 2
