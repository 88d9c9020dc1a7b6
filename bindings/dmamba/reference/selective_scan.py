"""The selective scan in plain PyTorch (Gu and Dao, arXiv 2312.00752, section 3.2).

Shapes as in :func:`dmamba.ops.selective_scan`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def _step_sizes(
    delta: Tensor, delta_bias: Tensor | None, delta_softplus: bool, mask: Tensor | None
) -> Tensor:
    dt = delta if delta_bias is None else delta + delta_bias
    if delta_softplus:
        dt = F.softplus(dt, threshold=40.0)  # torch's 20 is off by 2e-9 from there on
    return dt if mask is None else dt * mask.unsqueeze(-1)


def _finish(y: Tensor, u: Tensor, D: Tensor | None, z: Tensor | None) -> Tensor:
    if D is not None:
        y = y + D * u
    return y if z is None else y * F.silu(z)


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
    """Scans token by token, taking one token's exponentials at a time."""
    batch, length, d_inner = u.shape
    dt = _step_sizes(delta, delta_bias, delta_softplus, mask)
    h = u.new_zeros(batch, d_inner, A.shape[1]) if initial_state is None else initial_state
    outputs = []
    for t in range(length):
        if segment_starts is not None:
            h = h * (~segment_starts[:, t, None, None])
        decay = torch.exp(dt[:, t, :, None] * A)
        inputs = (dt[:, t] * u[:, t]).unsqueeze(-1) * B[:, t, None, :]
        h = torch.addcmul(inputs, decay, h)
        outputs.append((h @ C[:, t, :, None]).squeeze(-1))
    out = _finish(torch.stack(outputs, 1), u, D, z)
    return (out, h) if return_last_state else out


def selective_scan_materialized(
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
    """Scans after materialising exp(delta A) and delta B u for all tokens.

    This is how the reference function of mamba_ssm goes about it: (batch, L, d_inner, d_state)
    floats twice, which is what makes it slow.
    """
    dt = _step_sizes(delta, delta_bias, delta_softplus, None)
    decay = torch.exp(torch.einsum("bld,dn->bldn", dt, A))
    inputs = torch.einsum("bld,bln,bld->bldn", dt, B, u)
    h = u.new_zeros(u.shape[0], u.shape[2], A.shape[1])
    outputs = []
    for t in range(u.shape[1]):
        h = decay[:, t] * h + inputs[:, t]
        outputs.append(torch.einsum("bdn,bn->bd", h, C[:, t]))
    return _finish(torch.stack(outputs, 1), u, D, z)
