"""Modules: C++ inside, ordinary ``torch.nn.Module`` outside.

``state_dict``, ``parameters``, ``.to``, ``deepcopy``, pickling, optimizers and hooks on the
outermost module work as ever. Children live in C++: their hooks do not fire (``capture`` looks
inside in their place, :mod:`dmamba.nn.captures`), and ``torch.compile`` leaves the module whole
(the ops compile into a graph, and with them :class:`GraphDMamba`, the same model for tracers).
Parameters live there too: their values, dtype and device can change, but no other tensor can take
their place, so ``torch.func.functional_call`` raises NotImplementedError.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dmamba import _C
from dmamba._C import ModelConfig
from dmamba._uncompiled import uncompiled
from dmamba.nn import pretrained
from dmamba.nn.blocks import MambaBlock
from dmamba.nn.captures import Captured, Captures
from dmamba.nn.cpp_module import CppModule
from dmamba.nn.graph import GraphAtariDMamba, GraphDMamba, GraphStep
from dmamba.nn.layers import Mamba
from dmamba.nn.mixers import GraphMamba
from dmamba.nn.pretrained import Pretrained

if TYPE_CHECKING:
    from dmamba.nn.external import ExternalModel, Factory

__all__ = [
    "AtariDMamba",
    "Captured",
    "DMamba",
    "GraphDMamba",
    "GraphMamba",
    "GraphStep",
    "Mamba",
    "MambaBlock",
    "ModelConfig",
    "MultiDMamba",
    "load",
]


for _model in (GraphAtariDMamba, GraphDMamba, GraphMamba, GraphStep, Mamba, MambaBlock):
    _model.__module__ = __name__  # where pickles look, whatever file it is in


def _model_config(model: str, config: ModelConfig | None, options: dict[str, Any]) -> ModelConfig:
    """A copy of the config, with options set over it."""
    config = ModelConfig() if config is None else config.copy()
    fields = config.to_dict()
    for name, value in options.items():
        if name not in fields:
            known = ", ".join(fields)
            raise TypeError(f"{model} has no option '{name}'; there are {known}")
        if name == "token_mixer" and isinstance(value, str):
            value = [value]
        setattr(config, name, value)
    return config


class DMamba(Captures, Pretrained, CppModule, _C.DMamba):  # type: ignore[misc]
    """Decision Mamba (T. Ota, arXiv 2403.19925).

    Args:
        state_dim: Components of a state.
        act_dim: Components of an action.
        **options: Any field of :class:`dmamba._C.ModelConfig`: d_model, n_layer, context_length,
            token_mixer ("mamba", "attention", "convolution", "s4d"; one word, or one per layer),
            channel_mixing ("mlp", "ssm" or "none"), rtg and past_actions ("token" or "none"),
            padding ("masked" or "paper"), initialization ("mamba" or "paper"), dropout, ... A ready
            ``config=ModelConfig`` is taken instead.
        trunk: A model whose layers, norms and embeddings of return and time become this one's too,
            the same parameters; only what the sizes of states and actions decide is its own. Its
            options are this model's.

    Raises:
        ConfigError: For a size below 1 or an unknown choice.
        TypeError: For an unknown option, or options beside a trunk.

    Attributes:
        state_dim: As given.
        act_dim: As given.
        config: A copy of the options the model was made with.

    Example:
        >>> model = DMamba(state_dim=11, act_dim=3, d_model=64, context_length=20)
    """

    def __init__(
        self,
        state_dim: int,
        act_dim: int,
        config: ModelConfig | None = None,
        *,
        trunk: DMamba | None = None,
        **options: Any,
    ):
        if trunk is None:
            config = _model_config("DMamba", config, options)
            super().__init__(state_dim, act_dim, config)
        elif config is not None or options:
            raise TypeError("DMamba: a model over a trunk has that one's options; give no others")
        else:
            config = trunk.config
            super().__init__(state_dim, act_dim, trunk.cpp_module)
        self._adopt(state_dim, act_dim, config)

    @uncompiled
    def forward(
        self,
        states: Tensor,
        actions: Tensor,
        returns_to_go: Tensor,
        timesteps: Tensor,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Predicts the action of every timestep from what came before it.

        Args:
            states: Standardised, (batch, K, state_dim).
            actions: (batch, K, act_dim).
            returns_to_go: Scaled, (batch, K, 1).
            timesteps: (batch, K) int64, in [0, max_timestep).
            mask: (batch, K) bool, False for padding; not used with ``padding="paper"``.

        Returns:
            Actions (batch, K, act_dim), in (-1, 1).
        """
        return self.cpp_module.forward(states, actions, returns_to_go, timesteps, mask)

    def _twin(self) -> GraphDMamba:
        return GraphDMamba(self)


