"""DMamba: Decision Mamba, offline reinforcement learning with selective state spaces.

Example:
    >>> import dmamba
    >>> run = dmamba.train("hopper-sample", overrides=["context_length=10"])
    >>> results = dmamba.evaluate(run, targets=[1800, 3600], episodes=100)
"""

from ._openmp import import_torch

import_torch()

import torch  # noqa: E402

from . import _build_info  # noqa: E402


def _check_torch() -> None:
    """Refuses a torch that the extension was not built for; the linker would do so unreadably."""
    minor = ".".join(torch.__version__.split(".")[:2])
    if minor != _build_info.torch_minor:
        raise ImportError(
            f"dmamba {_build_info.version} was built for torch {_build_info.torch_minor}, "
            f"but torch {torch.__version__} is installed. Rebuild it: pip install "
            f"--no-build-isolation --force-reinstall --no-deps <the dmamba source folder>, "
            f"or install torch {_build_info.torch_version}."
        )


_check_torch()

from . import data, envs, nn, ops  # noqa: E402
from ._C import (  # noqa: E402
    CheckpointError,
    Config,
    ConfigError,
    DataError,
    Error,
    NotFiniteError,
    Policy,
    set_log_level,
)
from .evaluation import evaluate  # noqa: E402
from .evaluation.exporting import export  # noqa: E402
from .evaluation.policies import Agent, load_policy  # noqa: E402
from .evaluation.video import record_video  # noqa: E402
from .nn.official import from_official  # noqa: E402
from .reporting import Report, report  # noqa: E402
from .runs import Run  # noqa: E402
from .sweeps import Sweep, sweep  # noqa: E402
from .training import train  # noqa: E402
from .training.callbacks import Callback, WandbCallback  # noqa: E402

__version__ = _build_info.version

__all__ = [
    "Agent",
    "Callback",
    "CheckpointError",
    "Config",
    "ConfigError",
    "DataError",
    "Error",
    "NotFiniteError",
    "Policy",
    "Report",
    "Run",
    "Sweep",
    "WandbCallback",
    "data",
    "envs",
    "evaluate",
    "export",
    "from_official",
    "load_policy",
    "nn",
    "ops",
    "record_video",
    "report",
    "set_log_level",
    "sweep",
    "train",
]
