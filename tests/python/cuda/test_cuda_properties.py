"""Random shapes, strides, types and extreme values on a GPU: the properties of tests/python."""

import math
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import needs_cuda, poison

sys.path.append(str(Path(__file__).parents[1]))
from op_borders import check_convolution_isolation, check_scan_isolation  # noqa: E402
from op_properties import (  # noqa: E402
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

pytestmark = needs_cuda
DTYPES = (torch.float32, torch.bfloat16)
special = st.sampled_from([math.nan, math.inf, -math.inf])


@given(scans(DTYPES))
def test_scan(example):
    poison()
    check_scan(example, "cuda")


@given(convolutions(DTYPES))
def test_convolution(example):
    poison()
    check_convolution(example, "cuda")


@given(convolutions(DTYPES))
def test_convolution_updates(example):
    poison()
    check_convolution_updates(example, "cuda")


@given(scans(DTYPES))
def test_updates(example):
    poison()
    check_updates(example, "cuda")


@given(scans(DTYPES), st.sampled_from(["u", "delta", "B", "C"]), special, seeds)
def test_what_is_not_finite_stays_in_its_sequence(example, name, value, seed):
    check_scan_isolation(example, name, value, seed, "cuda", segments_in_backward=False)


@given(convolutions(DTYPES), special, seeds)
def test_what_is_not_finite_stays_in_its_window(example, value, seed):
    check_convolution_isolation(example, value, seed, "cuda")


@given(seeds, kinds, st.sampled_from(DTYPES))
def test_elementwise(seed, kind, dtype):
    check_elementwise(seed, kind, dtype, "cuda")


@pytest.mark.parametrize("starts", [300, 2048, 4095])
def test_long_sequences_in_chunks_forget_what_is_not_finite(starts):
    """A sequence with few channels is walked in chunks; the state that a chunk enters with is lost
    at a segment's start, be it finite or not."""
    from dmamba import ops

    generator = torch.Generator().manual_seed(4)
    u, delta = torch.randn(2, 1, 4096, 16, generator=generator).cuda()
    B, C = torch.randn(2, 1, 4096, 16, generator=generator).cuda()
    A = -torch.rand(16, 16, generator=generator).cuda()
    marks = torch.zeros(1, 4096, dtype=torch.bool, device="cuda")
    marks[:, starts] = True

    def scan():
        return ops.selective_scan(u, delta, A, B, C, delta_softplus=True, segment_starts=marks)

    clean = scan()[:, starts:]
    u[0, 40, 3] = math.inf
    delta[0, 41, 5] = math.nan
    assert torch.equal(scan()[:, starts:], clean)
