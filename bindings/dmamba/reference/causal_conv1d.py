"""The causal depthwise convolution in plain PyTorch.

Shapes as in :func:`dmamba.ops.causal_conv1d`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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
    """Convolves token by token over a window of the last ``width`` inputs."""
    batch, length, d_inner = x.shape
    width = weight.shape[1]
    if mask is not None:
        x = x * mask.unsqueeze(-1)
    window = x.new_zeros(batch, d_inner, width - 1) if initial_state is None else initial_state
    outputs = []
    for t in range(length):
        if segment_starts is not None:
            window = window * (~segment_starts[:, t, None, None])
        window = torch.cat([window, x[:, t, :, None]], dim=2)
        y = (window * weight).sum(-1)
        outputs.append(y if bias is None else y + bias)
        window = window[:, :, 1:]
    out = torch.stack(outputs, 1)
    if silu:
        out = F.silu(out)
    return (out, window) if return_last_state else out
