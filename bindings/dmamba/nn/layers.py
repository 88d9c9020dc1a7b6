"""The Mamba block in C++, for users of mamba_ssm's; :mod:`dmamba.nn` re-exports it."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from dmamba import _C
from dmamba._C import ConfigError
from dmamba._uncompiled import uncompiled
from dmamba.nn.captures import Captures
from dmamba.nn.cpp_module import CppModule
from dmamba.nn.graph import share
from dmamba.nn.mixers import GraphMamba, initialize_step_sizes

_DTYPES = (torch.float32, torch.float64)


class Mamba(Captures, CppModule, _C.Mamba):  # type: ignore[misc]
    """The Mamba block (Gu and Dao, arXiv 2312.00752), for users of mamba_ssm's.

    Constructor, names and shapes of parameters, initial values, ``step`` and the cache are those
    of ``mamba_ssm.Mamba``, whose state dicts load as they are; beyond it there are masks and
    packed segments. It computes on the CPU too.

    Args:
        d_model: Channels of a token.
        d_state: State size of a channel.
        d_conv: Taps of the causal convolution.
        expand: Inner channels per channel of a token.
        dt_rank: Rank of the step-size projection; "auto" (or 0) means ceil(d_model / 16).
        dt_min: Initial step sizes, softplus(dt_proj.bias), are log-uniform from this ...
        dt_max: ... to this.
        dt_init: ``dt_proj.weight`` begins "random", uniform within +- dt_scale / sqrt(dt_rank), or
            "constant", that.
        dt_scale: See there.
        dt_init_floor: Initial step sizes are at least this.
        conv_bias: Whether the convolution has a bias.
        bias: Whether in_proj and out_proj have one.
        use_fast_path: Of mamba_ssm's: without effect, there is one path.
        layer_idx: The layer's key in the cache of ``inference_params``.
        device: Where the parameters are put.
        dtype: torch.float32 (None) or torch.float64. A, D and the step sizes' biases would be
            rounded in others; ``torch.autocast`` gives arithmetic in bfloat16.

    Raises:
        ConfigError: A size below 1, impossible ranges, an unknown dt_init, another dtype.

    The attributes ``d_model``, ``d_state``, ``d_conv``, ``expand``, ``d_inner``, ``dt_rank`` and
    ``layer_idx`` are numbers.

    Example:
        >>> layer = Mamba(d_model=128, d_state=16, d_conv=4, expand=2)
        >>> y = layer(torch.randn(2, 64, 128))
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | str = "auto",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init: str = "random",
        dt_scale: float = 1.0,
        dt_init_floor: float = 1e-4,
        conv_bias: bool = True,
        bias: bool = False,
        use_fast_path: bool = True,
        layer_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        if dtype not in (None, *_DTYPES):
            raise ConfigError(
                f"Mamba: dtype {dtype} is not one of float32 and float64, in which parameters are "
                "kept; leave it out, and use torch.autocast for arithmetic in bfloat16"
            )
        if isinstance(dt_rank, str) and dt_rank != "auto":
            raise ConfigError(f"Mamba: dt_rank must be a number or 'auto', got {dt_rank!r}")
        rank = 0 if isinstance(dt_rank, str) else int(dt_rank)
        sizes = (d_model, d_state, d_conv, expand, rank)
        begins = (dt_min, dt_max, dt_init, dt_scale, dt_init_floor)
        super().__init__(*sizes, conv_bias, bias)
        self._adopt(*sizes, *begins, conv_bias, bias, use_fast_path, layer_idx)
        if begins != (0.001, 0.1, "random", 1.0, 1e-4):
            initialize_step_sizes(self.get_submodule("dt_proj"), *begins)
        self._sizes, self._biases = sizes, (conv_bias, bias)
        self.d_model, self.d_state, self.d_conv, self.expand = sizes[:4]
        self.d_inner = expand * d_model
        self.dt_rank = self.get_parameter("dt_proj.weight").shape[1]
        self.use_fast_path, self.layer_idx = use_fast_path, layer_idx
        for name in ("A_log", "D"):  # what optimizers of mamba_ssm's users look for
            self.get_parameter(name)._no_weight_decay = True
        self.get_parameter("dt_proj.bias")._no_reinit = True
        if device is not None or dtype is not None:
            self.to(device=device, dtype=dtype)

    @uncompiled
    def forward(
        self,
        hidden_states: Tensor,
        inference_params: Any = None,
        *,
        mask: Tensor | None = None,
        segment_starts: Tensor | None = None,
    ) -> Tensor:
        """Mixes tokens: (batch, L, d_model) -> (batch, L, d_model).

        Args:
            hidden_states: Tokens, (batch, L, d_model).
            inference_params: As of mamba_ssm: an object with ``seqlen_offset`` and the dict
                ``key_value_memory_dict``, in which this layer keeps its two states under
                ``layer_idx``. At offset 0 the tokens begin the sequences, later there is one token
                a call. No gradient then.
            mask: (batch, L) bool, False for padding.
            segment_starts: (batch, L) bool, True where a sequence begins anew.

        Returns:
            (batch, L, d_model).

        Raises:
            RuntimeError: A shape or dtype that does not fit; names it.
            ConfigError: ``inference_params`` without a layer_idx, or beside flags.
        """
        if inference_params is None:
            return self.cpp_module.forward(hidden_states, mask, segment_starts)
        if isinstance(inference_params, Tensor):
            raise TypeError("Mamba: the second argument is inference_params; give masks by name")
        if mask is not None or segment_starts is not None:
            raise ConfigError("Mamba: inference_params go without mask and segment_starts")
        states = self._cached(inference_params, hidden_states.shape[0])
        if inference_params.seqlen_offset > 0:
            return self.step(hidden_states, *states)[0]
        for state in states:
            state.zero_()
        return self._advance(hidden_states, *states)

    def step(
        self, hidden_states: Tensor, conv_state: Tensor, ssm_state: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Takes one token of each sequence, at O(1) in their length. No gradient.

        Args:
            hidden_states: (batch, 1, d_model).
            conv_state: The last inputs of the convolution, (batch, d_inner, d_conv); updated in
                place. The first of the d_conv columns is of no effect, as in mamba_ssm.
            ssm_state: (batch, d_inner, d_state), updated in place.

        Returns:
            The output (batch, 1, d_model), and both states, the tensors given.

        Raises:
            RuntimeError: A shape or dtype that does not fit.
        """
        if hidden_states.dim() != 3 or hidden_states.shape[1] != 1:
            raise RuntimeError(
                "Mamba.step: hidden_states must be (batch, 1, d_model), one token, got "
                f"{list(hidden_states.shape)}"
            )
        return self._advance(hidden_states, conv_state, ssm_state), conv_state, ssm_state

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """The two states before the first token of ``batch_size`` sequences.

        Args:
            batch_size: Sequences.
            max_seqlen: Without effect: the states do not grow.
            dtype: The parameters' (None); states are not kept in others.
            **kwargs: Without effect, as in mamba_ssm.

        Returns:
            Zeros (batch, d_inner, d_conv) and (batch, d_inner, d_state), where the parameters are.

        Raises:
            ConfigError: Another dtype.
        """
        like = self.get_parameter("D")
        if dtype not in (None, like.dtype):
            raise ConfigError(
                f"Mamba: states in {dtype} are not kept, they are {like.dtype} as the parameters "
                "are; leave dtype out"
            )
        return tuple(  # type: ignore[return-value]
            torch.zeros(batch_size, self.d_inner, n, dtype=like.dtype, device=like.device)
            for n in (self.d_conv, self.d_state)
        )

    def _twin(self) -> GraphMamba:
        return self._graph

    @functools.cached_property
    def _graph(self) -> GraphMamba:
        """The same in single operators; what moves or loads these parameters does so there, too."""
        with torch.device("meta"):
            graph = GraphMamba(*self._sizes, *self._biases)
        share(graph, self)
        return graph

    @torch.no_grad()
    def _advance(self, tokens: Tensor, conv_state: Tensor, ssm_state: Tensor) -> Tensor:
        """The output of the next tokens (batch, n, d_model); both states move on in place."""
        for name, state, width in (
            ("conv_state", conv_state, self.d_conv),
            ("ssm_state", ssm_state, self.d_state),
        ):
            expected = [tokens.shape[0], self.d_inner, width]
            if list(state.shape) != expected:
                raise RuntimeError(f"Mamba: {name} must be {expected}, got {list(state.shape)}")
        y, (inputs, ssm) = self._graph.advance(tokens, None, None, (conv_state[..., 1:], ssm_state))
        conv_state.copy_(torch.cat([conv_state[..., :2][..., -1:], inputs], -1))
        ssm_state.copy_(ssm)
        return y

    def _cached(self, inference_params: Any, batch: int) -> tuple[Tensor, Tensor]:
        if self.layer_idx is None:
            raise ConfigError(
                "Mamba: inference_params keep states by layer: give the constructor a layer_idx"
            )
        memory = inference_params.key_value_memory_dict
        if self.layer_idx not in memory:
            memory[self.layer_idx] = self.allocate_inference_cache(batch, 0)
        return memory[self.layer_idx]
