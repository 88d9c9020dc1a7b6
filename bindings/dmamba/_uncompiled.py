"""``torch.compiler.disable`` that does not load the compiler before somebody compiles.

``torch.compiler.disable`` imports torch._dynamo, 1.5 s or half of what importing dmamba took. Who
compiles has imported it: only from then on there is something to keep away.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import TypeVar, cast

import torch

Function = TypeVar("Function", bound=Callable[..., object])


def uncompiled(function: Function) -> Function:
    """Marks a function that ``torch.compile`` leaves as it is, with a graph before and one after.

    Example:
        >>> class Wrapper(torch.nn.Module):
        ...     @uncompiled
        ...     def forward(self, x): return self.extension.forward(x)
    """
    disabled: list[Callable[..., object]] = []

    @functools.wraps(function)
    def call(*arguments: object, **options: object) -> object:
        if "torch._dynamo" not in sys.modules:
            return function(*arguments, **options)
        if not disabled:
            disabled.append(torch.compiler.disable(function))
        return disabled[0](*arguments, **options)

    # What torch.compiler.disable marks its result with: a module with such a forward is not traced.
    call._torchdynamo_disable = True  # type: ignore[attr-defined]
    return cast(Function, call)
