"""The ops that write into tensors of the caller: strides, in place, threads, errors."""

import pytest
import torch
from test_ops import capability, conv_inputs, positional, scan_inputs  # noqa: F401
from torch.library import opcheck

ops = torch.ops.dmamba
DTYPES = [torch.float32, torch.bfloat16, torch.float64]


def scan_arguments(shape, dtype=torch.float32, every=4):
    """Arguments of selective_scan_backward, all options in use."""
    tensors, flags = scan_inputs(*shape, dtype)
    args = positional({name: tensor.detach() for name, tensor in tensors.items()}, flags)
    out, last, kept = ops.selective_scan(*args, every)
    return (torch.randn_like(out), torch.randn_like(last), *args, kept, every, out)


def conv_arguments(shape, dtype=torch.float32):
    """Arguments of causal_conv1d_backward, all options in use."""
    tensors, flags = conv_inputs(*shape, dtype)
    t = {name: tensor.detach() for name, tensor in tensors.items()}
    args = (t["x"], t["weight"], t["bias"], True, flags["mask"], flags["segment_starts"])
    out, last = ops.causal_conv1d(*args, t["initial_state"])
    return (torch.randn_like(out), torch.randn_like(last), *args, t["initial_state"])


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16", "fp64"])
@pytest.mark.parametrize("shape", [(2, 1, 1, 16), (3, 9, 37, 5), (1, 70, 130, 16)])
def test_parts_of_larger_tensors_receive_the_gradients(shape, dtype, capability):  # noqa: F811
    batch, length, d_inner, n = shape
    arguments = scan_arguments(shape, dtype)
    du, ddelta, dA, dB, dC, dD, dz, dbias, dinitial = ops.selective_scan_backward(*arguments)
    pair = torch.full((batch, length, 2 * d_inner + 3), 7.0, dtype=dtype)
    triple = torch.full((length, batch, 4 + 2 * n), 7.0, dtype=dtype).transpose(0, 1)
    outs = [pair[..., :d_inner], torch.empty_like(du), triple[..., 4 : 4 + n],
            triple[..., 4 + n :], pair[..., d_inner : 2 * d_inner]]  # fmt: skip
    rest = ops.selective_scan_backward_out(*arguments, *outs)
    for got, expected in zip(
        (*outs, *rest), (du, ddelta, dB, dC, dz, dA, dD, dbias, dinitial), strict=True
    ):
        assert torch.equal(got, expected)
    assert (pair[..., 2 * d_inner :] == 7).all() and (triple[..., :4] == 7).all()

    arguments = conv_arguments((batch, length, d_inner, 4), dtype)
    dx, *expected = ops.causal_conv1d_backward(*arguments)
    pair.fill_(7.0)
    rest = ops.causal_conv1d_backward_out(*arguments, pair[..., 3 : 3 + d_inner])
    assert torch.equal(pair[..., 3 : 3 + d_inner], dx)
    assert all(torch.equal(a, b) for a, b in zip(rest, expected, strict=True))
    assert (pair[..., :3] == 7).all() and (pair[..., 3 + d_inner :] == 7).all()


def test_opcheck():
    arguments = scan_arguments((2, 5, 6, 4), every=2)
    u, B = arguments[2], arguments[5]
    outs = [torch.zeros_like(t) for t in (u, u, B, B, u)]
    opcheck(ops.selective_scan_backward_out.default, (*arguments, *outs))
    arguments = conv_arguments((2, 5, 6, 4))
    opcheck(ops.causal_conv1d_backward_out.default, (*arguments, torch.zeros_like(arguments[2])))
    x = torch.randn(5, 7)
    opcheck(ops.bias_gelu_.default, (x.clone(), torch.randn(7)))
    opcheck(ops.multiply_sum_.default, (x.clone(), torch.randn(5, 7)))


