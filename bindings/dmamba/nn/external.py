"""A researcher's own ``torch.nn.Module`` in place of the built-in model.

The trainer is the very same: it holds the module's parameters, and calls the module for the
predicted actions of a batch. Sampler, loss, AdamW, schedule, checkpoints and evaluation know no
difference. docs/own-model.md explains it to users.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import torch
from torch import Tensor

from dmamba import _C, nn

# Makes a module for (state_dim, act_dim, config); nn.DMamba is one.
Factory: TypeAlias = Callable[[int, int, _C.ModelConfig], torch.nn.Module]

# What can be trained and evaluated.
Model: TypeAlias = "nn.DMamba | nn.AtariDMamba | ExternalModel"

_STORABLE = {  # dtypes of buffers that a checkpoint can hold
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
}


class ExternalModel:
    """A module as the trainer and the policies take it, which is as they take ``nn.DMamba``.

    Args:
        module: Its ``forward(states, actions, returns_to_go, timesteps, mask)`` returns the
            predicted actions (batch, K, act_dim); the arguments are those of
            :meth:`dmamba.nn.DMamba.forward`. It stays the caller's: training changes its
            parameters where they are.
        state_dim, act_dim: Of the data.
        config: Of which ``context_length``, ``max_timestep`` and ``padding`` are used.

    Raises:
        ConfigError: The module cannot be trained or saved; the message says what and why.

    Attributes:
        module: As given, and so are ``state_dim``, ``act_dim`` and ``config``.
        name: Of the module's class.
        cpp_module: What C++ sees.
    """

    def __init__(
        self, module: torch.nn.Module, state_dim: int, act_dim: int, config: _C.ModelConfig
    ) -> None:
        self.module, self.state_dim, self.act_dim, self.config = module, state_dim, act_dim, config
        self.name = type(module).__name__
        _check_module(module, self.name)
        # The functions hold the module and not this object: C++ would keep it for ever.
        self.cpp_module = _C.ExternalModel(
            self.name,
            state_dim,
            act_dim,
            config,
            _parts(module),
            _embeddings(module),
            module,
            _forward_of(module, self.name, act_dim),
            lambda: _buffers(module),
        )

    def parameters(self) -> Iterator[Tensor]:
        """The module's."""
        return self.module.parameters()

    def check_ranks(self) -> None:
        """Raises ConfigError for buffers, which several processes would have each of its own."""
        buffers = _buffers(self.module)
        if buffers:
            raise _C.ConfigError(
                f"model: {self.name} has buffers, such as '{buffers[0][0]}', which would differ "
                "between processes; train in one process, or register them with persistent=False"
            )

    def to(self, device: str | torch.device) -> ExternalModel:
        """Moves the module."""
        self.module.to(device)
        return self


def make(
    model: torch.nn.Module | Factory, config: _C.Config, store: _C.TrajectoryStore | _C.FrameStore
) -> nn.DMamba | ExternalModel:
    """The model that ``dmamba.train(model=...)`` asks for, on the run's device, tried once.

    Args:
        model: A module, or what makes one.
        config: Resolved.
        store: The data.

    Returns:
        A built-in model as it is, anything else as an :class:`ExternalModel`.

    Raises:
        ConfigError: What cannot be trained.
    """
    if isinstance(store, _C.FrameStore):
        raise _C.ConfigError(
            f"model: {store.name} is a recorded game, but a model of your own sees states and "
            "actions that are vectors; leave model= out"
        )
    device = torch.device(_C.resolve_device(config.training.device, "training.device"))
    with seeded(config.seed, device):
        module = _build(model, store.state_dim, store.act_dim, config.model)
        if type(module) is nn.DMamba:
            _check_same_settings(module.config, config.model)
            return module
        module.to(device)
        _check_module(module, type(module).__name__, called=False)
        _try_out(module, store.state_dim, store.act_dim, config.model, device)
    return ExternalModel(module, store.state_dim, store.act_dim, config.model)


