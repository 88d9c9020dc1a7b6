"""Runs every CUDA op once, small and awkward, for compute-sanitizer; see scripts/test_gpu.sh.

Sizes are of no power of two, plans of one and of several chunks, inputs with and without options
and off any alignment. What the results are is the tests' business.
"""

import itertools

import torch

from dmamba import _C, ops


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Random numbers on the GPU that start one element off the allocation, as a leaf."""
    count = torch.Size(shape).numel()
    values = torch.randn(count + 1).to(dtype).cuda()[1:].view(shape)
    return values.requires_grad_()


def scan(batch: int, length: int, d_inner: int, d_state: int, dtype: torch.dtype) -> None:
    """One scan forward and backward with everything, one with nothing, one step."""
    u, delta, z = (normal(batch, length, d_inner, dtype=dtype) for _ in range(3))
    B, C = (normal(batch, length, d_state, dtype=dtype) for _ in range(2))
    A = (-torch.rand(d_inner, d_state)).cuda().requires_grad_()
    D, delta_bias = normal(d_inner), normal(d_inner)
    state = normal(batch, d_inner, d_state)
    flags = {
        "mask": (torch.rand(batch, length) > 0.2).cuda(),
        "segment_starts": (torch.rand(batch, length) < 0.1).cuda(),
    }
    inputs = (u, delta, A, B, C, D, z, delta_bias)
    out, last = ops.selective_scan(
        *inputs, delta_softplus=True, **flags, initial_state=state, return_last_state=True
    )
    torch.autograd.grad(out.float().sum() + last.sum(), (*inputs, state))
    bare = inputs[:5]
    torch.autograd.grad(ops.selective_scan(*bare, delta_softplus=True).float().sum(), bare)
    with torch.no_grad():
        first = (u[:, 0], delta[:, 0], A, B[:, 0], C[:, 0], D, z[:, 0], delta_bias)
        ops.selective_state_update(state.detach(), *first, delta_softplus=True)


def conv(batch: int, length: int, d_inner: int, width: int, dtype: torch.dtype) -> None:
    """One convolution forward and backward, one step."""
    x = normal(batch, length, d_inner, dtype=dtype)
    weight, bias = normal(d_inner, width), normal(d_inner)
    window = normal(batch, d_inner, width - 1)
    starts = (torch.rand(batch, length) < 0.1).cuda()
    out, last = ops.causal_conv1d(
        x, weight, bias, segment_starts=starts, initial_state=window, return_last_state=True
    )
    torch.autograd.grad(out.float().sum() + last.sum(), (x, weight, bias, window))
    with torch.no_grad():
        ops.causal_conv1d_update(window.detach(), x[:, 0], weight, bias)


def elementwise(count: int, dtype: torch.dtype) -> None:
    """GELU and dropout forward and backward."""
    x = normal(count, dtype=dtype)
    y = torch.ops.dmamba.dropout(torch.ops.dmamba.gelu(x), 0.1, 3)
    torch.autograd.grad(y, x, torch.ones_like(y))


def channel_mixer(rows: int, channels: int, dtype: torch.dtype) -> None:
    """GELU with its bias in place, the product with its slope."""
    x, dy = (normal(rows, channels, dtype=dtype).detach() for _ in range(2))
    torch.ops.dmamba.bias_gelu_(x, normal(channels).detach())
    torch.ops.dmamba.multiply_sum_(dy, x)
    # A copy of its own is aligned.
    slope = dy.clone()
    torch.ops.dmamba.bias_gelu_(slope, normal(channels).detach().clone())
    torch.ops.dmamba.multiply_sum_(x.clone(), slope)


def main() -> None:
    """Runs all of it."""
    torch.manual_seed(0)
    chunks = (0, 16, 64)
    for dtype, chunk in itertools.product((torch.float32, torch.bfloat16), chunks):
        _C.set_cuda_scan_plan(chunk)
        for shape in ((2, 1, 5, 16), (2, 45, 37, 16), (1, 100, 9, 20), (1, 40, 3, 130)):
            scan(*shape, dtype)
    for dtype in (torch.float32, torch.bfloat16):
        for shape in ((2, 1, 5, 4), (2, 45, 37, 4), (1, 100, 9, 8)):
            conv(*shape, dtype)
        for count in (1, 1000, 4099):
            elementwise(count, dtype)
        for rows, channels in ((1, 1), (37, 36), (67, 264)):
            channel_mixer(rows, channels, dtype)
    torch.cuda.synchronize()
    print("every op ran")


if __name__ == "__main__":
    main()
