"""Worker processes that step a share of the environments each, over shared memory.

Nothing is pickled per step: actions, observations, rewards and flags lie in one array that all
processes map, and a worker is woken and answers through eventfds. Workers are programs of their
own (``slots.py``), not forks: a fork of a process with CUDA or OpenMP threads is not safe, and a
spawned child of multiprocessing would import the caller's main module, and torch with it.

A worker that dies, or whose environment takes too long, is killed and replaced. That costs the
episode in whose slot it was at work; its other slots' episodes have to be played again.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import pickle
import select
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import IO, Any

import cloudpickle
import numpy as np

from dmamba import _C
from dmamba.envs import slots
from dmamba.envs.failures import Failure, Guard
from dmamba.envs.host import python_environment

# A worker has one core to itself; the thread pools of BLAS would only be in the others' way.
_ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
_CLOSE_SECONDS = 2.0
_LOOK_MILLISECONDS = 250  # between two looks at the clock while workers are waited for
_START_SECONDS = 120.0  # until a worker has begun with what it was woken for


@dataclass(eq=False)
class _Worker:
    process: subprocess.Popen[bytes]
    go: int  # eventfds
    done: int
    first: int
    last: int
    said: int  # bytes of the log that were written before it started
    rest: bytes = b""  # of a line that it has not yet told to its end

    @property
    def report(self) -> IO[bytes]:
        """What it tells of failures."""
        assert self.process.stdout is not None
        return self.process.stdout


class Processes:
    """What :class:`dmamba.envs.slots.Slots` does, by several processes at a time.

    To be used, and closed, in one thread: workers are killed when the thread ends that has started
    them.

    Args:
        spec: gymnasium's EnvSpec.
        max_episode_steps: As for :func:`dmamba.envs.slots.build`.
        row_type: Of the slots.
        num_envs: Slots.
        workers: Processes, at most one a slot.
        guard: Of them.

    Attributes:
        rows: (num_envs,) of ``row_type``, shared with the workers.
        failures: By slot, what the last :meth:`work` has ended.
        replaced: Workers that have been replaced.
    """

    def __init__(
        self,
        spec: Any,
        max_episode_steps: int,
        row_type: np.dtype,
        num_envs: int,
        workers: int,
        guard: Guard | None = None,
    ) -> None:
        self._guard = guard or Guard()
        self.failures: dict[int, Failure] = {}
        self.replaced = 0
        with contextlib.ExitStack() as opened:
            memory = os.memfd_create("dmamba-slots")
            opened.callback(os.close, memory)
            os.truncate(memory, num_envs * row_type.itemsize)
            self.rows = np.frombuffer(mmap.mmap(memory, 0), row_type)
            # What workers say on standard error: shown only if one dies of it. MuJoCo warns once
            # per environment about the models of some tasks.
            self._log: IO[bytes] = opened.enter_context(tempfile.TemporaryFile())
            self._workers: list[_Worker] = []
            self._handles: dict[int, _Worker] = {}  # what is polled
            opened.callback(self._stop)
            self._poll = select.poll()
            self._setup = {
                "spec": cloudpickle.dumps(spec),
                "max_episode_steps": max_episode_steps,
                "row_type": row_type,
                "memory": memory,
                "parent": os.getpid(),
            }
            bounds = np.linspace(0, num_envs, workers + 1).astype(int).tolist()
            for first, last in zip(bounds[:-1], bounds[1:], strict=True):
                self._workers.append(self._start(first, last))
            self._opened = opened.pop_all()

    def work(self) -> None:
        """Does what each row orders; workers all of whose rows rest are not woken.

        Raises:
            Error: Workers cannot make the environment known to them.
        """
        self.failures = {}
        rows = self.rows
        rows["begun"] = 0.0
        busy, started = np.flatnonzero(rows["order"]), time.monotonic()
        waiting: dict[int, _Worker] = {}
        for worker in self._workers:
            found = np.searchsorted(busy, worker.first)
            if found < len(busy) and busy[found] < worker.last:
                os.eventfd_write(worker.go, 1)
                waiting[worker.done] = worker
        while waiting:
            events = [handle for handle, _ in self._poll.poll(_LOOK_MILLISECONDS)]
            # Before any is replaced: the next to be opened may have the number of one of these.
            heard = {self._handles[handle]: None for handle in events}
            for handle in events:
                if waiting.pop(handle, None):
                    os.eventfd_read(handle)
            for worker in heard:
                if not self._hear(worker):
                    waiting.pop(worker.done, None)
                    self._replace(worker, self._died(worker))
            if not events:
                self._guard.check()
            for worker in self._overdue(waiting, started):
                del waiting[worker.done]
                self._replace(worker, self._hung(worker))

    def close(self) -> None:
        """Ends the workers; may be called again."""
        self._opened.close()

    def _start(self, first: int, last: int) -> _Worker:
        go, done = os.eventfd(0), os.eventfd(0)
        process = subprocess.Popen(
            [sys.executable, slots.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            pass_fds=(self._setup["memory"], done, go),
            env={**python_environment(), **_ONE_THREAD},
            start_new_session=True,  # what an environment has started ends with it
        )
        assert process.stdin is not None and process.stdout is not None
        worker = _Worker(process, go, done, first, last, os.fstat(self._log.fileno()).st_size)
        os.set_blocking(worker.report.fileno(), False)
        for handle in (worker.report.fileno(), done):
            self._poll.register(handle, select.POLLIN)
            self._handles[handle] = worker
        setup = {**self._setup, "done": done, "go": go, "first": first, "last": last}
        with contextlib.suppress(BrokenPipeError):  # it died at once: work() will say so
            pickle.dump(setup, process.stdin)
            process.stdin.flush()
        return worker

    def _hear(self, worker: _Worker) -> bool:
        """Takes what a worker has told of failures; False: it has died."""
        while True:
            try:
                told = os.read(worker.report.fileno(), 1 << 16)
            except BlockingIOError:
                return True
            if not told:
                return False
            *lines, worker.rest = (worker.rest + told).split(b"\n")
            for line in lines:
                self._note(*json.loads(line))

    def _note(self, slot: int | None, what: str) -> None:
        if slot is None:
            raise _C.Error(
                f"a worker process cannot step the environment: it {what}; workers=1 steps it in "
                "this process"
            )
        self.failures[slot] = Failure(what)

    def _pending(self, worker: _Worker) -> int | None:
        """The slot in whose order a worker is, or was when it died; None: in none."""
        rows = self.rows[worker.first : worker.last]
        # Of a copy: numpy counts first, and raises where a worker has written in between.
        left = np.flatnonzero(rows["order"].copy())
        return worker.first + int(left[0]) if len(left) and rows["begun"][left[0]] > 0 else None

    def _overdue(self, waiting: dict[int, _Worker], started: float) -> list[_Worker]:
        """Workers that have been at one call for too long."""
        if not self._guard.timeout:
            return []
        now, found = time.monotonic(), []
        for worker in waiting.values():
            slot = self._pending(worker)
            if slot is None:
                late = now - started > max(_START_SECONDS, self._guard.timeout)
            else:
                late = now - self.rows["begun"][slot] > self._guard.timeout
            if late:
                found.append(worker)
        return found

    def _hung(self, worker: _Worker) -> str:
        slot = self._pending(worker)
        order = slots.REST if slot is None else int(self.rows["order"][slot])
        call = {slots.STEP: "step", slots.RESET: "reset"}.get(order, "start")
        return (
            f"hung: {call} took longer than {self._guard.timeout:g} s, and its worker process "
            f"{worker.process.pid} was killed"
        )

    def _died(self, worker: _Worker) -> str:
        code = worker.process.wait()
        end = f"of {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        what = f"died {end}: its worker process {worker.process.pid}"
        handle = self._log.fileno()
        since = max(worker.said, os.fstat(handle).st_size - 4096)
        said = os.pread(handle, 4096, since).decode(errors="replace").strip().splitlines()
        return what + (f" said {said[-1]!r}" if said else " said nothing")

    def _replace(self, worker: _Worker, what: str) -> None:
        """Starts another worker for the same slots, whose episodes are lost."""
        self._kill(worker)
        self._hear(worker)  # what it had still to tell
        culprit = self._pending(worker)
        for slot in range(worker.first, worker.last):
            row = self.rows[slot]
            if row["order"] == slots.REST and row["ended"]:
                continue  # its episode had ended before, or just now
            if slot not in self.failures:
                self.failures[slot] = Failure(what, slot != culprit, culprit is None)
        self.rows["order"][worker.first : worker.last] = slots.REST
        self._release(worker)
        self._workers[self._workers.index(worker)] = self._start(worker.first, worker.last)
        self.replaced += 1

    def _kill(self, worker: _Worker) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.process.pid, signal.SIGKILL)
        worker.process.wait()

    def _release(self, worker: _Worker) -> None:
        """Closes what was open for a worker that has ended."""
        for handle in (worker.report.fileno(), worker.done):
            self._poll.unregister(handle)
            del self._handles[handle]
        assert worker.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            worker.process.stdin.close()
        worker.report.close()
        os.close(worker.go)
        os.close(worker.done)

    def _stop(self) -> None:
        for worker in self._workers:
            assert worker.process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                worker.process.stdin.close()
        deadline = time.monotonic() + _CLOSE_SECONDS
        for worker in self._workers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(max(0.0, deadline - time.monotonic()))
            self._kill(worker)
            self._release(worker)
        self._workers.clear()
