"""The CUDA scan against the CPU's in float64: sizes, options, strides, plans, steps."""

import pytest
import torch
from support import (
    DTYPES,
    compare_with_cpu,
    error,
    needs_cuda,
    on_gpu,
    poison,
    scan_inputs,
)

from dmamba import _C, ops

pytestmark = needs_cuda

SHAPES = [
    (2, 1, 1, 16),
    (3, 2, 37, 16),
    (2, 31, 256, 16),
    (2, 60, 256, 16),
    (3, 60, 1000, 16),
    (1, 129, 37, 1),
    (1, 129, 37, 8),
    (2, 60, 37, 20),
    (1, 60, 37, 32),
    (1, 129, 37, 64),
    (2, 31, 37, 128),
    (1, 60, 37, 130),
    (1, 31, 5, 300),
    (2, 1134, 37, 16),
    (1, 1134, 256, 8),
    (1, 5000, 37, 16),
]


@pytest.fixture
def forced_plan():
    """Sets the plan of the test; the rule returns after it."""
    yield _C.set_cuda_scan_plan
    _C.set_cuda_scan_plan()


@DTYPES
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_against_fp64(shape, dtype):
    tensors, flags = scan_inputs(*shape, dtype)
    compare_with_cpu(ops.selective_scan, tensors, flags, delta_softplus=True)


@DTYPES
@pytest.mark.parametrize(
    "absent",
    [
        ("mask", "segment_starts", "initial_state"),
        ("D", "z", "delta_bias", "mask", "segment_starts", "initial_state"),
        ("D",),
        ("z",),
        ("delta_bias",),
        ("mask",),
        ("segment_starts",),
        ("initial_state",),
    ],
    ids="-".join,
)
@pytest.mark.parametrize("shape", [(2, 40, 37, 16), (1, 40, 9, 130)], ids=["narrow", "wide"])
def test_absent_options(shape, absent, dtype):
    tensors, flags = scan_inputs(*shape, dtype)
    tensors = {name: t for name, t in tensors.items() if name not in absent}
    flags = {name: t for name, t in flags.items() if name not in absent}
    # Without softplus a step size may be negative, and exp(dt A) grows: keep it small.
    if "delta_bias" in absent:
        tensors["delta"] = tensors["delta"].abs() * 0.1
    softplus = "delta_bias" not in absent
    compare_with_cpu(ops.selective_scan, tensors, flags, delta_softplus=softplus)


@DTYPES
@pytest.mark.parametrize("flags", [True, False], ids=["flags", "plain"])
@pytest.mark.parametrize("shape", [(2, 200, 256, 16), (2, 45, 37, 20), (2, 40, 9, 130)], ids=str)
def test_gates_that_are_shut(shape, flags, dtype):
    """Where z is zero the output does not tell its gradient."""
    tensors, marks = scan_inputs(*shape, dtype)
    generator = torch.Generator().manual_seed(3)
    tensors["z"][:, 16:24] = 0.0
    for value in (0.0, 2.0**-24, -(2.0**-26), 2.0**-130, -60.0, -1e30):
        tensors["z"][torch.rand(tensors["z"].shape, generator=generator) < 0.01] = value
    compare_with_cpu(ops.selective_scan, tensors, marks if flags else {}, delta_softplus=True)


def test_a_loss_on_the_last_state_alone():
    """What comes into the output is zero then, gates that are shut included."""
    tensors, _ = scan_inputs(2, 20, 128, 16)
    tensors["z"][:, ::3] = 0.0
    t = on_gpu(tensors, gradients=True)
    _, last = ops.selective_scan(**t, delta_softplus=True, return_last_state=True)
    gradients = dict(zip(t, torch.autograd.grad(last.sum(), list(t.values())), strict=True))
    assert not gradients["z"].any() and not gradients["C"].any()
    assert all(g.isfinite().all() for g in gradients.values())


def test_an_output_that_was_changed_is_refused():
    tensors, _ = scan_inputs(2, 9, 6, 4)
    out = ops.selective_scan(**on_gpu(tensors, gradients=True), delta_softplus=True)
    out.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@DTYPES
@pytest.mark.parametrize("chunk", [16, 64])
@pytest.mark.parametrize("shape", [(2, 200, 37, 16), (1, 300, 70, 20), (1, 129, 9, 128)], ids=str)
def test_forced_plans(forced_plan, shape, chunk, dtype):
    forced_plan(chunk_length=chunk)
    tensors, flags = scan_inputs(*shape, dtype)
    compare_with_cpu(ops.selective_scan, tensors, flags, delta_softplus=True)


@pytest.mark.parametrize("length", [1134, 5000])
def test_one_long_sequence(length):
    """No segment's start forgets the past: what goes from chunk to chunk matters to the end."""
    tensors, _ = scan_inputs(1, length, 37, 16)
    tensors["A"] *= 0.1
    del tensors["z"]
    compare_with_cpu(ops.selective_scan, tensors, {}, delta_softplus=True)


