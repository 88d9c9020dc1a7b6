"""A layer of Decision Mamba in Python: to build models with, to trace and to look into."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from dmamba._C import ConfigError, ModelConfig
from dmamba.nn.captures import Captures, Recorder
from dmamba.nn.mixers import MIXERS, GraphChannelSsm, State

# Fields of a model's configuration that say something of a layer.
_OPTIONS = (
    *("channel_mixing", "dropout", "d_state", "d_conv", "expand", "dt_rank", "n_head"),
    *("conv_window", "channel_group", "rtg", "past_actions"),
)


class MambaBlock(Captures, nn.Module):
    """A layer of Decision Mamba alone: norm, token mixer and residual, then the channel mixer.

    ``x = x + mixer(LayerNorm(x)); x = x + channels(LayerNorm(x))``, as in T. Ota, arXiv
    2403.19925, figure 2. An ordinary module over the registered operators: hooks fire inside, and
    it goes into ``torch.compile``. Parameters are named as in a model's layers (``norm_mamba``,
    ``mamba``, ``ln_2``, ``mlp_channels``), so that ``transformer.h.0.*`` of a checkpoint load.

    Args:
        d_model: Channels of a token.
        token_mixer: "mamba", "attention", "convolution" or "s4d".
        config: Options as of a whole model, in place of ``options``.
        **options: Fields of :class:`dmamba._C.ModelConfig` that concern a layer: channel_mixing
            ("mlp", "ssm" or "none"), dropout, d_state, d_conv, expand, dt_rank, n_head,
            conv_window, channel_group; rtg and past_actions, by which a convolution has filters
            for return-to-go, state, action in turn, or for fewer kinds of token.

    Raises:
        ConfigError: A size below 1, an unknown choice.
        TypeError: An unknown option.

    Attributes:
        token_mixer: As given.

    Example:
        >>> layers = torch.nn.ModuleList(MambaBlock(128, channel_mixing="none") for _ in range(4))
    """

    def __init__(
        self,
        d_model: int,
        token_mixer: str = "mamba",
        config: ModelConfig | None = None,
        **options: Any,
    ):
        super().__init__()
        config = ModelConfig() if config is None else config.copy()
        config.d_model = d_model
        for name, value in options.items():
            if name not in _OPTIONS:
                known = ", ".join(_OPTIONS)
                raise TypeError(f"MambaBlock has no option '{name}'; there are {known}")
            setattr(config, name, value)
        if d_model < 1:
            raise ConfigError(f"MambaBlock: d_model must be at least 1, got {d_model}")
        if token_mixer not in MIXERS:
            raise ConfigError(
                f"model.token_mixer: '{token_mixer}' is unknown; choose one of {', '.join(MIXERS)}"
            )
        self.token_mixer = token_mixer
        self.add_module(f"norm_{token_mixer}", nn.LayerNorm(d_model))
        self.add_module(token_mixer, MIXERS[token_mixer](config))
        self.channel_mixing = config.channel_mixing
        if self.channel_mixing not in ("mlp", "ssm", "none"):
            raise ConfigError(
                f"model.channel_mixing: '{self.channel_mixing}' is unknown; choose one of mlp, "
                "ssm, none"
            )
        if self.channel_mixing == "none":
            return
        self.ln_2 = nn.LayerNorm(d_model)
        dropout = nn.Dropout(config.dropout)
        if self.channel_mixing == "mlp":
            wide = 4 * d_model
            self.mlp_channels = nn.Sequential(
                nn.Linear(d_model, wide), nn.GELU(), nn.Linear(wide, d_model), dropout
            )
        else:
            self.ssm_channels, self.channel_dropout = GraphChannelSsm(config), dropout

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        segment_starts: Tensor | None = None,
        seen: Recorder | None = None,
    ) -> Tensor:
        """The layer over whole sequences: (batch, L, d_model) -> (batch, L, d_model).

        Args:
            x: Tokens, (batch, L, d_model).
            mask: (batch, L) bool, False for padding.
            segment_starts: (batch, L) bool, True where a sequence begins anew; not with s4d.
            seen: Where intermediates go; ``capture`` gives one.
        """
        mixer, normed = self.get_submodule(self.token_mixer), self._norm(x)
        if seen is not None:
            seen.add("input", x)
            seen.add("normed", normed)
        mixed = mixer(normed, mask, segment_starts, seen)
        if seen is not None:
            seen.add("mixer", mixed)
        return self._mix_channels(x + mixed, seen)

    def initial_state(self, batch: int) -> State:
        """What :meth:`step` carries, before the first token of ``batch`` sequences.

        Raises:
            ConfigError: The token mixer is not mamba.
        """
        return self._mamba().initial_state(batch)

    def step(
        self,
        x: Tensor,
        state: State,
        mask: Tensor | None = None,
        segment_starts: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """The next n tokens of each sequence, of layers with a mamba mixer.

        Args:
            x: (batch, n, d_model).
            state: Of :meth:`initial_state`, or what the last call returned; it stays as it is.
            mask: (batch, n) bool, False for padding.
            segment_starts: (batch, n) bool, True where a sequence begins anew.

        Returns:
            (batch, n, d_model), what :meth:`forward` gives for these tokens, and the state after.

        Raises:
            ConfigError: The token mixer is not mamba.
        """
        mixed, state = self._mamba().advance(self._norm(x), mask, segment_starts, state)
        return self._mix_channels(x + mixed, None), state

    def _norm(self, x: Tensor) -> Tensor:
        return self.get_submodule(f"norm_{self.token_mixer}")(x)

    def _mamba(self) -> Any:
        if self.token_mixer != "mamba":
            raise ConfigError(
                f"MambaBlock: {self.token_mixer} layers have no step here; layers of mamba do"
            )
        return self.get_submodule("mamba")

    def _mix_channels(self, x: Tensor, seen: Recorder | None) -> Tensor:
        if self.channel_mixing == "none":
            return x
        normed = self.ln_2(x)
        if self.channel_mixing == "mlp":
            mixed, dropout = self.mlp_channels[:3](normed), self.mlp_channels[3]
        else:
            mixed, dropout = self.ssm_channels(normed), self.channel_dropout
        if seen is not None:
            seen.add("channels", mixed)
        return x + dropout(mixed)