def load(
    folder: str, info: dict[str, Any], model: torch.nn.Module | Factory | None
) -> ExternalModel:
    """A copy of the module, on the CPU, with the parameters and buffers of a checkpoint.

    Args:
        folder: The checkpoint's.
        info: What ``_C.read_checkpoint`` says of it.
        model: A module like the one that was trained, which stays as it is, or what makes one.

    Raises:
        CheckpointError: None was given, or it does not fit; names the tensor.
    """
    if model is None:
        raise _C.CheckpointError(
            f"{folder}: holds the parameters of a model of your own, {info['external_model']}, and "
            "not its code; pass the module, or what makes it, from Python: "
            f"model={info['external_model']}"
        )
    config = info["config"]
    with seeded(config.seed, torch.device("cpu")):
        if isinstance(model, torch.nn.Module):
            model = _copy(model)
        sizes = (info["state_dim"], info["act_dim"], config.model)
        module = _build(model, *sizes).cpu()
        if any(map(torch.nn.parameter.is_lazy, module.parameters())):
            _call_once(module, *sizes, torch.device("cpu"))
    external = ExternalModel(module, *sizes)
    _C.load_parameters(folder, external.cpp_module)
    return external


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's default generators begin with the seed; after it they are the caller's again."""
    generators = [torch.default_generator]
    if device.type == "cuda":
        torch.cuda.init()  # there are no generators before, even where C++ uses the GPU already
        index = torch.cuda.current_device() if device.index is None else device.index
        generators.append(torch.cuda.default_generators[index])
    states = [generator.get_state() for generator in generators]
    try:
        for generator in generators:
            generator.manual_seed(seed)
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def _build(
    model: torch.nn.Module | Factory, state_dim: int, act_dim: int, config: _C.ModelConfig
) -> torch.nn.Module:
    if isinstance(model, torch.nn.Module):
        return model
    if not callable(model):
        raise _C.ConfigError(
            "model must be a torch.nn.Module or a callable (state_dim, act_dim, config) -> module, "
            f"got {type(model).__name__}"
        )
    made = model(state_dim, act_dim, config.copy())
    if not isinstance(made, torch.nn.Module):
        raise _C.ConfigError(
            f"model: {getattr(model, '__name__', model)} must return a torch.nn.Module, "
            f"got {type(made).__name__}"
        )
    return made


def _copy(module: torch.nn.Module) -> torch.nn.Module:
    try:
        return copy.deepcopy(module)
    except Exception as error:
        raise _C.ConfigError(
            f"model: {type(module).__name__} cannot be copied ({error}); pass a callable "
            "(state_dim, act_dim, config) -> module"
        ) from error


def _check_same_settings(made: _C.ModelConfig, wanted: _C.ModelConfig) -> None:
    theirs, ours = made.to_dict(), wanted.to_dict()
    differing = [
        f"{key} is {theirs[key]} there, {ours[key]} here"
        for key in ours
        if theirs[key] != ours[key]
    ]
    if differing:
        raise _C.ConfigError(
            "model: the DMamba was made with other settings than the configuration's section "
            f"model: {'; '.join(differing)}. Set model.* to them, or pass model=dmamba.nn.DMamba"
        )


def _check_module(module: torch.nn.Module, name: str, *, called: bool = True) -> None:
    """Refuses what could not be trained or saved.

    Args:
        module: The module.
        name: Of its class.
        called: Whether it has been called: lazy layers have parameters only then.
    """
    parameters = dict(module.named_parameters())
    for key, parameter in parameters.items():
        if torch.nn.parameter.is_lazy(parameter):
            if called:
                raise _C.ConfigError(
                    f"model: {name}: parameter '{key}' has no shape yet; call the module once first"
                )
        elif parameter.dtype != torch.float32:
            raise _C.ConfigError(
                f"model: {name}: parameter '{key}' is {parameter.dtype}, but parameters are "
                "float32 (training.precision chooses the arithmetic); call module.float()"
            )
    devices = {str(parameter.device): key for key, parameter in parameters.items()}
    if len(devices) > 1:
        raise _C.ConfigError(
            f"model: {name}: parameters are on several devices: "
            + ", ".join(f"'{key}' on {device}" for device, key in devices.items())
        )
    if parameters and not any(parameter.requires_grad for parameter in parameters.values()):
        raise _C.ConfigError(f"model: {name}: no parameter requires a gradient; nothing to train")
    for key, buffer in _buffers(module):
        if buffer.dtype not in _STORABLE:
            raise _C.ConfigError(
                f"model: {name}: buffer '{key}' is {buffer.dtype}, which a checkpoint cannot hold; "
                "register it with persistent=False, if it can be made anew"
            )
    for key, child in module.named_modules():
        if type(child).get_extra_state is not torch.nn.Module.get_extra_state:
            raise _C.ConfigError(
                f"model: {name}: '{key or name}' has get_extra_state(), which a checkpoint does "
                "not keep; make buffers of what has to be saved"
            )


def _parts(module: torch.nn.Module) -> list[tuple[str, Tensor | None, Any]]:
    """What it consists of in the order of ``named_parameters()``: names, parameters, C++ modules.

    A module of dmamba's is taken whole, so that its dropouts and embeddings are known as such;
    unless a parameter of it has been seen elsewhere: every parameter comes once.
    """
    parts: list[tuple[str, Tensor | None, Any]] = []
    seen: set[int] = set()

    def visit(prefix: str, child: torch.nn.Module) -> None:
        if id(child) in seen:
            return
        seen.add(id(child))
        own = {id(parameter) for parameter in child.parameters()}
        if prefix and hasattr(child, "cpp_module") and not own & seen:
            parts.append((prefix, None, child.cpp_module))
            seen.update(own)
            return
        start = f"{prefix}." if prefix else ""
        for name, parameter in child._parameters.items():
            if parameter is not None and id(parameter) not in seen:
                seen.add(id(parameter))
                parts.append((start + name, parameter, None))
        for name, grandchild in child._modules.items():
            if grandchild is not None:
                visit(start + name, grandchild)

    visit("", module)
    return parts


def _embeddings(module: torch.nn.Module) -> list[str]:
    """Names of parameters that are torch's embeddings."""
    kinds = (torch.nn.Embedding, torch.nn.EmbeddingBag)
    return [
        f"{name}.weight" if name else "weight"
        for name, child in module.named_modules()
        if isinstance(child, kinds)
    ]


