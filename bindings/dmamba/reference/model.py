"""Decision Mamba in plain PyTorch (T. Ota, arXiv 2403.19925): what a program without kernels does.

The names of the parameters are those of :class:`dmamba.nn.DMamba`, so that one loads the other's
state_dict. It knows three tokens, ``mamba`` layers and the channel mixers ``mlp`` and ``none``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmamba._C import ModelConfig
from dmamba.reference.selective_scan import selective_scan


class Mamba(nn.Module):
    """The Mamba block (Gu and Dao, arXiv 2312.00752); parameters as :class:`dmamba.nn.Mamba`'s."""

    def __init__(
        self, d_model: int, d_state: int = 16, d_conv: int = 4, expand: int = 2, dt_rank: int = 0
    ) -> None:
        super().__init__()
        d_inner, self.dt_rank = expand * d_model, dt_rank or math.ceil(d_model / 16)
        self.d_state = d_state
        self.in_proj = nn.Linear(d_model, 2 * d_inner, bias=False)
        self.conv1d = nn.Conv1d(d_inner, d_inner, d_conv, groups=d_inner, padding=d_conv - 1)
        self.x_proj = nn.Linear(d_inner, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, d_inner)
        self.A_log = nn.Parameter(torch.arange(1.0, d_state + 1).log().repeat(d_inner, 1))
        self.D = nn.Parameter(torch.ones(d_inner))
        self.out_proj = nn.Linear(d_inner, d_model, bias=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mixes tokens: (batch, L, d_model) -> (batch, L, d_model).

        Args:
            x: Tokens, (batch, L, d_model).
            mask: (batch, L) bool, False for padding.
        """
        inner, z = self.in_proj(x).chunk(2, dim=-1)
        if mask is not None:
            inner = inner * mask.unsqueeze(-1)
        u = self.conv1d(inner.transpose(1, 2))[..., : x.shape[1]]
        u = F.silu(u).transpose(1, 2)
        sizes = [self.dt_rank, self.d_state, self.d_state]
        low, B, C = self.x_proj(u).split(sizes, dim=-1)
        delta, A = F.linear(low, self.dt_proj.weight), -torch.exp(self.A_log)
        y = selective_scan(u, delta, A, B, C, self.D, z, self.dt_proj.bias, True, mask)
        assert isinstance(y, Tensor)
        return self.out_proj(y)


class _Layer(nn.Module):
    def __init__(self, config: ModelConfig, mixer: nn.Module) -> None:
        super().__init__()
        d = config.d_model
        self.norm_mamba, self.mamba = nn.LayerNorm(d), mixer
        self.has_channels = config.channel_mixing == "mlp"
        if self.has_channels:
            self.ln_2 = nn.LayerNorm(d)
            self.mlp_channels = nn.Sequential(
                nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d), nn.Dropout(config.dropout)
            )

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.mamba(self.norm_mamba(x), mask)
        return x + self.mlp_channels(self.ln_2(x)) if self.has_channels else x


def _mamba(config: ModelConfig) -> nn.Module:
    return Mamba(config.d_model, config.d_state, config.d_conv, config.expand, config.dt_rank)


class DMamba(nn.Module):
    """Decision Mamba; inputs and output as :meth:`dmamba.nn.DMamba.forward`'s.

    Args:
        state_dim: Components of a state.
        act_dim: Components of an action.
        config: Of the model.
        mixer: Makes a layer's token mixer, which is called with tokens (batch, L, d_model) and a
            mask (batch, L) or None.
    """

    def __init__(
        self,
        state_dim: int,
        act_dim: int,
        config: ModelConfig,
        mixer: Callable[[ModelConfig], nn.Module] = _mamba,
    ) -> None:
        super().__init__()
        d = config.d_model
        self.embed_timestep = nn.Embedding(config.max_timestep, d)
        self.embed_return, self.embed_state = nn.Linear(1, d), nn.Linear(state_dim, d)
        self.embed_action, self.embed_ln = nn.Linear(act_dim, d), nn.LayerNorm(d)
        self.embedding_dropout = nn.Dropout(config.embedding_dropout)
        layers = nn.ModuleList(_Layer(config, mixer(config)) for _ in range(config.n_layer))
        self.transformer = nn.ModuleDict({"h": layers, "ln_f": nn.LayerNorm(d)})
        self.predict_action = nn.Sequential(nn.Linear(d, act_dim), nn.Tanh())

    def forward(
        self,
        states: Tensor,
        actions: Tensor,
        returns_to_go: Tensor,
        timesteps: Tensor,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Actions (batch, K, act_dim), each from what came before it."""
        time = self.embed_timestep(timesteps)
        tokens = [
            self.embed_return(returns_to_go) + time,
            self.embed_state(states) + time,
            self.embed_action(actions) + time,
        ]
        x = self.embedding_dropout(self.embed_ln(torch.stack(tokens, 2).flatten(1, 2)))
        if mask is not None:
            mask = mask.repeat_interleave(3, dim=1)
        layers = self.transformer["h"]
        assert isinstance(layers, nn.ModuleList)
        for layer in layers:
            x = layer(x, mask)
        return self.predict_action(self.transformer["ln_f"](x)[:, 1::3])
