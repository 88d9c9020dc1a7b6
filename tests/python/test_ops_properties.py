"""Random shapes, strides, types and extreme values: the ops against float64, and what stays apart.

    DMAMBA_EXAMPLES=500 python -m pytest tests/python/test_ops_properties.py --hypothesis-seed=SEED

draws other examples than the fixed ones of every change, and more of them.
"""

import contextlib
import math

import torch
from hypothesis import given
from hypothesis import strategies as st
from op_borders import check_convolution_isolation, check_scan_isolation
from op_properties import (
    Draw,
    check_convolution,
    check_convolution_updates,
    check_elementwise,
    check_scan,
    check_updates,
    convolutions,
    kinds,
    scans,
    seeds,
)

from dmamba import _C, ops

capabilities = st.sampled_from(_C.cpu_capabilities())
special = st.sampled_from([math.nan, math.inf, -math.inf])


@contextlib.contextmanager
def using(capability):
    before = _C.cpu_capability()
    _C.set_cpu_capability(capability)
    try:
        yield
    finally:
        _C.set_cpu_capability(before)


@given(scans(), capabilities)
def test_scan(example, capability):
    with using(capability):
        check_scan(example)


@given(convolutions(), capabilities)
def test_convolution(example, capability):
    with using(capability):
        check_convolution(example)


@given(convolutions(), capabilities)
def test_convolution_updates(example, capability):
    with using(capability):
        check_convolution_updates(example)


@given(scans(), capabilities)
def test_updates(example, capability):
    with using(capability):
        check_updates(example)


@given(scans(), capabilities, st.sampled_from(["u", "delta", "B", "C"]), special, seeds)
def test_what_is_not_finite_stays_in_its_sequence(example, capability, name, value, seed):
    with using(capability):
        check_scan_isolation(example, name, value, seed)


@given(convolutions(), capabilities, special, seeds)
def test_what_is_not_finite_stays_in_its_window(example, capability, value, seed):
    with using(capability):
        check_convolution_isolation(example, value, seed)


@given(
    seeds, kinds, st.sampled_from([torch.float32, torch.bfloat16, torch.float64]), capabilities
)  # fmt: skip
def test_elementwise(seed, kind, dtype, capability):
    with using(capability):
        check_elementwise(seed, kind, dtype)


def test_what_the_mask_hides_does_not_reach_the_sums():
    make = Draw(3, torch.float32)
    u, delta = make.values("ordinary", 2, 2, 9, 20).float()
    B, C = make.values("ordinary", 2, 2, 9, 16).float()
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[1, 4] = mask[0, 2] = False
    A, bias = -torch.rand(20, 16), torch.zeros(20)
    leaves = [A.requires_grad_(), bias.requires_grad_()]

    def gradients():
        arguments = {"delta_bias": bias, "delta_softplus": True, "mask": mask}
        out = ops.selective_scan(u, delta, A, B, C, **arguments)
        return torch.autograd.grad(out[mask].sum(), leaves)

    clean = gradients()
    u[1, 4, 7], B[0, 2, 3] = math.nan, math.inf
    assert all(torch.equal(a, b) for a, b in zip(clean, gradients(), strict=True))