def _buffers(module: torch.nn.Module) -> list[tuple[str, Tensor]]:
    """What ``state_dict()`` has beside parameters, as it is now: buffers can be replaced."""
    return [
        (f"{prefix}.{name}" if prefix else name, buffer)
        for prefix, child in module.named_modules()
        for name, buffer in child._buffers.items()
        if buffer is not None and name not in child._non_persistent_buffers_set
    ]


def _forward_of(module: torch.nn.Module, name: str, act_dim: int) -> Callable[..., Tensor]:
    """What calls the module and looks at its answer."""

    def forward(
        states: Tensor, actions: Tensor, returns_to_go: Tensor, timesteps: Tensor, mask: Tensor
    ) -> Tensor:
        predicted = module(states, actions, returns_to_go, timesteps, mask)
        _check_answer(predicted, (*states.shape[:2], act_dim), states.device, name)
        if module.training and torch.is_grad_enabled() and not predicted.requires_grad:
            raise _C.ConfigError(
                f"model: what {name}.forward returns has no gradient: it does not depend on "
                "parameters, or was detached"
            )
        return predicted

    return forward


def _check_answer(predicted: Any, shape: tuple[int, ...], device: torch.device, name: str) -> None:
    wanted = f"model: {name}.forward must return the actions (batch, K, act_dim) = {list(shape)}"
    if not isinstance(predicted, Tensor):
        raise _C.ConfigError(f"{wanted} as a tensor, got {type(predicted).__name__}")
    if tuple(predicted.shape) != shape:
        raise _C.ConfigError(f"{wanted}, got {list(predicted.shape)}")
    if predicted.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise _C.ConfigError(f"{wanted} in float32, got {predicted.dtype}")
    if predicted.device != device:
        raise _C.ConfigError(f"{wanted} on {device}, got a tensor on {predicted.device}")


