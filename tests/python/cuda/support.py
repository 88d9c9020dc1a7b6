"""What the CUDA tests share: why they may be skipped, inputs, poison, the comparison."""

import sys
from pathlib import Path

import pytest
import torch

from dmamba import _build_info, ops

sys.path.append(str(Path(__file__).parents[1]))
from replay_games import write_recording  # noqa: E402, F401  (the helpers of the other tests)

if _build_info.cuda_reason:
    _missing = f"dmamba has no CUDA ops: {_build_info.cuda_reason}"
elif not torch.cuda.is_available():
    _missing = "torch finds no usable GPU"
else:
    _missing = ""
needs_cuda = pytest.mark.skipif(bool(_missing), reason=_missing)

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


def tolerance(dtype, length):
    """The largest max|x - ref| / max|ref| that a result may have."""
    if dtype == torch.bfloat16:
        return 1e-2
    return 2e-6 if length <= 256 else 1e-5


def scan_inputs(batch, length, d_inner, d_state, dtype=torch.float32, seed=0):
    """Every tensor of a scan on the CPU, rounded to its storage type, and the flags."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape, dtype=dtype):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    parameter = torch.float32
    tensors = {
        "u": normal(batch, length, d_inner),
        "delta": normal(batch, length, d_inner),
        "A": -torch.exp(normal(d_inner, d_state, dtype=parameter)),
        "B": normal(batch, length, d_state),
        "C": normal(batch, length, d_state),
        "D": normal(d_inner, dtype=parameter),
        "z": normal(batch, length, d_inner),
        "delta_bias": normal(d_inner, dtype=parameter),
        "initial_state": normal(batch, d_inner, d_state, dtype=parameter),
    }
    flags = {
        "mask": torch.rand(batch, length, generator=generator) > 0.2,
        "segment_starts": torch.rand(batch, length, generator=generator) < 0.1,
    }
    return tensors, flags


def conv_inputs(batch, length, d_inner, width, dtype=torch.float32):
    """Every tensor of a convolution on the CPU, and the flags."""
    tensors, flags = scan_inputs(batch, length, d_inner, width, dtype)
    generator = torch.Generator().manual_seed(1)
    return {
        "x": tensors["u"],
        "weight": tensors["A"],
        "bias": tensors["D"],
        "initial_state": torch.randn(batch, d_inner, width - 1, generator=generator),
    }, flags


def on_gpu(tensors, gradients=False):
    """Copies on the GPU, leaves of autograd where asked."""
    return {name: t.cuda().requires_grad_(gradients) for name, t in tensors.items()}


def poison():
    """Fills what the caching allocator will hand out next with NaN.

    A kernel that leaves a part of its result unwritten, or reads scratch that it has not written,
    then shows it.
    """
    blocks = [
        torch.full((size // 4,), float("nan"), device="cuda")
        for size in (512, 4096, 65536, 1 << 19, 2 << 20, 8 << 20, 32 << 20)
        for _ in range(12)
    ]
    del blocks


def error(value, expected):
    """max|value - expected| / max|expected|; NaN where value has one."""
    expected = expected.detach()
    difference = (value.detach().cpu().double() - expected).abs().max()
    return (difference / expected.abs().max().clamp_min(1e-30)).item()


def run(op, inputs, flags, weights, **options):
    """Outputs, last state and the gradients of all inputs, by name."""
    out, last = op(**inputs, **flags, **options, return_last_state=True)
    weights = [
        w.to(device=t.device, dtype=t.dtype) for w, t in zip(weights, (out, last), strict=True)
    ]
    gradients = torch.autograd.grad((out, last), list(inputs.values()), weights)
    named = {f"d{name}": g for name, g in zip(inputs, gradients, strict=True)}
    return {"out": out, "last_state": last} | named


def compare_with_cpu(op, tensors, flags, inputs=None, **options):
    """Compares everything an op gives on the GPU with the CPU's op in float64.

    Args:
        op: Of ``dmamba.ops``.
        tensors: On the CPU, rounded to their storage types: both sides compute from these.
        flags: Mask and segment starts, on the CPU.
        inputs: The same values on the GPU, of other strides, say; default: plain copies.
        **options: For the op.
    """
    first = next(iter(tensors.values()))
    generator = torch.Generator().manual_seed(2)
    sizes = list(first.shape), list(last_state_shape(op, tensors))
    weights = [torch.randn(size, generator=generator).to(first.dtype) for size in sizes]
    weights[1] = weights[1].float()
    exact = {name: t.double().requires_grad_() for name, t in tensors.items()}
    expected = run(op, exact, flags, weights, **options)
    inputs = on_gpu(tensors, gradients=True) if inputs is None else inputs
    gpu_flags = on_gpu(flags)
    poison()
    got = run(op, inputs, gpu_flags, weights, **options)
    limit = tolerance(first.dtype, first.shape[1])
    errors = {n: error(got[n], expected[n]) for n in expected if expected[n].numel() > 0}
    assert all(e <= limit for e in errors.values()), errors
    return got


def last_state_shape(op, tensors):
    """(batch, d_inner, d_state) of a scan, (batch, d_inner, width - 1) of a convolution."""
    batch, _, d_inner = next(iter(tensors.values())).shape
    if op is ops.selective_scan:
        return batch, d_inner, tensors["A"].shape[1]
    return batch, d_inner, tensors["weight"].shape[1] - 1
