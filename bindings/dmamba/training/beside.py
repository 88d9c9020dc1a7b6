"""Evaluation beside the training: a process of its own evaluates snapshots, one after the other.

The training hands over a folder with a step's parameters and goes on; results come back in that
order. The numbers are those of an evaluation that stops the training at the same step: the same
parameters, device, threads and seeds. The process is a program of its own, not a fork: CUDA does
not survive one.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

import torch

from dmamba import _C, envs, evaluation, nn
from dmamba.envs import ids
from dmamba.evaluation import suites

CORES_SHARE = 0.75  # of the environments' workers; the rest stays with the training
_CLOSE_SECONDS = 5.0
_PROGRAM = "from dmamba.training.beside import main; raise SystemExit(main())"


class Evaluator:
    """The process, seen from the training. It starts with the first snapshot.

    Args:
        device: Where the model computes: ``cpu`` or ``cuda``.
        settings: Arguments of :func:`dmamba.evaluation.evaluate_model` after the first two.
    """

    def __init__(self, device: str, settings: dict[str, Any]) -> None:
        self._device = device
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Any = None
        self._waiting: deque[Path] = deque()

    @property
    def pending(self) -> int:
        """Snapshots whose results have not come back."""
        return len(self._waiting)

    def submit(self, snapshot: Path) -> None:
        """Has a checkpoint folder evaluated; it must stay until its result is back."""
        if self._process is None:
            self._start()
        self._waiting.append(snapshot)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # results() will say so
            self._connection.send(snapshot.absolute())

    def results(self, wait_seconds: float = 0.0) -> Iterator[tuple[Path, dict[str, Any] | str]]:
        """Yields snapshots with what has come back; waits for the first as long as told.

        In a result's place there may be what went wrong. A process that has died is replaced.
        """
        while self._waiting and self._connection.poll(wait_seconds):
            try:
                result = self._connection.recv()
            except (EOFError, ConnectionResetError):
                assert self._process is not None
                result = f"its process ended with exit code {self._process.wait()}"
                self._restart()
            yield self._waiting.popleft(), result
            wait_seconds = 0.0

    def close(self) -> None:
        """Ends the process; what it has not evaluated, it won't."""
        if self._process is None:
            return
        self._connection.close()
        if self._waiting:
            self._process.terminate()
        try:
            self._process.wait(_CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _restart(self) -> None:
        """Another process for the snapshots after the one that the last has died of."""
        self._connection.close()
        self._start()
        for snapshot in list(self._waiting)[1:]:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self._connection.send(snapshot.absolute())

    def _start(self) -> None:
        from dmamba.envs.host import python_environment

        self._connection, theirs = Pipe()
        self._process = subprocess.Popen(
            # Not -m, which would find this module imported by its package already, and warn.
            [sys.executable, "-c", _PROGRAM, str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            env=python_environment(),
            start_new_session=True,  # signals to the group are the training's to handle
        )
        theirs.close()
        self._connection.send(
            {
                "device": self._device,
                "threads": torch.get_num_threads(),
                "spec": _pickled_spec(self._settings["environment"]),
                "settings": self._settings,
            }
        )


def _pickled_spec(environment: str) -> bytes | None:
    """Gymnasium's spec of an environment, which may be known to the training's process only.

    None for a game, which gymnasium does not make.
    """
    if envs.is_game(environment):
        return None
    import cloudpickle  # gymnasium's

    name, _ = ids.split(environment)
    return cloudpickle.dumps(suites.import_vector().find_spec(name))


def _register(pickled: bytes) -> None:
    import gymnasium

    spec = pickle.loads(pickled)
    gymnasium.registry.setdefault(spec.id, spec)


def _serve(connection: Any) -> None:
    """Evaluates what comes until nothing more does, or the training has died."""
    from dmamba.envs.host import usable_cores

    parent = os.getppid()

    def check() -> None:
        if os.getppid() != parent:
            raise SystemExit(1)

    setup = connection.recv()
    settings = setup["settings"]
    torch.set_num_threads(setup["threads"])
    most = max(1, int(CORES_SHARE * usable_cores()))
    if setup["spec"] is not None:
        _register(setup["spec"])
    while True:
        snapshot = connection.recv()
        result: dict[str, Any] | str
        try:
            model, info = nn.load(snapshot, setup["device"])
            result = evaluation.evaluate_model(
                model, info, **settings, most_workers=most, progress=False, check=check
            )
        except Exception as error:  # the next one may fare better
            result = explain(error)
        connection.send(result)


def explain(error: Exception) -> str:
    """Why an evaluation failed."""
    return str(error) if isinstance(error, _C.Error) else f"{type(error).__name__}: {error}"


def main() -> int:
    """The process; its argument is the descriptor of the connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the training's to handle
    connection = Connection(int(sys.argv[1]))
    try:
        _serve(connection)
    except (EOFError, BrokenPipeError):  # the training has ended
        return 0
    except Exception as error:
        connection.send(explain(error))
    return 1
