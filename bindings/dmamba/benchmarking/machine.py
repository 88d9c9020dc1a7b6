"""The machine that a time is measured on: what it is, and what else runs there meanwhile."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from dmamba import _C

BUSY_SHARE = 0.1  # of the cores; what other programs may use before a time is called disturbed


def processor() -> str:
    """Names the processor."""
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
        return names[0]
    except (OSError, IndexError):
        return platform.processor() or "unknown processor"


def describe(device: torch.device) -> dict[str, Any]:
    """Processor, cores, memory and GPU.

    Args:
        device: Where the model computes.

    Returns:
        A dict with ``processor``, ``cores``, ``usable_cores`` (of this process), ``threads`` (of
        torch), ``instructions``, ``memory_bytes``, ``gpu`` (None on a CPU) and ``load_before``:
        processes that ran or waited, a mean over the minute before.
    """
    cores = os.cpu_count() or 1
    on_gpu = device.type == "cuda"
    return {
        "processor": processor(),
        "cores": cores,
        "usable_cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "instructions": _C.cpu_capability(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpu": torch.cuda.get_device_name(device) if on_gpu else None,
        "load_before": os.getloadavg()[0],
    }


class OtherWork:
    """While it is entered, notes how much of the machine other programs use.

    Attributes:
        cores: That they kept busy, a mean over the time; None where the system doesn't say.
    """

    cores: float | None = None

    def __enter__(self) -> OtherWork:
        self._wall, self._began = time.perf_counter(), _core_seconds()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        ended, elapsed = _core_seconds(), time.perf_counter() - self._wall
        if self._began is not None and ended is not None and elapsed > 0:
            self.cores = max(0.0, ended - self._began) / elapsed

    @property
    def disturbs(self) -> bool:
        """Whether that is more than a little."""
        return self.cores is not None and self.cores > BUSY_SHARE * (os.cpu_count() or 1)


def _core_seconds() -> float | None:
    """Seconds that cores have worked since the machine's start, for others than this process."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    except OSError:
        return None
    # user, nice, system, then idle and waiting, interrupts (two kinds), stolen by other machines
    user, nice, system, _, _, hard, soft, stolen = map(int, fields[1:9])
    ticks = user + nice + system + hard + soft + stolen
    own = os.times()
    return ticks / os.sysconf("SC_CLK_TCK") - own.user - own.system
