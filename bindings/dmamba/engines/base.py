"""What an engine is, and a training as engines on other machines run it."""

from __future__ import annotations

import os
import subprocess
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dmamba.common.signals import NotedSignals
from dmamba.engines.runner import STOPPED, failure_of, start, train_arguments
from dmamba.runs import Run

POLL_SECONDS = 0.2


def _settings() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("DMAMBA_")}


@dataclass(frozen=True)
class Training:
    """A run to be brought to its end, wherever the file system is the same.

    Attributes:
        config: A YAML file; a path from the root.
        overrides: ``key=value`` texts.
        folder: The run's; a path from the root.
        cwd: Where the process works, for the paths in its settings.
        variables: This program's own variables of the environment.
    """

    config: Path
    overrides: tuple[str, ...]
    folder: Path
    cwd: str = field(default_factory=os.getcwd)
    variables: dict[str, str] = field(default_factory=_settings)

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do."""
        return Run(self.folder).complete

    def start(self) -> subprocess.Popen[bytes]:
        """Starts its process, here; it stops with a checkpoint when this thread ends."""
        arguments = train_arguments(str(self.config), self.overrides, self.folder)
        return start(arguments, self.folder, self.variables, self.cwd)

    def run(self) -> str:
        """Trains to the end, here.

        Returns:
            What went wrong; empty for a finished run, ``stopped`` for a stopped one. An exception
            in this thread, such as KeyboardInterrupt, stops the run with a checkpoint.
        """
        if self.finished:
            return ""
        process = self.start()
        try:
            code = wait_for(process)
        except KeyboardInterrupt:
            process.terminate()
            code = _wait_on(process)
            # An interrupt while the exit status is read loses it, and what is lost counts as 0.
            if code == 0 and not self.finished:
                return STOPPED
        return failure_of(code, self.folder)


def _wait_on(process: subprocess.Popen[bytes]) -> int:
    """Waits for a process that is ending, also where it is asked to once more."""
    while True:
        try:
            return wait_for(process)
        except KeyboardInterrupt:
            continue


def wait_for(process: subprocess.Popen[bytes]) -> int:
    """Waits in short sleeps, between which Python raises what it was asked to raise."""
    while True:
        try:
            return process.wait(POLL_SECONDS)
        except subprocess.TimeoutExpired:
            pass


class Engine(NotedSignals, ABC):
    """Brings runs to their end; while it is entered, SIGINT and SIGTERM stop them all.

    Attributes:
        stopping: Set once no other runs are to be started.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stopping = threading.Event()

    def on_signal(self) -> None:
        """Stops them all; the loop of :meth:`run_all` does what a handler must not."""
        self.stopping.set()

    @abstractmethod
    def describe(self) -> str:
        """Where and how many at a time, in a few words."""

    @abstractmethod
    def run_all(self, runs: Sequence[Training], on_end: Callable[[int, str], None]) -> list[str]:
        """Trains all runs; one that fails does not end the others.

        Args:
            runs: None of them finished.
            on_end: Called in this thread with a run's index and failure as soon as it has ended.

        Returns:
            The failures in the order of the runs, as :meth:`Training.run` gives them.
        """