def _call_once(
    module: torch.nn.Module,
    state_dim: int,
    act_dim: int,
    config: _C.ModelConfig,
    device: torch.device,
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """What the module answers to numbers, in evaluation mode; and the numbers.

    Of two segments, the first with padding in front.
    """
    batch, K = 2, config.context_length
    states = torch.randn(batch, K, state_dim, device=device, requires_grad=True)
    actions = torch.rand(batch, K, act_dim, device=device).mul_(2).sub_(1).requires_grad_()
    returns_to_go = torch.rand(batch, K, 1, device=device, requires_grad=True)
    timesteps = torch.arange(K, device=device).clamp_max(config.max_timestep - 1).repeat(batch, 1)
    mask = torch.ones(batch, K, dtype=torch.bool, device=device)
    mask[0, : K // 2] = False
    modes = {child: child.training for child in module.modules()}
    module.eval()
    try:
        with torch.enable_grad():  # times 1: a module may write into what it is given
            predicted = module(states * 1, actions * 1, returns_to_go * 1, timesteps, mask)
    finally:
        for child, training in modes.items():
            child.training = training
    return predicted, (states, actions, returns_to_go)


def _try_out(
    module: torch.nn.Module,
    state_dim: int,
    act_dim: int,
    config: _C.ModelConfig,
    device: torch.device,
) -> None:
    """One call, so that an error comes before there is a folder of a run.

    Warns of a forward that looks at what it is to predict, and of parameters without a gradient.
    """
    name = type(module).__name__
    predicted, inputs = _call_once(module, state_dim, act_dim, config, device)
    _check_answer(predicted, (2, config.context_length, act_dim), device, name)
    if predicted.requires_grad:
        _warn_of_peeking(predicted, inputs, name)
        _warn_of_unused(predicted, module, name)


def _warn_of_peeking(predicted: Tensor, inputs: tuple[Tensor, Tensor, Tensor], name: str) -> None:
    def seen(of: Tensor) -> list[Tensor]:
        found = torch.autograd.grad(of.sum(), inputs, retain_graph=True, allow_unused=True)
        return [
            torch.zeros_like(x) if grad is None else grad
            for x, grad in zip(inputs, found, strict=True)
        ]

    last, first = seen(predicted[1, -1]), seen(predicted[1, 0])
    later = any(bool((grad[:, 1:] != 0).any()) for grad in first)
    if bool((last[1][:, -1] != 0).any()) or bool((first[1][:, 0] != 0).any()):
        what = "the very action that it predicts"
    elif later:
        what = "later steps than the one whose action it predicts"
    else:
        return
    warnings.warn(
        f"model: {name}.forward looks at {what}: the loss will be low, and the policy, which does "
        "not have it, poor. Mask it out (docs/own-model.md)",
        stacklevel=2,
    )


def _warn_of_unused(predicted: Tensor, module: torch.nn.Module, name: str) -> None:
    trained = {key: p for key, p in module.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(predicted.sum(), list(trained.values()), allow_unused=True)
    unused = [key for key, grad in zip(trained, gradients, strict=True) if grad is None]
    if unused:
        shown = ", ".join(unused[:5]) + (", ..." if len(unused) > 5 else "")
        warnings.warn(
            f"model: {len(unused)} of {len(trained)} parameters of {name} have no part in what "
            f"forward returns ({shown}): weight decay alone will change them",
            stacklevel=2,
        )
