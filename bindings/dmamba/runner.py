"""Training processes beside each other: several at a time, each on its share of the cores.

A run that has finished is kept, one that was stopped continues from its checkpoint, and a signal
stops all of them with checkpoints: whoever asks for the same runs again goes on where it was.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path

from dmamba import _C, ranks
from dmamba.signals import NotedSignals

STOPPED = "stopped"  # the failure of a run that was asked to stop, or never began for that reason


class Runner(NotedSignals):
    """Starts ``dmamba`` processes; while it is entered, SIGINT and SIGTERM stop them all.

    Args:
        jobs: Processes at a time, at least 1.

    Raises:
        ConfigError: torchrun has started this process as one of several.
    """

    def __init__(self, jobs: int) -> None:
        super().__init__()
        if ranks.several():
            raise _C.ConfigError(
                "training processes beside each other are started by one process: start it "
                "without torchrun (WORLD_SIZE is set)"
            )
        self.jobs = jobs
        self.stopping = threading.Event()
        self._processes: set[subprocess.Popen[bytes]] = set()
        cores = sorted(os.sched_getaffinity(0))
        self._shares: queue.SimpleQueue[set[int]] = queue.SimpleQueue()
        for job in range(jobs):
            self._shares.put(set(cores[job::jobs]) or {cores[job % len(cores)]})

    def train(
        self, config: str, overrides: Sequence[str], folder: Path, evaluate: str = "auto"
    ) -> str:
        """Trains a run to its end, from its beginning or its last checkpoint.

        Args:
            config: A YAML file, or the name of a recipe.
            overrides: ``key=value`` texts.
            folder: The run's; the process's output goes into ``FOLDER.log`` beside it.
            evaluate: As for ``dmamba train``.

        Returns:
            What went wrong; empty for a finished run, :data:`STOPPED` for a stopped one.
        """
        if (folder / "summary.json").is_file():
            return ""
        arguments = ["train", config, *overrides, "--output", str(folder)]
        arguments += ["--no-progress", "--evaluate", evaluate]
        arguments += ["--resume"] * (folder / "config.yaml").is_file()
        return self.run(arguments, folder)

    def run(self, arguments: Sequence[str], folder: Path) -> str:
        """Runs one ``dmamba`` command when a share of the cores is free.

        Args:
            arguments: After the program's name.
            folder: Where the command writes; its output goes into ``FOLDER.log`` beside it.

        Returns:
            As :meth:`train`.
        """
        cores = self._shares.get()  # as many as there are runs at a time
        try:
            return STOPPED if self.stopping.is_set() else self._run_on(cores, arguments, folder)
        finally:
            self._shares.put(cores)

    def run_all(
        self, tasks: Sequence[Callable[[], str]], on_end: Callable[[int, str], None]
    ) -> list[str]:
        """Does all tasks, ``jobs`` at a time; one that fails does not end the others.

        Args:
            tasks: Each returns its failure, as :meth:`train` does.
            on_end: Called in this thread with a task's index and failure as soon as it has ended.

        Returns:
            The failures, in the order of the tasks.
        """
        failures = [STOPPED] * len(tasks)
        with ThreadPoolExecutor(self.jobs) as pool:
            futures = {pool.submit(task): index for index, task in enumerate(tasks)}
            try:
                waiting = set(futures)
                while waiting:
                    ended, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    for future in sorted(ended, key=futures.__getitem__):
                        index = futures[future]
                        failures[index] = future.result()
                        on_end(index, failures[index])
            except BaseException:
                self.stop()  # leaving the pool waits for the last checkpoints
                raise
        return failures

    def stop(self) -> None:
        """Asks all runs to stop with a checkpoint, and starts no others."""
        self.stopping.set()
        for process in list(self._processes):
            process.send_signal(signal.SIGTERM)

    def on_signal(self) -> None:
        """Stops them all."""
        self.stop()

    def _run_on(self, cores: set[int], arguments: Sequence[str], folder: Path) -> str:
        folder.parent.mkdir(parents=True, exist_ok=True)
        log = folder.with_name(f"{folder.name}.log")
        with open(log, "ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "dmamba", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
            # Before it has begun to count them: torch's threads and the workers follow.
            os.sched_setaffinity(process.pid, cores)
            self._processes.add(process)
            if self.stopping.is_set():
                process.terminate()
            code = process.wait()
            self._processes.discard(process)
        if code in (128 + signal.SIGTERM, 128 + signal.SIGINT, -signal.SIGTERM, -signal.SIGINT):
            return STOPPED
        if code != 0:
            last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
            return f"exit code {code}: {last[0] if last else 'no output'} ({log})"
        return ""