@pytest.mark.parametrize(
    ("index", "change", "message"),
    [
        (0, lambda t: t[:, 1:], r"du must be \[2, 5, 6\] as its input is, got \[2, 4, 6\]"),
        (1, lambda t: t.double(), "ddelta must be Float as its input is, got Double"),
        (2, lambda t: t.transpose(1, 2).contiguous().transpose(1, 2), "dB must have a contiguous"),
        (4, lambda t: None, "dz must be given exactly where z is"),
    ],
)
def test_bad_outputs_are_named(index, change, message):
    arguments = scan_arguments((2, 5, 6, 4))
    u, B = arguments[2], arguments[5]
    outs = [torch.zeros_like(t) for t in (u, u, B, B, u)]
    outs[index] = change(outs[index])
    with pytest.raises(RuntimeError, match="selective_scan_backward: " + message):
        ops.selective_scan_backward_out(*arguments, *outs)
    conv = conv_arguments((2, 5, 6, 4))
    with pytest.raises(RuntimeError, match="causal_conv1d_backward: dx must be"):
        ops.causal_conv1d_backward_out(*conv, torch.zeros(2, 5, 7))


@pytest.mark.parametrize(
    ("dtype", "tolerance"), zip(DTYPES, (2e-6, 1e-2, 1e-14), strict=True), ids=["32", "16", "64"]
)
@pytest.mark.parametrize("shape", [(1, 1), (31, 15), (32, 64), (70, 129), (0, 5)])
def test_bias_gelu_and_multiply_sum(shape, dtype, tolerance, capability):  # noqa: F811
    generator = torch.Generator().manual_seed(2)
    parameter = torch.float64 if dtype == torch.float64 else torch.float32
    x = (3 * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)
    bias = torch.randn(shape[1], generator=generator, dtype=torch.float64).to(parameter)
    exact = (x.double() + bias.double()).requires_grad_()
    value = torch.nn.functional.gelu(exact)
    (slope,) = torch.autograd.grad(value.sum(), exact)
    y = ops.bias_gelu_(x, bias)
    torch.testing.assert_close(y.double(), value.detach(), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(x.double(), slope, rtol=tolerance, atol=tolerance)

    dy = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    product = dy.double() * x.double()
    total = ops.multiply_sum_(dy, x)
    assert total.dtype == parameter
    torch.testing.assert_close(dy.double(), product, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(
        total.double(), product.sum(0), rtol=tolerance, atol=max(tolerance, 1e-6)
    )


def test_sums_have_the_same_bits_for_any_number_of_threads(capability):  # noqa: F811
    threads = torch.get_num_threads()
    slope = torch.randn(1000, 70, generator=torch.Generator().manual_seed(3))
    totals = []
    try:
        for n in (1, 2, 3, 7):
            torch.set_num_threads(n)
            totals.append(ops.multiply_sum_(slope.clone(), slope))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(totals[0], other) for other in totals[1:])


def test_elementwise_errors_name_op_and_value():
    with pytest.raises(RuntimeError, match=r"bias_gelu_: bias must be \(channels,\) = \[3\] Float"):
        ops.bias_gelu_(torch.zeros(2, 3), torch.zeros(2))
    with pytest.raises(RuntimeError, match=r"bias_gelu_: x must be \(rows, channels\), contiguous"):
        ops.bias_gelu_(torch.zeros(3, 2).t(), torch.zeros(3))
    with pytest.raises(RuntimeError, match=r"multiply_sum_: dy must be \[3, 3\]"):
        ops.multiply_sum_(torch.zeros(2, 3), torch.zeros(3, 3))


def test_bias_gelu_at_the_ends():
    ends = torch.tensor([[torch.inf, 50.0, 0.0, -50.0, -torch.inf]])
    slope = ends.clone()
    y = torch.ops.dmamba.bias_gelu_(slope, torch.zeros(5))
    assert torch.equal(y, torch.tensor([[torch.inf, 50.0, 0.0, 0.0, 0.0]]))
    assert torch.equal(slope, torch.tensor([[1.0, 1.0, 0.5, 0.0, 0.0]]))
