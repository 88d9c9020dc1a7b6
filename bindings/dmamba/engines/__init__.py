"""Where the runs of a sweep are trained: on this machine, on a Ray cluster, or as jobs of Slurm.

To add an engine: a module with a class derived from :class:`Engine`, and a row in ``ENGINES``.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dmamba import _C
from dmamba.common.values import split_values
from dmamba.engines.base import Engine, Training
from dmamba.engines.local import default_jobs

__all__ = [
    "ENGINES",
    "HERE",
    "Engine",
    "Training",
    "check_name",
    "default_jobs",
    "make_engine",
    "parse_options",
]

ENGINES = {
    "local": ("local", "Local"),
    "ray": ("ray", "Ray"),
    "slurm": ("slurm", "Slurm"),
}
HERE = "local"  # the engine whose runs are this machine's


def check_name(name: str) -> None:
    """Refuses the name of an engine that there is not.

    Raises:
        ConfigError: There is none of that name.
    """
    if name not in ENGINES:
        raise _C.ConfigError(f"engine: no {name!r}; there are {', '.join(ENGINES)}")


def make_engine(
    name: str, options: Mapping[str, Any], jobs: int | None, device: str, folder: Path
) -> Engine:
    """An engine; nothing runs before it is entered.

    Args:
        name: One of ``ENGINES``.
        options: The engine's own; see its class.
        jobs: Runs at a time; None: what the engine thinks best.
        device: The runs' ``training.device``.
        folder: The sweep's.

    Raises:
        ConfigError: An unknown name or option, a value that cannot be used, a missing package.
    """
    check_name(name)
    if jobs is not None and jobs < 1:
        raise _C.ConfigError(f"jobs must be at least 1, got {jobs}")
    module, kind = ENGINES[name]
    made: Engine = getattr(importlib.import_module(f"dmamba.engines.{module}"), kind)(
        options, jobs, device, folder
    )
    return made


def parse_options(text: str) -> dict[str, Any]:
    r"""Options from ``name=value,name=value``; a value is read as JSON where it is JSON.

    Raises:
        ConfigError: A text that cannot be read, or a name given twice.

    Example:
        >>> parse_options('time=60,setup=["module load cuda"]')
        {'time': 60, 'setup': ['module load cuda']}
    """
    options: dict[str, Any] = {}
    for item in split_values(text) if text else ():
        name, equals, value = (part.strip() for part in item.partition("="))
        if not (name and equals and value):
            raise _C.ConfigError(f"{item!r}: expected name=value,name=value")
        if name in options:
            raise _C.ConfigError(f"{item!r}: {name} is given twice")
        try:
            options[name] = json.loads(value)
        except json.JSONDecodeError:
            options[name] = value
    return options
