"""What pybind11's module bindings lack, for modules whose work is done in C++.

Nested children, ``deepcopy``, pickling and ``load_state_dict(assign=True)``; see :mod:`dmamba.nn`.
"""

from __future__ import annotations

import types
from typing import Any

from torch import Tensor
from torch.nn.cpp import ModuleWrapper, OrderedDictWrapper


def _complete(module: Any) -> None:
    """Mends what ModuleWrapper leaves undone: nested children, and methods that return None.

    It copies every method of the C++ module onto the instance, where they hide those of Python's
    classes: nn.Module's own (``eval()`` would return None), which work on the wrapped parameters
    and children just as well, and what our subclass defines.
    """
    cpp = module.cpp_module
    for name in dir(cpp):
        if isinstance(getattr(type(module), name, None), types.FunctionType):
            module.__dict__.pop(name, None)
    module._modules = {name: _Child(child) for name, child in cpp._modules.items()}
    module._parameters = _Parameters(cpp, "_parameters")
    for parameter in module._parameters.values():
        parameter._is_param = True  # makes it an instance of torch.nn.Parameter


class _Parameters(OrderedDictWrapper):
    """The parameters of a C++ module, which holds on to its own tensors."""

    def __setitem__(self, name: str, tensor: Tensor | None) -> None:
        raise NotImplementedError(
            f"parameter '{name}' of a dmamba module lives in C++: another tensor cannot take its "
            "place, so torch.func.functional_call and torch.export do not work. They do with "
            "dmamba.nn.GraphDMamba(model). Or change the values, with load_state_dict (of a "
            "copy.deepcopy, to keep the module as it is) or .data.copy_()"
        )

    def __delitem__(self, name: str) -> None:
        self[name] = None


class _LoadsIntoCpp:
    """Makes ``load_state_dict(assign=True)`` work; mixed in before a ModuleWrapper."""

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        errors = len(error_msgs)
        super()._load_from_state_dict(  # type: ignore[misc]
            state_dict,
            prefix,
            {**local_metadata, "assign_to_params_buffers": False},
            strict,
            missing_keys,
            unexpected_keys,
            error_msgs,
        )
        if not local_metadata.get("assign_to_params_buffers") or len(error_msgs) > errors:
            return
        for name, parameter in self._parameters.items():  # type: ignore[attr-defined]
            if prefix + name in state_dict:
                parameter.grad = None  # may be of another dtype or device now
                parameter.data = state_dict[prefix + name].detach()


class _Child(_LoadsIntoCpp, ModuleWrapper):
    """A C++ submodule as Python sees it, its own children included."""

    def __init__(self, cpp_module: Any):
        super().__init__(cpp_module)
        _complete(self)


def _rebuild(
    cls: type[Any],
    arguments: tuple[Any, ...],
    options: dict[str, Any],
    state: dict[str, Tensor],
    frozen: list[str],
    training: dict[str, bool],
) -> Any:
    module = cls(*arguments, **options)
    module.load_state_dict(state, assign=True)
    for name in frozen:
        module.get_parameter(name).requires_grad_(False)
    for name, child in module.named_modules():  # parents come first: setting one sets all below it
        child.training = training[name]
    return module


class CppModule(_LoadsIntoCpp):
    """What pybind11's module bindings lack: nested children, deepcopy and pickle.

    Mixed in before a class bound by ``torch::python::bind_module``.
    """

    _arguments: tuple[Any, ...]
    _options: dict[str, Any]

    def _adopt(self, *arguments: Any, **options: Any) -> None:
        self._arguments, self._options = arguments, options
        _complete(self)

    def __reduce__(self) -> tuple[Any, ...]:
        module: Any = self
        frozen = [n for n, p in module.named_parameters() if not p.requires_grad]
        training = {name: child.training for name, child in module.named_modules()}
        state = module.state_dict()
        return _rebuild, (type(self), self._arguments, self._options, state, frozen, training)
