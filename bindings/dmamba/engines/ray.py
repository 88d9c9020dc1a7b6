"""Every run a task of a Ray cluster, which starts it where its CPUs and its part of a GPU are free.

Run folders, data and the program are on file systems that all nodes see under the same paths.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from dmamba import _C
from dmamba.engines.base import POLL_SECONDS, Engine, Training
from dmamba.engines.local import JOBS_ON_A_GPU
from dmamba.engines.runner import STOPPED

OPTIONS = ("address", "cpus", "gpus")
# Between two requests to stop: Python drops an exception that comes in a destructor, and Ray's
# request is one.
ASK_SECONDS = 10.0


def _train(run: Training) -> str:
    """Trains in a worker, in whose main thread ray.cancel raises KeyboardInterrupt.

    It does by a simulated SIGINT. What a shell starts with ``&``, or nohup, ignores that signal,
    and so does each worker of a cluster that was started in such a way: nothing would stop a run.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return run.run()
    finally:
        signal.signal(signal.SIGINT, before)


class Ray(Engine):
    """The engine of a Ray cluster.

    Args:
        options: ``address`` of the cluster (RAY_ADDRESS, else one is started on this machine),
            ``cpus`` and ``gpus`` of a run (of a quarter of a GPU and one CPU where the cluster has
            GPUs and ``device`` is not ``cpu``; else of two CPUs, or one where no node has two).
        jobs: Runs at a time at most; None: as many as the resources allow.
        device: The runs' ``training.device``.
        folder: The sweep's.
    """

    def __init__(
        self, options: Mapping[str, Any], jobs: int | None, device: str, folder: Path
    ) -> None:
        super().__init__()
        unknown = [name for name in options if name not in OPTIONS]
        if unknown:
            raise _C.ConfigError(
                f"engine ray has no option {', '.join(unknown)}; it has {', '.join(OPTIONS)}"
            )
        for name, least in (("cpus", 1), ("gpus", 0)):
            value = options.get(name, least)
            if isinstance(value, bool) or not isinstance(value, int | float) or value < least:
                raise _C.ConfigError(
                    f"engine ray: {name} must be a number of at least {least}, got {value!r}"
                )
        try:
            import ray
        except ImportError as error:
            raise _C.ConfigError(
                f"engine ray needs the package ray ({error}): pip install 'dmamba[sweep]'"
            ) from None
        self._ray = ray
        self._options, self._jobs, self._device = dict(options), jobs, device
        self._starts = not ray.is_initialized()

    def __enter__(self) -> Ray:
        if self._starts:
            self._connect()
        self.cpus, self.gpus = self._resources()
        super().__enter__()  # last: Ray has handlers of its own
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, trace)
        if self._starts:
            self._ray.shutdown()

    def describe(self) -> str:
        """What each run is given."""
        most = "" if self._jobs is None else f", {self._jobs} at a time at most"
        return f"on Ray with {self.cpus:g} CPUs and {self.gpus:g} GPUs each{most}"

    def run_all(self, runs: Sequence[Training], on_end: Callable[[int, str], None]) -> list[str]:
        """Hands them to Ray, and waits; what Ray loses is not tried again."""
        task = self._ray.remote(_train).options(
            num_cpus=self.cpus, num_gpus=self.gpus, max_retries=0
        )
        failures = [STOPPED] * len(runs)
        todo = list(range(len(runs)))[::-1]
        open_runs: dict[Any, int] = {}
        again = 0.0  # when those that have not stopped are asked once more
        try:
            while open_runs or (todo and not self.stopping.is_set()):
                while (
                    todo
                    and not self.stopping.is_set()
                    and len(open_runs) < (self._jobs or len(runs))
                ):
                    index = todo.pop()
                    open_runs[task.remote(runs[index])] = index
                if self.stopping.is_set() and time.monotonic() >= again:
                    again = time.monotonic() + ASK_SECONDS
                    self._cancel(open_runs)
                ended, _ = self._ray.wait(list(open_runs), timeout=POLL_SECONDS)
                for reference in ended:
                    index = open_runs.pop(reference)
                    failures[index] = self._failure(reference, runs[index])
                    on_end(index, failures[index])
        except BaseException:
            self._cancel(open_runs)
            self._ray.wait(list(open_runs), num_returns=len(open_runs))
            raise
        for index in reversed(todo):
            on_end(index, STOPPED)
        return failures

    def _cancel(self, references: Mapping[Any, int]) -> None:
        for reference in references:
            self._ray.cancel(reference)

    def _failure(self, reference: Any, run: Training) -> str:
        try:
            return str(self._ray.get(reference))
        except self._ray.exceptions.TaskCancelledError:
            return STOPPED
        except self._ray.exceptions.RayError as error:
            if run.finished:
                return ""
            lines = [line for line in str(error).splitlines() if line.strip()]
            what = lines[0] if lines else "no message"
            return f"lost by Ray: {type(error).__name__}: {what}"

    def _connect(self) -> None:
        address = self._options.get("address") or os.environ.get("RAY_ADDRESS") or "local"
        if address == "local":
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        more = {"include_dashboard": False} if address == "local" else {}
        try:
            self._ray.init(address, log_to_driver=False, logging_level="error", **more)
        except (OSError, RuntimeError, ValueError, self._ray.exceptions.RayError) as error:
            raise _C.ConfigError(
                f"engine ray: no cluster at address {address!r}: {error}; `ray status` shows "
                "whether it is up, and --ray address=local starts one on this machine"
            ) from None

    def _resources(self) -> tuple[float, float]:
        """CPUs and GPUs of a run, which some node has."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        on_gpu = self._device != "cpu" and any(node.get("GPU", 0) for node in nodes)
        gpus = float(self._options.get("gpus", 1 / JOBS_ON_A_GPU if on_gpu else 0))
        most = max((node.get("CPU", 0) for node in nodes), default=0)
        cpus = float(self._options.get("cpus", 1 if gpus else max(1, min(2, most))))
        if not any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
            shown = ", ".join(f"{n.get('CPU', 0):g} and {n.get('GPU', 0):g}" for n in nodes)
            raise _C.ConfigError(
                f"engine ray: a run is to have {cpus:g} CPUs and {gpus:g} GPUs, and no node has as "
                f"many (the nodes' CPUs and GPUs: {shown or 'none'}); choose with --ray cpus=,gpus="
            )
        return cpus, gpus
