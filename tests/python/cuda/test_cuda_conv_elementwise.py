"""The CUDA convolution and the elementwise ops of the channel mixer against the CPU's."""

import pytest
import torch
from support import (
    DTYPES,
    compare_with_cpu,
    conv_inputs,
    error,
    needs_cuda,
    on_gpu,
    poison,
    tolerance,
)

from dmamba import ops

pytestmark = needs_cuda

SHAPES = [
    (2, 1, 1, 4),
    (3, 2, 37, 4),
    (2, 31, 256, 4),
    (3, 60, 1000, 4),
    (1, 129, 37, 1),
    (1, 129, 37, 2),
    (2, 60, 40, 8),
    (2, 1134, 37, 3),
    (1, 5000, 256, 4),
]


@DTYPES
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_conv_against_fp64(shape, dtype):
    tensors, flags = conv_inputs(*shape, dtype)
    compare_with_cpu(ops.causal_conv1d, tensors, flags)


@DTYPES
@pytest.mark.parametrize(
    "absent", ["bias", "mask", "segment_starts", "initial_state", "all"], ids=str
)
@pytest.mark.parametrize("silu", [True, False])
def test_conv_absent_options(absent, silu, dtype):
    tensors, flags = conv_inputs(2, 40, 37, 4, dtype)
    gone = ("bias", "mask", "segment_starts", "initial_state") if absent == "all" else (absent,)
    tensors = {name: t for name, t in tensors.items() if name not in gone}
    flags = {name: t for name, t in flags.items() if name not in gone}
    compare_with_cpu(ops.causal_conv1d, tensors, flags, silu=silu)


@DTYPES
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("d_inner", [37, 64])
def test_conv_strided(d_inner, offset, dtype):
    tensors, flags = conv_inputs(2, 45, d_inner, 4, dtype)
    copies = on_gpu(tensors)
    x = copies["x"]
    wide = torch.cat([x[..., :offset], x, x], -1)
    window = copies["initial_state"]
    views = {
        "x": wide[..., offset : offset + d_inner],
        "weight": copies["weight"].t().contiguous().t(),
        "bias": copies["bias"],
        "initial_state": window.transpose(1, 2).contiguous().transpose(1, 2),
    }
    views = {name: v.requires_grad_() for name, v in views.items()}
    compare_with_cpu(ops.causal_conv1d, tensors, flags, views)


# What a training step asks for: aligned rows, no states, at most a mask.
@DTYPES
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(
    "shape", [(3, 16, 64), (2, 33, 72), (5, 65, 256), (64, 60, 264), (600, 64, 64), (2, 300, 40)]
)
def test_conv_of_a_training_step(shape, masked, dtype):
    tensors, flags = conv_inputs(*shape, 4, dtype)
    del tensors["initial_state"]
    weights = torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(dtype)

    def run(inputs, mask):
        out = ops.causal_conv1d(**inputs, mask=mask)
        return out, *torch.autograd.grad(out, list(inputs.values()), weights.to(out))

    exact = {name: t.double().requires_grad_() for name, t in tensors.items()}
    expected = run(exact, flags["mask"] if masked else None)
    inputs, mask = on_gpu(tensors, gradients=True), flags["mask"].cuda() if masked else None
    poison()
    got = run(inputs, mask)
    # Sums over all tokens of float32 values in float32.
    limits = [tolerance(dtype, shape[1])] * 2 + [1e-2 if dtype == torch.bfloat16 else 1e-5] * 2
    for name, value, reference, limit in zip(
        ("out", "dx", "dweight", "dbias"), got, expected, limits, strict=True
    ):
        assert error(value, reference) <= limit, name
    assert all(torch.equal(*pair) for pair in zip(run(inputs, mask), got, strict=True))


@DTYPES
def test_conv_step_by_step_equals_the_whole(dtype):
    tensors, _ = conv_inputs(3, 11, 37, 4, dtype)
    c = on_gpu(tensors)
    whole, last = ops.causal_conv1d(**c, return_last_state=True)
    window = c["initial_state"].clone()
    for i in range(11):
        poison()
        y = ops.causal_conv1d_update(window, c["x"][:, i], c["weight"], c["bias"])
        assert error(y, whole[:, i].cpu().double()) <= (1e-2 if dtype == torch.bfloat16 else 1e-6)
    assert torch.equal(window, last)


@pytest.mark.parametrize("shape", [(0, 5, 6, 4), (2, 5, 0, 4)])
def test_conv_empty(shape):
    tensors, flags = conv_inputs(*shape)
    c = on_gpu(tensors, gradients=True)
    out = ops.causal_conv1d(**c, **on_gpu(flags))
    for name, gradient in zip(c, torch.autograd.grad(out.sum(), list(c.values())), strict=True):
        assert gradient.shape == c[name].shape and not gradient.any()


