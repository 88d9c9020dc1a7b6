"""Token and channel mixers in Python over the registered operators.

Names of parameters and equations are those of the C++ modules in ``src/nn``. Where a forward pass
is given a ``seen``, intermediates go there (:mod:`dmamba.nn.captures`).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dmamba import ops
from dmamba._C import ConfigError, ModelConfig
from dmamba.nn.captures import Captures, Recorder

State = tuple[Tensor, Tensor]  # of a mamba mixer: inputs of the convolution, h


def initialize_step_sizes(
    projection: Any,
    dt_min: float = 0.001,
    dt_max: float = 0.1,
    dt_init: str = "random",
    dt_scale: float = 1.0,
    dt_init_floor: float = 1e-4,
) -> None:
    """Gives ``dt_proj`` the initial values of mamba_ssm's Mamba; see :class:`dmamba.nn.Mamba`.

    Args:
        projection: With weight (d_inner, dt_rank) and bias (d_inner,).
        dt_min: softplus(bias) is log-uniform from here ...
        dt_max: ... to here,
        dt_init: The weight is "random", uniform within +- dt_scale / sqrt(dt_rank), or "constant".
        dt_scale: See there.
        dt_init_floor: The least softplus(bias).

    Raises:
        ConfigError: An impossible range, an unknown dt_init.
    """
    if not (0.0 < dt_min <= dt_max < math.inf):
        raise ConfigError(
            f"Mamba: dt_min and dt_max must be 0 < dt_min <= dt_max, got {dt_min} and {dt_max}"
        )
    if not (dt_init_floor > 0.0 and dt_scale > 0.0):
        raise ConfigError(
            f"Mamba: dt_init_floor and dt_scale must be above 0, got {dt_init_floor} and {dt_scale}"
        )
    if dt_init not in ("random", "constant"):
        raise ConfigError(f"Mamba: dt_init '{dt_init}' is unknown; choose random or constant")
    weight, bias = projection.weight, projection.bias
    bound = dt_scale / math.sqrt(weight.shape[1])
    with torch.no_grad():
        if dt_init == "constant":
            weight.fill_(bound)
        else:
            weight.uniform_(-bound, bound)
        span = math.log(dt_max) - math.log(dt_min)
        dt = torch.exp(torch.rand_like(bias) * span + math.log(dt_min)).clamp_min(dt_init_floor)
        bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus


class GraphMamba(Captures, nn.Module):
    """The Mamba block in single operators; :class:`dmamba.nn.Mamba` is the one in C++.

    The same parameters under the same names. This one goes into ``torch.compile`` and
    ``torch.export``.

    Args:
        d_model: Channels of a token.
        d_state: State size of a channel.
        d_conv: Taps of the causal convolution.
        expand: Inner channels per channel of a token.
        dt_rank: Rank of the step-size projection; 0: ceil(d_model / 16).
        conv_bias: Whether the convolution has a bias.
        bias: Whether in_proj and out_proj have one.

    Raises:
        ConfigError: A size below 1.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int = 0,
        conv_bias: bool = True,
        bias: bool = False,
    ):
        super().__init__()
        rank = dt_rank or -(-d_model // 16)
        sizes = {"d_model": d_model, "d_state": d_state, "d_conv": d_conv, "expand": expand}
        for name, size in (sizes | {"dt_rank": rank}).items():
            if size < 1:
                raise ConfigError(f"Mamba: {name} must be at least 1, got {size}")
        d_inner = expand * d_model
        self.d_inner, self.d_state, self.dt_rank = d_inner, d_state, rank
        self.in_proj = nn.Linear(d_model, 2 * d_inner, bias=bias)
        self.conv1d = nn.Conv1d(d_inner, d_inner, d_conv, groups=d_inner, bias=conv_bias)
        self.x_proj = nn.Linear(d_inner, rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(rank, d_inner)
        initialize_step_sizes(self.dt_proj)
        rates = torch.arange(1.0, d_state + 1).log().repeat(d_inner, 1)
        self.A_log = nn.Parameter(rates)
        self.D = nn.Parameter(torch.ones(d_inner))
        self.out_proj = nn.Linear(d_inner, d_model, bias=bias)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        segment_starts: Tensor | None = None,
        seen: Recorder | None = None,
    ) -> Tensor:
        """(batch, L, d_model) -> the same; flags (batch, L) bool as of ``dmamba.nn.Mamba``."""
        return self.advance(x, mask, segment_starts, None, seen)[0]

    def initial_state(self, batch: int) -> State:
        """Zeros (batch, d_inner, d_conv - 1) and (batch, d_inner, d_state)."""
        width = self.conv1d.weight.shape[2] - 1
        zeros = self.D.detach().new_zeros
        return zeros(batch, self.d_inner, width), zeros(batch, self.d_inner, self.d_state)

    def advance(
        self,
        x: Tensor,
        mask: Tensor | None,
        segment_starts: Tensor | None,
        state: State | None,
        seen: Recorder | None = None,
    ) -> tuple[Tensor, State]:
        """The same from a state on; also returns the state after the last token."""
        flags: dict[str, Any] = {"mask": mask, "segment_starts": segment_starts}
        conv, ssm = (None, None) if state is None else state
        inputs, z = self.in_proj(x).chunk(2, dim=-1)
        weight = self.conv1d.weight.squeeze(1)
        u, conv = ops.causal_conv1d(
            inputs, weight, self.conv1d.bias, initial_state=conv, return_last_state=True, **flags
        )
        dt, B, C = self.x_proj(u).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        delta = functional.linear(dt, self.dt_proj.weight)  # its bias joins before the softplus
        A = -torch.exp(self.A_log)
        if seen is not None:
            self._leave(seen, inputs, z, u, delta, A, B, C, flags)
        y, ssm = ops.selective_scan(
            *(u, delta, A, B, C, self.D, z, self.dt_proj.bias),
            delta_softplus=True,
            initial_state=ssm,
            return_last_state=True,
            **flags,
        )
        if seen is not None:
            seen.add("y", y)
        return self.out_proj(y), (conv, ssm)

    def _leave(
        self,
        seen: Recorder,
        x: Tensor,
        z: Tensor,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        flags: dict[str, Tensor | None],
    ) -> None:
        """Leaves what the scan is about to do."""
        bias = self.dt_proj.bias
        steps = functional.softplus(delta.to(bias.dtype) + bias)
        if (mask := flags["mask"]) is not None:
            steps = steps.masked_fill(~mask.unsqueeze(2), 0.0)
        named = {"x": x, "z": z, "u": u, "delta": steps, "A": A, "B": B, "C": C}
        for name, tensor in named.items():
            seen.add(name, tensor)
        if not seen.wants("states"):
            return
        h, states = None, []
        for t in range(u.shape[1]):  # the scan's own kernel, one token at a time
            token = slice(t, t + 1)
            _, h = ops.selective_scan(
                *(u[:, token], delta[:, token], A, B[:, token], C[:, token]),
                delta_bias=bias,
                delta_softplus=True,
                initial_state=h,
                return_last_state=True,
                **{name: None if f is None else f[:, token] for name, f in flags.items()},
            )
            states.append(h)
        seen.add("states", torch.stack(states, 1))


class GraphAttention(nn.Module):
    """Causal self-attention, the token mixer of the Decision Transformer (arXiv 2106.01345)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        if config.n_head < 1 or config.d_model % config.n_head:
            raise ConfigError(
                f"model.n_head: {config.n_head} heads do not divide model.d_model, {config.d_model}"
            )
        self.n_head = config.n_head
        self.c_attn = nn.Linear(config.d_model, 3 * config.d_model)
        self.c_proj = nn.Linear(config.d_model, config.d_model)
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        segment_starts: Tensor | None = None,
        seen: Recorder | None = None,
    ) -> Tensor:
        """(batch, L, d_model) -> the same; a masked token is seen by itself alone."""
        token = torch.arange(x.shape[1], device=x.device)
        visible = (token <= token.unsqueeze(1)).unsqueeze(0)
        if mask is not None:
            visible = visible & mask.unsqueeze(1)
        if segment_starts is not None:
            segment = segment_starts.cumsum(1)
            visible = visible & (segment.unsqueeze(1) == segment.unsqueeze(2))
        visible = (visible | (token == token.unsqueeze(1))).unsqueeze(1)
        q, k, v = (
            part.unflatten(2, (self.n_head, -1)).transpose(1, 2)
            for part in self.c_attn(x).chunk(3, dim=-1)
        )
        if seen is not None and seen.wants("weights"):
            scores = (q / math.sqrt(q.shape[-1])) @ k.transpose(2, 3)
            seen.add("weights", scores.masked_fill(~visible, -math.inf).softmax(-1))
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=visible)
        return self.resid_dropout(self.c_proj(y.transpose(1, 2).flatten(2)))


class GraphConvolution(nn.Module):
    """A filter for each kind of token, as in the Decision ConvFormer (arXiv 2310.03022)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        d, width = config.d_model, config.conv_window
        if width < 1:
            raise ConfigError(f"model.conv_window must be at least 1, got {width}")
        self.names = token_kinds(config, "rtg_conv1d", "obs_conv1d", "act_conv1d")
        for name in self.names:
            self.add_module(name, nn.Conv1d(d, d, width, groups=d))
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        segment_starts: Tensor | None = None,
        seen: Recorder | None = None,
    ) -> Tensor:
        """(batch, L, d_model) -> the same; the kinds of token in turn, from the first token on."""
        kind = torch.arange(x.shape[1], device=x.device) % len(self.names)
        flags: dict[str, Any] = {"mask": mask, "segment_starts": segment_starts}
        y = torch.zeros_like(x)
        for k, name in enumerate(self.names):
            layer = self.get_submodule(name)
            filtered = ops.causal_conv1d(
                x, layer.weight.squeeze(1), layer.bias, silu=False, **flags
            )
            y = torch.where((kind == k).unsqueeze(1), filtered, y)
        return self.dropout(y)