class MultiDMamba(CppModule, _C.MultiDMamba):  # type: ignore[misc]
    """Models for several sets of states and actions over one trunk.

    Its parameters are those of the trunk under their own names, and of each set, such as
    ``sets.hopper-medium.embed_state.weight``. To act or to compute a loss, take one of ``models``.

    Args:
        sizes: By the set's name (no dots): components of its states and of its actions.
        **options: As for :class:`DMamba`.

    Raises:
        ConfigError: No set, a name with dots, a size below 1, or an unknown choice.
        TypeError: For an unknown option.

    Attributes:
        models: The sets' models by name, which share the trunk's parameters.

    Example:
        >>> model = MultiDMamba({"hopper": (11, 3), "halfcheetah": (17, 6)}, d_model=64)
        >>> model.models["hopper"].eval()
    """

    def __init__(
        self, sizes: dict[str, tuple[int, int]], config: ModelConfig | None = None, **options: Any
    ):
        config = _model_config("MultiDMamba", config, options)
        models: dict[str, DMamba] = {}
        trunk: DMamba | None = None
        for name, (state_dim, act_dim) in sizes.items():
            if trunk is None:
                models[name] = trunk = DMamba(state_dim, act_dim, config)
            else:
                models[name] = DMamba(state_dim, act_dim, trunk=trunk)
        super().__init__([model.cpp_module for model in models.values()], list(models))
        self._adopt(sizes, config)
        self.models = models