@DTYPES
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("count", [1, 7, 1000, 262_147])
def test_gelu(count, offset, dtype):
    # Below -6 the double-precision reference, 1 + erf, has no digits left.
    values = torch.linspace(-6, 12, count + offset).to(dtype)[offset:]
    exact = values.double().requires_grad_()
    expected = torch.nn.functional.gelu(exact)
    weight = torch.randn(count, generator=torch.Generator().manual_seed(0)).to(dtype)
    (expected_gradient,) = torch.autograd.grad(expected, exact, weight.double())
    # A view that starts `offset` elements into its memory: not aligned where that is 1.
    x = torch.empty(count + offset, dtype=dtype, device="cuda")[offset:].copy_(values)
    x.requires_grad_()
    poison()
    y = torch.ops.dmamba.gelu(x)
    (gradient,) = torch.autograd.grad(y, x, weight.cuda())
    limit = 1e-2 if dtype == torch.bfloat16 else 1e-6
    assert error(y, expected) <= limit and error(gradient, expected_gradient) <= limit


MATRICES = pytest.mark.parametrize("channels", [1, 36, 512])
ROWS = pytest.mark.parametrize("rows", [1, 37, 3840])


def matrix(rows, channels, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(rows, channels, generator=generator)).to(dtype)


def unaligned(values, offset):
    """A copy on the GPU that starts `offset` elements into its memory."""
    memory = torch.empty(values.numel() + offset, dtype=values.dtype, device="cuda")
    return memory[offset:].view(values.shape).copy_(values)


@DTYPES
@pytest.mark.parametrize("offset", [0, 1])
@MATRICES
@ROWS
def test_bias_gelu(rows, channels, offset, dtype):
    values, shift = matrix(rows, channels, dtype, 0), matrix(1, channels, torch.float32, 1)[0]
    slope = values.double()
    value = torch.ops.dmamba.bias_gelu_(slope, shift.double())
    x, bias = unaligned(values, offset), unaligned(shift, offset)
    poison()
    y = torch.ops.dmamba.bias_gelu_(x, bias)
    limit = 1e-2 if dtype == torch.bfloat16 else 2e-6
    torch.testing.assert_close(y.cpu().double(), value, rtol=limit, atol=limit)
    torch.testing.assert_close(x.cpu().double(), slope, rtol=limit, atol=limit)


@DTYPES
@pytest.mark.parametrize("channels", [1, 8])
def test_bias_gelu_of_large_and_of_no_numbers(channels, dtype):
    inf = float("inf")
    column = torch.tensor([inf, 1e30, 50.0, 0.0, -50.0, -1e30, -inf])
    x = column.to(dtype).repeat(channels, 1).t().contiguous().cuda()
    large = x[:3].clone()
    y = torch.ops.dmamba.bias_gelu_(x, torch.zeros(channels, device="cuda"))
    assert torch.equal(y[:3], large) and not y[3:].any()
    slope = torch.tensor([1.0, 1.0, 1.0, 0.5, 0.0, 0.0, 0.0]).to(dtype).cuda()
    assert torch.equal(x, slope.repeat(channels, 1).t())
    x = torch.full((2, channels), float("nan"), dtype=dtype, device="cuda")
    y = torch.ops.dmamba.bias_gelu_(x, torch.zeros(channels, device="cuda"))
    assert y.isnan().all() and x.isnan().all()


@DTYPES
@pytest.mark.parametrize("offset", [0, 1])
@MATRICES
@ROWS
def test_multiply_sum(rows, channels, offset, dtype):
    gradient, slope = (matrix(rows, channels, dtype, seed) for seed in (0, 1))
    product = gradient.double()
    total = torch.ops.dmamba.multiply_sum_(product, slope.double())
    dy, factor = unaligned(gradient, offset), unaligned(slope, offset)
    poison()
    got = torch.ops.dmamba.multiply_sum_(dy, factor)
    assert got.dtype == torch.float32 and got.shape == (channels,)
    limit = 1e-2 if dtype == torch.bfloat16 else 1e-6
    torch.testing.assert_close(dy.cpu().double(), product, rtol=limit, atol=limit)
    # Of products of about 9 that were not rounded to bf16: their sum is fp32's for both.
    torch.testing.assert_close(got.cpu().double(), total, rtol=1e-6, atol=1e-5 * rows**0.5)
    assert torch.equal(factor.cpu(), slope)


def test_multiply_sum_of_a_long_column():
    # Too many rows for blocks of the smallest stretch.
    gradient, slope = (matrix(40_001, 36, torch.float32, seed) for seed in (0, 1))
    product = gradient.double()
    total = torch.ops.dmamba.multiply_sum_(product, slope.double())
    dy = gradient.cuda()
    poison()
    got = torch.ops.dmamba.multiply_sum_(dy, slope.cuda())
    assert error(dy, product) <= 1e-6 and error(got, total) <= 2e-6