def _mean_decay(z: Tensor) -> Tensor:
    """(exp(z) - 1) / z for Re z <= 0, near zero by a series; see src/nn/s4d.cpp."""
    near = z.detach().abs() < 0.5
    small, large = z.masked_fill(~near, 0.0), z.masked_fill(near, 1.0)
    w = (small * small) * 0.25
    series = torch.ones_like(w)
    for divisor in (156.0, 110.0, 72.0, 42.0, 20.0, 6.0):
        series = 1.0 + series * w * (1.0 / divisor)
    return torch.where(near, torch.exp(small * 0.5) * series, (torch.exp(large) - 1.0) / large)


class GraphS4d(nn.Module):
    """The diagonal state space layer S4D (arXiv 2206.11893), as in Decision S4."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        if config.d_state < 2 or config.d_state % 2:
            raise ConfigError(
                "model.d_state must be even for s4d, whose states are conjugate pairs, got "
                f"{config.d_state}"
            )
        d, pairs = config.d_model, config.d_state // 2
        self.C = nn.Parameter(torch.randn(d, pairs, 2) * math.sqrt(0.5))
        self.log_dt = nn.Parameter(torch.rand(d) * math.log(100.0) + math.log(0.001))
        self.log_A_real = nn.Parameter(torch.full((d, pairs), math.log(0.5)))
        self.A_imag = nn.Parameter(math.pi * torch.arange(float(pairs)).repeat(d, 1))
        self.D = nn.Parameter(torch.randn(d))
        self.output_linear = nn.Linear(d, 2 * d)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        segment_starts: Tensor | None = None,
        seen: Recorder | None = None,
    ) -> Tensor:
        """(batch, L, d_model) -> the same, by the convolution with the layer's response (FFT)."""
        if segment_starts is not None:
            raise ConfigError("s4d: packed segments are for dmamba.nn.DMamba, in C++")
        u = x.to(self.D.dtype)
        if mask is not None:
            u = u.masked_fill(~mask.unsqueeze(2), 0.0)
        length = u.shape[1]
        A = torch.complex(-torch.exp(self.log_A_real), self.A_imag)
        dt = torch.exp(self.log_dt).unsqueeze(1)
        step = A * dt
        readout = torch.view_as_complex(self.C) * (dt * _mean_decay(step))
        powers = torch.exp(step.unsqueeze(2) * torch.arange(length, dtype=u.dtype, device=u.device))
        response = 2.0 * (readout.unsqueeze(2) * powers).sum(1).real
        spectrum = torch.fft.rfft(response.t(), 2 * length, dim=0)
        y = torch.fft.irfft(torch.fft.rfft(u, 2 * length, dim=1) * spectrum, 2 * length, dim=1)
        out = functional.gelu(y[:, :length] + u * self.D)
        return functional.glu(self.output_linear(out.to(x.dtype)), dim=2)


