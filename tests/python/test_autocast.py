"""The ops under torch.autocast: activations in its dtype, parameters and states in float32."""

import pytest
import torch
from test_ops import conv_inputs, scan_inputs

from dmamba import ops

ACTIVATIONS = ("u", "delta", "B", "C", "z", "x")
PARAMETERS = ("A", "D", "delta_bias", "initial_state", "weight", "bias")


def mixed(tensors, low=("u", "C", "D", "x", "bias")):
    """Some tensors in bfloat16, activations and parameters both, as leaves."""
    return {
        name: (t.detach().bfloat16() if name in low else t.detach()).requires_grad_()
        for name, t in tensors.items()
    }


def rounded(tensors):
    """What autocast has to make of them."""
    return {
        name: t.detach().to(torch.bfloat16 if name in ACTIVATIONS else torch.float32)
        for name, t in tensors.items()
    }


def autocast(dtype=torch.bfloat16):
    return torch.autocast("cpu", dtype=dtype)


CASES = [
    (ops.selective_scan, lambda: scan_inputs(2, 31, 33, 5), {"delta_softplus": True}),
    (ops.causal_conv1d, lambda: conv_inputs(2, 31, 33, 4), {}),
]


@pytest.mark.parametrize(("op", "make", "options"), CASES)
def test_mixed_storage_is_cast(op, make, options):
    tensors, flags = make()
    tensors = mixed(tensors)
    with pytest.raises(RuntimeError, match="must be"):
        op(**tensors, **flags, **options)
    with autocast():
        out, state = op(**tensors, **flags, **options, return_last_state=True)
    assert out.dtype == torch.bfloat16 and state.dtype == torch.float32
    expected = op(**rounded(tensors), **flags, **options, return_last_state=True)
    assert torch.equal(out, expected[0]) and torch.equal(state, expected[1])
    (out.float().sum() + state.sum()).backward()
    twins = {name: t.requires_grad_() for name, t in rounded(tensors).items()}
    out, state = op(**twins, **flags, **options, return_last_state=True)
    (out.float().sum() + state.sum()).backward()
    for name, tensor in tensors.items():
        assert tensor.grad.dtype == tensor.dtype
        assert torch.equal(tensor.grad, twins[name].grad.to(tensor.dtype)), name


def test_steps_keep_the_state_in_float32():
    tensors, _ = scan_inputs(3, 1, 17, 4)
    tensors = {n: t.detach() for n, t in mixed(tensors).items()}
    state = tensors.pop("initial_state")
    token = {n: t[:, 0] if n in ACTIVATIONS else t for n, t in tensors.items()}
    expected_state = state.clone()
    expected = ops.selective_state_update(expected_state, **rounded(token), delta_softplus=True)
    window, expected_window = torch.randn(2, 3, 17, 3).unbind()
    expected_window.copy_(window)
    weight, bias, x = torch.randn(17, 4), torch.randn(17).bfloat16(), torch.randn(3, 17)
    convolved = ops.causal_conv1d_update(expected_window, x.bfloat16(), weight, bias.float())
    with autocast():
        out = ops.selective_state_update(state, **token, delta_softplus=True)
        y = ops.causal_conv1d_update(window, x, weight, bias)
    assert torch.equal(out, expected) and torch.equal(state, expected_state)
    assert torch.equal(y, convolved) and torch.equal(window, expected_window)
    with autocast(), pytest.raises(RuntimeError, match="initial_state must be Float"):
        ops.causal_conv1d_update(window.bfloat16(), x, weight, bias)


@pytest.mark.parametrize(("op", "make", "options"), CASES)
def test_float64_is_left_alone_and_float16_becomes_float32(op, make, options):
    tensors, flags = make()
    wide = {name: t.detach().double() for name, t in tensors.items()}
    with autocast():
        assert torch.equal(op(**wide, **flags, **options), op(**wide, **flags, **options))
        assert op(**wide, **flags, **options).dtype == torch.float64
    half = {n: t.detach().half() if n in ACTIVATIONS else t for n, t in tensors.items()}
    with autocast(torch.float16):
        out = op(**half, **flags, **options)
    assert out.dtype == torch.float32
    single = {n: t.float() for n, t in half.items()}
    assert torch.equal(out, op(**single, **flags, **options))


def test_compiles_into_one_graph():
    scan, flags = scan_inputs(2, 12, 16, 4)
    conv, _ = conv_inputs(2, 12, 16, 4)
    scan, conv = mixed(scan), mixed(conv)

    def layer(scan, conv):
        with autocast():
            u = ops.causal_conv1d(**conv, **flags)
            return ops.selective_scan(**{**scan, "u": u}, **flags, delta_softplus=True)

    leaves = [t for n, t in (scan | conv).items() if n != "u"]
    expected = layer(scan, conv)
    gradients = torch.autograd.grad(expected.float().sum(), leaves, allow_unused=True)
    out = torch.compile(layer, fullgraph=True, backend="aot_eager")(scan, conv)
    assert out.dtype == torch.bfloat16 and torch.equal(out, expected)
    compiled = torch.autograd.grad(out.float().sum(), leaves, allow_unused=True)
    for a, b in zip(gradients, compiled, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)