class AtariDMamba(Captures, Pretrained, CppModule, _C.AtariDMamba):  # type: ignore[misc]
    """Decision Mamba for games (T. Ota, arXiv 2403.19925): frames in, discrete actions out.

    Parameters are named as in the author's Atari code.

    Args:
        num_actions: Actions to choose from.
        **options: Any field of :class:`dmamba._C.ModelConfig`, as for :class:`DMamba`; those of
            this model alone are ``encoder`` ("nature" or "impala"), what turns a stack of frames
            into a token, and ``position``: "segment", the paper's embeddings of the first step's
            time and of a token's place in the segment of at most context_length steps, or
            "timestep", each step's own time.

    Raises:
        ConfigError: For a size below 1 or an unknown choice.
        TypeError: For an unknown option.

    Attributes:
        num_actions: As given.
        config: A copy of the options the model was made with.

    Example:
        >>> model = AtariDMamba(num_actions=4, n_layer=6, context_length=30)
    """

    def __init__(self, num_actions: int, config: ModelConfig | None = None, **options: Any):
        config = _model_config("AtariDMamba", config, options)
        super().__init__(num_actions, config)
        self._adopt(num_actions, config)

    @uncompiled
    def forward(
        self,
        frames: Tensor,
        actions: Tensor,
        returns_to_go: Tensor,
        timesteps: Tensor,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Predicts the action of every timestep from what came before it.

        Args:
            frames: The last four frames of each step, oldest first, (batch, K, 4, 84, 84) uint8,
                zero before the episode's start.
            actions: (batch, K) int64.
            returns_to_go: Scaled, (batch, K, 1).
            timesteps: (batch,) int64, of the segment's first real step, in [0, max_timestep).
            mask: (batch, K) bool, False for padding, which stands in front.

        Returns:
            Logits (batch, K, num_actions).
        """
        return self.cpp_module.forward(frames, actions, returns_to_go, timesteps, mask)

    def encode(self, stacks: Tensor) -> Tensor:
        """States (n, d_model) of stacks of frames (n, 4, 84, 84) uint8, in [-1, 1]."""
        return self.cpp_module.encode(stacks)

    def _twin(self) -> GraphAtariDMamba:
        return GraphAtariDMamba(self)


def load(
    folder: str | os.PathLike[str],
    device: str | torch.device = "cpu",
    set: str = "",
    model: torch.nn.Module | Factory | None = None,
) -> tuple[DMamba | AtariDMamba | ExternalModel, dict[str, Any]]:
    """Loads the model of a checkpoint or pretrained folder, wherever it was trained.

    Args:
        folder: A folder such as ``RUN/checkpoints/step-00001000``, or one that ``save_pretrained``
            or ``dmamba export`` wrote.
        device: Where the model is put.
        set: Of a run on several sets, the one whose model is wanted.
        model: Of a run with a model of your own: a module like it, which stays as it is, or a
            callable (state_dim, act_dim, config) -> module.

    Returns:
        The model in evaluation mode (your own as ``module`` of an
        :class:`dmamba.nn.external.ExternalModel`), and a dict with step, state_dim, act_dim,
        state_mean, state_std (lists), num_actions (of a model for games; else 0), external_model
        (the class of one of your own; else empty), context_length (what a schedule or a bandit has
        chosen to act with; else 0), rtg_scale and the run's config.

    Raises:
        CheckpointError: Where the folder is no checkpoint or does not fit; names file and tensor.
            No such set, or none named where there are several.
    """
    if pretrained.is_folder(folder):
        if model is not None:
            raise _C.CheckpointError(_built_in(folder))
        return _load_pretrained(folder, device, set)
    info = _C.read_checkpoint(os.fspath(folder))
    config = info["config"].model
    info["rtg_scale"] = info["config"].dataset.rtg_scale
    if info["external_model"]:
        from dmamba.nn.external import load as load_external  # which needs this module

        external = load_external(os.fspath(folder), info, model)
        external.to(device).module.eval()
        return external, info
    if model is not None:
        raise _C.CheckpointError(_built_in(folder))
    loaded: DMamba | AtariDMamba
    if info["sets"] or set:
        loaded = _load_set(folder, info, set)
    elif info["num_actions"]:
        loaded = AtariDMamba(info["num_actions"], config)
        _C.load_parameters(os.fspath(folder), loaded.cpp_module)
    else:
        loaded = DMamba(info["state_dim"], info["act_dim"], config)
        _C.load_parameters(os.fspath(folder), loaded.cpp_module)
    return loaded.to(device).eval(), info


def _built_in(folder: str | os.PathLike[str]) -> str:
    return f"{os.fspath(folder)}: holds a built-in model, code included; leave model= out"


def _load_pretrained(
    folder: str | os.PathLike[str], device: str | torch.device, set: str
) -> tuple[DMamba | AtariDMamba, dict[str, Any]]:
    info = pretrained.read(folder)
    if set:
        raise _C.CheckpointError(f"{os.fspath(folder)}: has no set {set!r}; it holds one model")
    kind, dtype = info.pop("kind"), info.pop("dtype")
    config = info["config"].model
    model: DMamba | AtariDMamba
    if kind == "AtariDMamba":
        model = AtariDMamba(info["num_actions"], config)
    else:
        model = DMamba(info["state_dim"], info["act_dim"], config)
    pretrained.load_parameters(folder, model.to(dtype))
    return model.to(device).eval(), info


def _load_set(folder: str | os.PathLike[str], info: dict[str, Any], name: str) -> DMamba:
    """The model of one of several sets; what is known of it goes into ``info``."""
    names = [known["name"] for known in info["sets"]]
    if name not in names:
        asked = f"has no set {name!r}" if name else "holds models of several sets"
        known = f"name one of {', '.join(names)}" if names else "it was trained on one set"
        raise _C.CheckpointError(f"{os.fspath(folder)}: {asked}; {known}")
    index = names.index(name)
    info |= info["sets"][index]
    config = info["config"].copy()
    info["rtg_scale"] = config.pretraining.rtg_scales[index]
    model = DMamba(info["state_dim"], info["act_dim"], config.model)
    config.transfer.set, config.transfer.fresh = name, []  # every parameter must be there
    _C.init_parameters(os.fspath(folder), model.cpp_module, config)
    return model