class GraphChannelSsm(nn.Module):
    """Two Mamba blocks along the channels of a token, one from the first on, one back."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.group = config.channel_group
        if self.group < 1 or config.d_model % self.group:
            raise ConfigError(
                f"model.channel_group: {self.group} channels a step do not divide model.d_model, "
                f"{config.d_model}"
            )
        sizes = (self.group, config.d_state, config.d_conv, config.expand, config.dt_rank)
        self.forward_mamba, self.backward_mamba = GraphMamba(*sizes), GraphMamba(*sizes)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, L, d_model) -> the same, each token by itself."""
        s = x.reshape(-1, x.shape[2] // self.group, self.group)
        y = self.forward_mamba(s) + self.backward_mamba(s.flip(1)).flip(1)
        return y.view(x.shape)


def _make_mamba(config: ModelConfig) -> nn.Module:
    c = config
    return GraphMamba(c.d_model, c.d_state, c.d_conv, c.expand, c.dt_rank)


MIXERS = {
    "mamba": _make_mamba,
    "attention": GraphAttention,
    "convolution": GraphConvolution,
    "s4d": GraphS4d,
}


def token_kinds(config: ModelConfig, rtg: str, state: str, action: str) -> list[str]:
    """Of the three, those that a step of this model has, in order."""
    return [
        *([rtg] if config.rtg == "token" else []),
        state,
        *([action] if config.past_actions == "token" else []),
    ]
