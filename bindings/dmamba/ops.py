"""The operators of the Mamba block, as differentiable PyTorch functions.

Activations are (batch, L, channels) with contiguous channels; storage is float32, bfloat16
(arithmetic in float32) or, on the CPU, float64. Parameters (A, D, biases, weights) and states are
float32, or float64 with float64 activations. The same inputs give the same bits with any number of
threads, and on a GPU on any stream.

Extremes: a result is finite where float64 arithmetic gives one that float32 can hold and where the
products of three inputs stay below 1e38; step sizes down to denormal numbers and up to 1e3, A down
to -1e4 and softplus anywhere are among what the tests draw. An input that is infinite or NaN shows
in what depends on it: of u, delta and z their own channel from that token on, of B and C all
channels of the sequence, and the gradients of parameters, which are sums. It never reaches another
sequence of the batch, nor what comes after the next segment's start (on a GPU the backward pass
keeps sequences apart, not the segments within one); where the mask is False it is as if it were not
there, but for that token's own output.

Wrong shapes, dtypes or devices raise RuntimeError naming the op and the argument.

Under ``torch.autocast`` activations may be of mixed types: they are cast to its dtype (float32
where that is float16), parameters to float32. A state that is updated in place must be float32.

All are torch ops (``torch.ops.dmamba.*``): autograd, ``torch.compile`` and C++ see the same thing.
"""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from dmamba import _C  # noqa: F401  (registers the ops)

_ops = torch.ops.dmamba


@overload
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    mask: Tensor | None = None,
    segment_starts: Tensor | None = None,
    initial_state: Tensor | None = None,
    return_last_state: Literal[False] = False,
) -> Tensor: ...
@overload
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    mask: Tensor | None = None,
    segment_starts: Tensor | None = None,
    initial_state: Tensor | None = None,
    *,
    return_last_state: Literal[True],
) -> tuple[Tensor, Tensor]: ...
@overload
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    mask: Tensor | None = None,
    segment_starts: Tensor | None = None,
    initial_state: Tensor | None = None,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]: ...
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    mask: Tensor | None = None,
    segment_starts: Tensor | None = None,
    initial_state: Tensor | None = None,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Runs the selective scan of Mamba (Gu and Dao, arXiv 2312.00752, section 3.2).

    ``dt = softplus(delta + delta_bias)``; ``h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t``;
    ``y_t = (C_t h_t + D u_t) SiLU(z_t)``.

    Args:
        u: Inputs, (batch, L, d_inner).
        delta: Step sizes before bias and softplus, (batch, L, d_inner).
        A: Negative decay rates, (d_inner, d_state).
        B: Input projections, (batch, L, d_state).
        C: Output projections, (batch, L, d_state).
        D: Skip connection, (d_inner,).
        z: Gate, (batch, L, d_inner).
        delta_bias: Added to delta, (d_inner,).
        delta_softplus: Whether delta passes through softplus.
        mask: (batch, L) bool; False sets the step size to 0 after the softplus, so that the token
            leaves the state as it was.
        segment_starts: (batch, L) bool; True restarts the state from zero before the token.
        initial_state: State before the first token, (batch, d_inner, d_state), any strides.
        return_last_state: Whether to return the state after the last token as well.

    Returns:
        Outputs (batch, L, d_inner); with ``return_last_state`` also the state
        (batch, d_inner, d_state). On CUDA and with ``z`` the backward pass reads the outputs (up to
        128 states): they must not be changed in place before it.
    """
    out, last_state, _ = _ops.selective_scan(
        u, delta, A, B, C, D, z, delta_bias, delta_softplus, mask, segment_starts, initial_state
    )
    return (out, last_state) if return_last_state else out


def selective_state_update(
    state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> Tensor:
    """Takes one token of the scan: O(1) in the sequence's length. No gradient.

    Args:
        state: (batch, d_inner, d_state), updated in place, any strides.
        u: Inputs, (batch, d_inner).
        delta: Step sizes before bias and softplus, (batch, d_inner).
        A: (d_inner, d_state).
        B: (batch, d_state).
        C: (batch, d_state).
        D: (d_inner,).
        z: Gate, (batch, d_inner).
        delta_bias: (d_inner,).
        delta_softplus: Whether delta passes through softplus.

    Returns:
        Outputs (batch, d_inner).
    """
    return _ops.selective_state_update(state, u, delta, A, B, C, D, z, delta_bias, delta_softplus)


@overload
def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    silu: bool = True,
    mask: Tensor | None = None,
    segment_starts: Tensor | None = None,
    initial_state: Tensor | None = None,
    return_last_state: Literal[False] = False,
) -> Tensor: ...
@overload
def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    silu: bool = True,
    mask: Tensor | None = None,
    segment_starts: Tensor | None = None,
    initial_state: Tensor | None = None,
    *,
    return_last_state: Literal[True],
) -> tuple[Tensor, Tensor]: ...
@overload
def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    silu: bool = True,
    mask: Tensor | None = None,
    segment_starts: Tensor | None = None,
    initial_state: Tensor | None = None,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]: ...
def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    silu: bool = True,
    mask: Tensor | None = None,
    segment_starts: Tensor | None = None,
    initial_state: Tensor | None = None,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Convolves each channel causally, then applies SiLU.

    Args:
        x: Inputs, (batch, L, d_inner).
        weight: (d_inner, width).
        bias: (d_inner,).
        silu: Whether SiLU follows.
        mask: (batch, L) bool; False counts the token's input as zero.
        segment_starts: (batch, L) bool; True hides the tokens before from this one and later ones.
        initial_state: The inputs before x, oldest first, (batch, d_inner, width - 1).
        return_last_state: Whether to return the last width - 1 inputs as well.

    Returns:
        Outputs (batch, L, d_inner); with ``return_last_state`` also (batch, d_inner, width - 1).
    """
    out, last_state = _ops.causal_conv1d(x, weight, bias, silu, mask, segment_starts, initial_state)
    return (out, last_state) if return_last_state else out


def causal_conv1d_update(
    state: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None, silu: bool = True
) -> Tensor:
    """Takes one token of the convolution. No gradient.

    Args:
        state: The last width - 1 inputs, (batch, d_inner, width - 1), updated in place.
        x: Inputs, (batch, d_inner).
        weight: (d_inner, width).
        bias: (d_inner,).
        silu: Whether SiLU follows.

    Returns:
        Outputs (batch, d_inner).
    """
    return _ops.causal_conv1d_update(state, x, weight, bias, silu)
