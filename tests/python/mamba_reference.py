"""A Mamba block in plain PyTorch, from the equations, with mamba_ssm's names and shapes.

x, z = split(in_proj(h));  u = SiLU(conv(x));  dt, B, C = split(x_proj(u));
delta = softplus(dt_proj(dt));  h_t = exp(delta A) h_{t-1} + delta B u;  y = (C h + D u) SiLU(z)
(Gu and Dao, arXiv 2312.00752, sections 3.2 and 3.4.)
"""

import math

import torch
from torch import nn
from torch.nn import functional as F


class ReferenceMamba(nn.Module):
    """Keeps what it computed on the way in ``seen``."""

    def __init__(self, d_model, d_state=16, d_conv=4, expand=2, dt_rank="auto", conv_bias=True,
                 bias=False):  # fmt: skip
        super().__init__()
        d_inner = expand * d_model
        self.rank = math.ceil(d_model / 16) if dt_rank == "auto" else dt_rank
        self.d_state = d_state
        self.in_proj = nn.Linear(d_model, 2 * d_inner, bias=bias)
        self.conv1d = nn.Conv1d(d_inner, d_inner, d_conv, groups=d_inner, bias=conv_bias,
                                padding=d_conv - 1)  # fmt: skip
        self.x_proj = nn.Linear(d_inner, self.rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.rank, d_inner)
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, d_state + 1)).repeat(d_inner, 1))
        self.D = nn.Parameter(torch.ones(d_inner))
        self.out_proj = nn.Linear(d_inner, d_model, bias=bias)

    def forward(self, h, mask=None):
        batch, length, _ = h.shape
        real = torch.ones(batch, length, 1) if mask is None else mask[..., None].to(h.dtype)
        x, z = self.in_proj(h).chunk(2, -1)
        u = F.silu(self.conv1d((x * real).transpose(1, 2))[..., :length].transpose(1, 2))
        dt, B, C = self.x_proj(u).split([self.rank, self.d_state, self.d_state], -1)
        delta = F.softplus(self.dt_proj(dt)) * real
        A = -torch.exp(self.A_log)
        state, states = torch.zeros(batch, *A.shape), []
        for t in range(length):
            inputs = (delta[:, t] * u[:, t]).unsqueeze(-1) * B[:, t].unsqueeze(1)
            state = torch.exp(delta[:, t].unsqueeze(-1) * A) * state + inputs
            states.append(state)
        states = torch.stack(states, 1)
        y = (torch.einsum("bldn,bln->bld", states, C) + self.D * u) * F.silu(z)
        self.seen = {"x": x, "z": z, "u": u, "delta": delta, "A": A, "B": B, "C": C,
                     "states": states, "y": y}  # fmt: skip
        return self.out_proj(y)
