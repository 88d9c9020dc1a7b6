"""Processes of this machine, each on its share of the cores, in turn on each visible GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from dmamba import _C
from dmamba.engines.base import Engine, Training
from dmamba.engines.runner import Runner, visible_gpus

JOBS_ON_A_GPU = 4  # small models leave most of a GPU to each other


def default_jobs(device: str) -> int:
    """Runs at a time where the caller doesn't say: 4 on each GPU, half the usable cores on a CPU.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``.
    """
    from dmamba.envs.host import usable_cores

    if _C.resolve_device(device, "training.device") == "cpu":
        return max(1, usable_cores() // 2)
    return max(JOBS_ON_A_GPU, min(JOBS_ON_A_GPU * len(visible_gpus()), usable_cores()))


class Local(Engine):
    """The engine of one machine; it has no options.

    Args:
        options: Empty.
        jobs: Runs at a time; None: see :func:`default_jobs`.
        device: The runs' ``training.device``.
        folder: The sweep's.
    """

    def __init__(
        self, options: Mapping[str, Any], jobs: int | None, device: str, folder: Path
    ) -> None:
        super().__init__()
        if options:
            raise _C.ConfigError(f"engine local has no options, got {', '.join(options)}")
        self._runner = Runner(default_jobs(device) if jobs is None else jobs)
        self.stopping = self._runner.stopping

    def __enter__(self) -> Local:
        self._runner.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._runner.__exit__(kind, error, trace)
        self.received = self._runner.received

    def describe(self) -> str:
        """How many at a time."""
        return f"{self._runner.jobs} at a time"

    def run_all(self, runs: Sequence[Training], on_end: Callable[[int, str], None]) -> list[str]:
        """Trains them beside each other."""
        train = self._runner.train
        tasks = [partial(train, str(run.config), run.overrides, run.folder) for run in runs]
        return self._runner.run_all(tasks, on_end)
