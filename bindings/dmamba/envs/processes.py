"""Worker processes that step a share of the environments each, over shared memory.

Nothing is pickled per step: actions, observations, rewards and flags lie in one array that all
processes map, and a worker is woken and answers through an eventfd. Workers are programs of their
own (``slots.py``), not forks: a fork of a process with CUDA or OpenMP threads is not safe, and a
spawned child of multiprocessing would import the caller's main module, and torch with it.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import pickle
import select
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import cloudpickle
import numpy as np

from dmamba.envs import slots
from dmamba.envs.slots import SlotError

# A worker has one core to itself; the thread pools of BLAS would only be in the others' way.
_ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
_CLOSE_SECONDS = 2.0


def usable_cores(root: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores that this process may keep busy: its affinity, and the control group's quota."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = (root / "cpu.max").read_text().split()
        return cores if quota == "max" else max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no such control group
        return cores


def python_environment() -> dict[str, str]:
    """The environment for a Python that finds the modules that this one finds."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    go: int  # eventfd
    first: int
    last: int


class Processes:
    """What :class:`dmamba.envs.slots.Slots` does, by several processes at a time.

    Args:
        spec: gymnasium's EnvSpec.
        max_episode_steps: As for :func:`dmamba.envs.slots.build`.
        row_type: Of the slots.
        num_envs: Slots.
        workers: Processes, at most one a slot.

    Attributes:
        rows: (num_envs,) of ``row_type``, shared with the workers.
    """

    def __init__(
        self, spec: Any, max_episode_steps: int, row_type: np.dtype, num_envs: int, workers: int
    ) -> None:
        with contextlib.ExitStack() as opened:
            memory = os.memfd_create("dmamba-slots")
            opened.callback(os.close, memory)
            os.truncate(memory, num_envs * row_type.itemsize)
            self.rows = np.frombuffer(mmap.mmap(memory, 0), row_type)
            self._done = os.eventfd(0)
            opened.callback(os.close, self._done)
            # What workers say on standard error: shown only if one dies of it. MuJoCo warns once
            # per environment about the models of some tasks.
            self._log: IO[bytes] = opened.enter_context(tempfile.TemporaryFile())
            self._workers: list[_Worker] = []
            opened.callback(self._stop)
            self._poll = select.poll()
            self._poll.register(self._done, select.POLLIN)
            setup = {
                "spec": cloudpickle.dumps(spec),
                "max_episode_steps": max_episode_steps,
                "row_type": row_type,
                "memory": memory,
                "done": self._done,
            }
            bounds = np.linspace(0, num_envs, workers + 1).astype(int).tolist()
            for first, last in zip(bounds[:-1], bounds[1:], strict=True):
                self._start(setup, first, last)
            self._opened = opened.pop_all()

    def work(self) -> None:
        """Does what each row orders; workers all of whose rows rest are not woken.

        Raises:
            SlotError: An environment raised, or a worker died.
        """
        busy = np.flatnonzero(self.rows["order"])
        waiting = 0
        for worker in self._workers:
            found = np.searchsorted(busy, worker.first)
            if found < len(busy) and busy[found] < worker.last:
                os.eventfd_write(worker.go, 1)
                waiting += 1
        while waiting:
            for handle, _ in self._poll.poll():
                if handle != self._done:
                    self._fail(handle)
                waiting -= os.eventfd_read(self._done)

    def close(self) -> None:
        """Ends the workers; may be called again."""
        self._opened.close()

    def _start(self, setup: dict[str, Any], first: int, last: int) -> None:
        go = os.eventfd(0)
        process = subprocess.Popen(
            [sys.executable, slots.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            pass_fds=(setup["memory"], setup["done"], go),
            env={**python_environment(), **_ONE_THREAD},
        )
        self._workers.append(_Worker(process, go, first, last))
        assert process.stdin is not None and process.stdout is not None
        self._poll.register(process.stdout, select.POLLIN)
        with contextlib.suppress(BrokenPipeError):  # it died at once: work() will say so
            pickle.dump({**setup, "go": go, "first": first, "last": last}, process.stdin)
            process.stdin.flush()

    def _fail(self, handle: int) -> None:
        """Raises what the worker with this standard output has to report, or that it died."""
        worker = next(w for w in self._workers if w.process.stdout.fileno() == handle)  # type: ignore[union-attr]
        assert worker.process.stdout is not None
        try:
            slot, what = pickle.load(worker.process.stdout)
        except (EOFError, pickle.UnpicklingError):
            code = worker.process.wait()
            busy = np.flatnonzero(self.rows["order"][worker.first : worker.last])
            slot = worker.first + int(busy[0] if len(busy) else 0)
            end = f"of {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
            what = f"died {end}: its worker process {worker.process.pid}"
            self._log.seek(0)
            said = self._log.read().decode(errors="replace").strip().splitlines()
            what += f" said {said[-1]!r}" if said else " said nothing"
        raise SlotError(slot, what)

    def _stop(self) -> None:
        for worker in self._workers:
            assert worker.process.stdin is not None and worker.process.stdout is not None
            with contextlib.suppress(BrokenPipeError):
                worker.process.stdin.close()
        for worker in self._workers:
            try:
                worker.process.wait(_CLOSE_SECONDS)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
            worker.process.stdout.close()  # type: ignore[union-attr]
            os.close(worker.go)
        self._workers.clear()
