"""Training processes beside each other: several at a time, each on its share of the cores.

A run that has finished is kept, one that was stopped continues from its checkpoint, and a signal
stops all of them with checkpoints: whoever asks for the same runs again goes on where it was. So
does the death of whoever has started them, by whatever signal.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path

import torch

from dmamba import _C
from dmamba.common import ranks
from dmamba.common.signals import NotedSignals
from dmamba.runs import Run

STOPPED = "stopped"  # the failure of a run that was asked to stop, or never began for that reason
_STOPS = (signal.SIGTERM, signal.SIGINT)

# The command line in a process that is sent SIGTERM when its parent dies (PR_SET_PDEATHSIG = 1);
# set before the long imports. SIGUSR2 is how Slurm tells all processes of a job that its time is
# nearly over: the job's first process answers that, and stops the training.
_PROGRAM = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, int(signal.SIGTERM), 0, 0, 0)
signal.signal(signal.SIGUSR2, signal.SIG_IGN)
if os.getppid() != int(sys.argv.pop(1)):
    sys.exit(128 + signal.SIGTERM)
from dmamba.commands import main
sys.exit(main())
"""


def visible_gpus() -> list[str]:
    """The GPUs that a child may use, as CUDA_VISIBLE_DEVICES names them."""
    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return [str(index) for index in range(count)]
    return [name.strip() for name in named.split(",")][:count]


def train_arguments(
    config: str, overrides: Sequence[str], folder: Path, evaluate: str = "auto"
) -> list[str]:
    """The ``dmamba train`` command that begins a run, or continues it from its last checkpoint."""
    arguments = ["train", config, *overrides, "--output", str(folder)]
    arguments += ["--no-progress", "--evaluate", evaluate]
    return arguments + ["--resume"] * (folder / "config.yaml").is_file()


def log_of(folder: Path) -> Path:
    """Where the output of a run's process goes: beside the run."""
    return folder.with_name(f"{folder.name}.log")


def start(
    arguments: Sequence[str],
    folder: Path,
    variables: Mapping[str, str] | None = None,
    cwd: str | None = None,
) -> subprocess.Popen[bytes]:
    """Starts one ``dmamba`` command, which stops with a checkpoint when the calling thread ends.

    Args:
        arguments: After the program's name.
        folder: Where the command writes; its output goes into ``FOLDER.log`` beside it.
        variables: Of the environment, beside this process's.
        cwd: Its working directory; None: this process's.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(log_of(folder), "ab") as output:
        return subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(os.getpid()), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **(variables or {})},
            cwd=cwd,
        )


def failure_of(code: int, folder: Path) -> str:
    """What an exit code says of a run: empty, :data:`STOPPED`, or the log's last line.

    Of a run that has come to its end without a result, why.
    """
    if code in [sign for stop in _STOPS for sign in (-stop, 128 + stop)]:
        return STOPPED
    if code == 0:
        run = Run(folder)
        lacks = run.finished and not run.complete
        return f"not evaluated: {run.failed_evaluations()[-1]['error']}" if lacks else ""
    log = log_of(folder)
    last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
    return f"exit code {code}: {last[0] if last else 'no output'} ({log})"


class Runner(NotedSignals):
    """Starts ``dmamba`` processes; while it is entered, SIGINT and SIGTERM stop them all.

    Args:
        jobs: Processes at a time, at least 1. Where several GPUs are visible, each is given one.

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
        gpus = visible_gpus()
        self._shares: queue.SimpleQueue[tuple[set[int], dict[str, str]]] = queue.SimpleQueue()
        for job in range(jobs):
            gpu = {"CUDA_VISIBLE_DEVICES": gpus[job % len(gpus)]} if len(gpus) > 1 else {}
            self._shares.put((set(cores[job::jobs]) or {cores[job % len(cores)]}, gpu))

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
        if Run(folder).complete:
            return ""
        return self.run(train_arguments(config, overrides, folder, evaluate), folder)

    def run(self, arguments: Sequence[str], folder: Path) -> str:
        """Runs one ``dmamba`` command when a share of the cores is free.

        Args:
            arguments: After the program's name.
            folder: Where the command writes; its output goes into ``FOLDER.log`` beside it.

        Returns:
            As :meth:`train`.
        """
        share = self._shares.get()  # as many as there are runs at a time
        try:
            return STOPPED if self.stopping.is_set() else self._run_on(*share, arguments, folder)
        finally:
            self._shares.put(share)

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

    def _run_on(
        self, cores: set[int], gpu: dict[str, str], arguments: Sequence[str], folder: Path
    ) -> str:
        process = start(arguments, folder, gpu)
        # Before it has begun to count them: torch's threads and the workers follow.
        os.sched_setaffinity(process.pid, cores)
        self._processes.add(process)
        if self.stopping.is_set():
            process.terminate()
        code = process.wait()
        self._processes.discard(process)
        return failure_of(code, folder)