@DTYPES
@MATRICES
@ROWS
def test_bias_gelu_and_multiply_sum_give_the_same_bits(rows, channels, dtype):
    values, gradient = (matrix(rows, channels, dtype, seed).cuda() for seed in (0, 1))
    bias = matrix(1, channels, torch.float32, 2)[0].cuda()

    def run():
        slope, dx = values.clone(), gradient.clone()
        y = torch.ops.dmamba.bias_gelu_(slope, bias)
        return y, slope, torch.ops.dmamba.multiply_sum_(dx, slope), dx

    first = run()
    for _ in range(20):
        poison()
        assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))


@pytest.mark.parametrize("shape", [(0, 5), (3, 0)])
def test_bias_gelu_and_multiply_sum_empty(shape):
    x = torch.zeros(shape, device="cuda")
    poison()
    assert torch.ops.dmamba.bias_gelu_(x, torch.zeros(shape[1], device="cuda")).shape == shape
    total = torch.ops.dmamba.multiply_sum_(x, x.clone())
    assert total.shape == shape[1:] and not total.any()


def test_bad_input_of_bias_gelu_and_multiply_sum_is_named():
    ops_ = torch.ops.dmamba
    x = torch.zeros(2, 3, device="cuda")
    with pytest.raises(RuntimeError, match=r"bias_gelu_: bias must be \(channels,\) = \[3\] Float"):
        ops_.bias_gelu_(x, torch.zeros(2, device="cuda"))
    with pytest.raises(RuntimeError, match=r"bias_gelu_: bias must be \(channels,\) = \[3\] Float"):
        ops_.bias_gelu_(x, torch.zeros(3, device="cuda").bfloat16())
    with pytest.raises(RuntimeError, match="bias_gelu_: bias is on cpu, but x is on cuda"):
        ops_.bias_gelu_(x, torch.zeros(3))
    with pytest.raises(RuntimeError, match=r"bias_gelu_: x must be \(rows, channels\), contiguous"):
        ops_.bias_gelu_(x.t(), torch.zeros(2, device="cuda"))
    with pytest.raises(RuntimeError, match="bias_gelu_: x is float64, which the CUDA"):
        ops_.bias_gelu_(x.double(), torch.zeros(3, device="cuda").double())
    with pytest.raises(RuntimeError, match=r"multiply_sum_: dy must be \[3, 3\]"):
        ops_.multiply_sum_(x, torch.zeros(3, 3, device="cuda"))
    with pytest.raises(RuntimeError, match="multiply_sum_: dy is float64, which the CUDA"):
        ops_.multiply_sum_(x.double(), x.double())


@DTYPES
@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.999])
@pytest.mark.parametrize("count", [1, 63, 64, 1000, 131_072, 3_000_001])
def test_dropout_is_the_cpus_bit_for_bit(count, p, dtype):
    x = torch.randn(count, generator=torch.Generator().manual_seed(0)).to(dtype)
    for key in (0, 3, -1, 2**40 + 5):
        poison()
        got = torch.ops.dmamba.dropout(x.cuda(), p, key)
        assert torch.equal(got.cpu(), torch.ops.dmamba.dropout(x, p, key))


@DTYPES
def test_dropout_of_a_piece_has_the_masks_piece(dtype):
    x = torch.randn(100_001).to(dtype)
    whole = torch.ops.dmamba.dropout(x, 0.3, 9)
    for first in (64, 4096, 50_048):
        piece = torch.ops.dmamba.dropout(x[first:].cuda(), 0.3, 9, first)
        assert torch.equal(piece.cpu(), whole[first:])
    far = 2**40 + 192
    got = torch.ops.dmamba.dropout(x.cuda(), 0.3, 9, far)
    assert torch.equal(got.cpu(), torch.ops.dmamba.dropout(x, 0.3, 9, far))


def test_dropout_of_an_unaligned_tensor_and_its_gradient():
    x = torch.randn(1001)
    view = x.cuda()[1:].requires_grad_()
    expected = torch.ops.dmamba.dropout(x[1:], 0.3, 9)
    got = torch.ops.dmamba.dropout(view, 0.3, 9)
    assert torch.equal(got.detach().cpu(), expected)
    (gradient,) = torch.autograd.grad(got.sum(), view)
    ones = torch.ops.dmamba.dropout(torch.ones(1000), 0.3, 9)
    assert torch.equal(gradient.cpu(), ones)


@pytest.mark.parametrize(
    "op", [torch.ops.dmamba.gelu, lambda x: torch.ops.dmamba.dropout(x, 0.1, 1)]
)
def test_elementwise_empty(op):
    assert op(torch.empty(0, 3, device="cuda")).shape == (0, 3)