@pytest.mark.parametrize("masked", [True, False], ids=["all", "none"])
def test_flags_of_whole_sequences(masked):
    tensors, _ = scan_inputs(2, 50, 37, 16)
    ends = torch.zeros(2, 50, dtype=torch.bool)
    ends[0, 0] = ends[1, -1] = True
    flags = {"mask": torch.full((2, 50), not masked), "segment_starts": ends}
    compare_with_cpu(ops.selective_scan, tensors, flags, delta_softplus=True)


def strided(tensors):
    """The same values as a Mamba block has them: slices of wider tensors, states by channel."""
    copies = on_gpu(tensors)
    d_inner, d_state = copies["A"].shape
    wide = torch.cat([copies["u"], copies["z"]], -1)
    projected = torch.cat([copies["delta"][..., :3], copies["B"], copies["C"]], -1)
    views = dict(copies)
    views["u"], views["z"] = wide.chunk(2, -1)
    views["B"], views["C"] = projected[..., 3:].split(d_state, -1)
    views["A"] = copies["A"].t().contiguous().t()
    views["delta"] = copies["delta"].transpose(0, 1).contiguous().transpose(0, 1)
    states = copies["initial_state"]
    views["initial_state"] = states.transpose(1, 2).contiguous().transpose(1, 2)
    return views


def gaps(tensors):
    """The same values with a gap after each element, the last axis included."""
    return {name: torch.stack([t.cuda()] * 2, -1)[..., 0] for name, t in tensors.items()}


def unaligned(tensors):
    """The same values, one element off any alignment."""
    views = {}
    for name, t in tensors.items():
        flat = torch.empty(t.numel() + 1, dtype=t.dtype, device="cuda")[1:]
        views[name] = flat.view(t.shape).copy_(t)
    return views


@DTYPES
@pytest.mark.parametrize("layout", [strided, gaps, unaligned])
@pytest.mark.parametrize("shape", [(2, 45, 37, 16), (2, 45, 64, 20)], ids=["odd", "even"])
def test_layouts(layout, shape, dtype):
    tensors, flags = scan_inputs(*shape, dtype)
    views = {name: v.requires_grad_() for name, v in layout(tensors).items()}
    compare_with_cpu(ops.selective_scan, tensors, flags, views, delta_softplus=True)


@DTYPES
@pytest.mark.parametrize("shape", [(3, 11, 37, 16), (2, 5, 9, 130)], ids=["narrow", "wide"])
def test_step_by_step_equals_the_whole(shape, dtype):
    tensors, _ = scan_inputs(*shape, dtype)
    t = on_gpu(tensors)
    whole, last = ops.selective_scan(**t, delta_softplus=True, return_last_state=True)
    # Channels contiguous, as the recurrent policy keeps it.
    state = t["initial_state"].transpose(1, 2).contiguous().transpose(1, 2)
    address = state.data_ptr()
    for i in range(shape[1]):
        poison()
        y = ops.selective_state_update(
            state, t["u"][:, i], t["delta"][:, i], t["A"], t["B"][:, i], t["C"][:, i], t["D"],
            t["z"][:, i], t["delta_bias"], delta_softplus=True,
        )  # fmt: skip
        limit = 1e-2 if dtype == torch.bfloat16 else 5e-6
        assert error(y, whole[:, i].cpu().double()) <= limit
    assert state.data_ptr() == address
    assert error(state, last.cpu().double()) <= 5e-6


@pytest.mark.parametrize("shape", [(0, 5, 6, 4), (2, 5, 0, 4), (0, 5, 6, 130)])
def test_empty(shape):
    tensors, flags = scan_inputs(*shape)
    t = on_gpu(tensors, gradients=True)
    out = ops.selective_scan(**t, **on_gpu(flags), delta_softplus=True)
    assert out.shape == shape[:3]
    for name, gradient in zip(t, torch.autograd.grad(out.sum(), list(t.values())), strict=True):
        assert gradient.shape == t[name].shape and not gradient.any()


@pytest.mark.parametrize("delta", [1e-30, 1e-3, 1e3])
@pytest.mark.parametrize("decay", [-1e4, -1.0, -1e-8])
def test_extreme_values_stay_finite(delta, decay):
    tensors, _ = scan_inputs(1, 90, 33, 16)
    t = on_gpu({n: tensors[n] for n in ("u", "delta", "A", "B", "C", "D", "z")}, gradients=True)
    with torch.no_grad():
        t["delta"].fill_(delta)
        t["A"].fill_(decay)
        t["z"][:, ::2] = -1e4
    out = ops.selective_scan(**t)
    assert out.isfinite().all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(out.sum(), list(t.values())))
