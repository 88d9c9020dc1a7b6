"""The CUDA convolution, GELU and dropout against the CPU's."""

import pytest
import torch
from support import DTYPES, compare_with_cpu, conv_inputs, error, needs_cuda, on_gpu, poison

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
    values = torch.linspace(-12, 12, count + offset).to(dtype)[offset:]
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


@DTYPES
@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.999])
@pytest.mark.parametrize("count", [1, 63, 64, 1000, 131_072, 3_000_001])
def test_dropout_is_the_cpus_bit_for_bit(count, p, dtype):
    x = torch.randn(count, generator=torch.Generator().manual_seed(0)).to(dtype)
    for key in (0, 3, -1, 2**40 + 5):
        poison()
        got = torch.ops.dmamba.dropout(x.cuda(), p, key)
        assert torch.equal(got.cpu(), torch.ops.dmamba.dropout(x, p, key))


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
