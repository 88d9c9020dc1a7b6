"""What this process may use, and hands on to its children; needs no gymnasium."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path


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
