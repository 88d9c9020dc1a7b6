"""Looking inside: what the layers of a model compute on their way, as tensors by name.

Children of our C++ modules fire no Python hooks; ``model.capture(...)`` is what stands in their
place. It runs the model, and beside it the same layers with the same parameters as single operators
(``dmamba.nn.graph``), which leave what was asked for: the tensors are those of the model up to
rounding. Other calls cost nothing for it. The names::

    name        shape                              what
    tokens      (batch, L, d_model)                embedded tokens, what the first layer receives
    final       (batch, L, d_model)                after the last LayerNorm, what the head receives
    -- of each layer, under ``layers.I.``
    input       (batch, L, d_model)                the residual stream before the layer
    normed      (batch, L, d_model)                its LayerNorm, the token mixer's input
    mixer       (batch, L, d_model)                what the token mixer adds to the stream
    channels    (batch, L, d_model)                what the channel mixer adds, before its dropout
    -- of ``mamba`` mixers
    x           (batch, L, d_inner)                input of the convolution
    z           (batch, L, d_inner)                the gate, before its SiLU
    u           (batch, L, d_inner)                output of the convolution, input of the scan
    delta       (batch, L, d_inner)                step sizes after the softplus; masked: 0
    A           (d_inner, d_state)                 -exp(A_log)
    B, C        (batch, L, d_state)                input and output projections
    states      (batch, L, d_inner, d_state)       h after each token
    y           (batch, L, d_inner)                output of the scan, gated
    -- of ``attention`` mixers
    weights     (batch, n_head, L, L)              of each query (third) on each key (fourth)

L is the number of tokens: 3 K with all kinds of token, in the order return-to-go, state, action of
each step. Storage is that of the arithmetic (under autocast bfloat16; A and states are float32).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dmamba._C import ConfigError

NAMES = (
    *("tokens", "input", "normed", "x", "z", "u", "delta", "A", "B", "C", "states", "y"),
    *("weights", "mixer", "channels", "final"),
)


class Recorder:
    """Where layers leave their tensors.

    Args:
        layers: Numbers of the layers whose tensors are kept; None: all.
        what: Names that are kept; None: all.

    Attributes:
        layer: The number of the layer that is at work; None: not one of several.
        tensors: What was left, by name.
    """

    def __init__(self, layers: Sequence[int] | None, what: Sequence[str] | None) -> None:
        self.layer: int | None = None
        self.tensors: dict[str, Tensor] = {}
        self._layers, self._what = layers, what

    def wants(self, name: str) -> bool:
        """Whether this is kept of the layer at work."""
        here = self.layer is None or self._layers is None or self.layer in self._layers
        return here and (self._what is None or name in self._what)

    def add(self, name: str, tensor: Tensor) -> None:
        """Keeps the tensor, if it is wanted."""
        if self.wants(name):
            prefix = "" if self.layer is None else f"layers.{self.layer}."
            self.tensors[prefix + name] = tensor


class Captured(Mapping[str, Tensor]):
    """Tensors by name, such as ``layers.0.delta``; :mod:`dmamba.nn.captures` has the names.

    Attributes:
        output: What the module itself returned: the same bits as without the capture.

    Example:
        >>> captured = model.capture(states, actions, returns_to_go, timesteps, mask)
        >>> captured["layers.0.states"].shape, list(captured.layer(0))
    """

    def __init__(self, tensors: dict[str, Tensor], output: Tensor) -> None:
        self._tensors = tensors
        self.output = output

    def __getitem__(self, name: str) -> Tensor:
        try:
            return self._tensors[name]
        except KeyError:
            raise KeyError(f"{name!r} was not captured; there are {', '.join(self)}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __repr__(self) -> str:
        lines = (f"  {name}: {tuple(tensor.shape)}" for name, tensor in self.items())
        return "\n".join(["Captured(", *lines, ")"])

    def layer(self, index: int) -> dict[str, Tensor]:
        """The tensors of one layer, under their short names; empty if none were captured."""
        prefix = f"layers.{index}."
        return {
            name.removeprefix(prefix): tensor
            for name, tensor in self.items()
            if name.startswith(prefix)
        }

    def retention(self, layer: int | None = None) -> Tensor:
        """What is left of each state after each token: exp(delta A), 1 where nothing is forgotten.

        Args:
            layer: Its number; None for a module that is one layer itself.

        Returns:
            (batch, L, d_inner, d_state) float32.

        Raises:
            KeyError: ``delta`` and ``A`` of that layer were not captured.
        """
        prefix = "" if layer is None else f"layers.{layer}."
        delta, rates = self[f"{prefix}delta"], self[f"{prefix}A"]
        return torch.exp(delta.unsqueeze(-1) * rates)


class Captures:
    """Mixed into modules that can be looked into."""

    def _twin(self) -> Any:
        """The same in single operators: called as the module is, and with ``seen``."""
        return self

    def capture(
        self,
        *args: Any,
        layers: Sequence[int] | None = None,
        what: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> Captured:
        """What the module computes on the way: in evaluation mode, without gradients.

        Its own mode comes back afterwards.

        Args:
            *args: As for a call of the module.
            layers: Numbers of the layers to look into; None: all. A module that is one layer has
                no numbers.
            what: Names, see :mod:`dmamba.nn.captures`; None: all. ``states`` are d_state times as
                large as the others, and take a walk token by token.
            **kwargs: As for a call of the module.

        Returns:
            The tensors by name, such as ``layers.0.delta``, and ``output``. A name that a layer
            has not (``delta`` of an attention layer) is left out.

        Raises:
            ConfigError: A layer or a name that there is not.

        Example:
            >>> captured = model.capture(*batch, layers=[0], what=["delta", "states"])
        """
        module: Any = self
        _check(getattr(getattr(module, "config", None), "n_layer", 0), layers, what)
        recorder = Recorder(layers, what)
        modes = {name: child.training for name, child in module.named_modules()}
        try:
            module.eval()
            with torch.no_grad():
                output = module(*args, **kwargs)
                self._twin()(*args, **kwargs, seen=recorder)
        finally:
            for name, child in module.named_modules():  # parents first, as they set their children
                child.training = modes[name]
        return Captured(recorder.tensors, output)


def _check(number: int, layers: Sequence[int] | None, what: Sequence[str] | None) -> None:
    """Raises ConfigError for a layer or a name that there is not."""
    for name in what or ():
        if name not in NAMES:
            raise ConfigError(f"capture: there is no '{name}'; choose from {', '.join(NAMES)}")
    if layers is not None and not number:
        raise ConfigError("capture: this module is one layer and has no numbers; leave layers out")
    if any(not 0 <= layer < number for layer in layers or ()):
        raise ConfigError(
            f"capture: layers {list(layers or ())} of a module of {number}, numbered from 0"
        )
    if (layers is not None and not len(layers)) or (what is not None and not len(what)):
        raise ConfigError("capture: layers and what must name something, or be left out")
