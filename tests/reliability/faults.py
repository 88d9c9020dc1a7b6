"""Faults on demand for programs of this machine: builds faults.c, arms it, and says what it did.

The process that imports this runs with the library preloaded (:func:`preload` sees to it); a forked
child arms it for itself, the programs that the child starts are armed through their environment.
"""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

COUNT, KILL, KILL_HALF, FULL, FAIL = range(5)
NAMES = {
    KILL: "killed before",
    KILL_HALF: "killed after half of",
    FULL: "full from",
    FAIL: "EIO at",
}
_STATE = struct.Struct("ll32s960s")


def preload() -> None:
    """Starts this program again with the library, unless it has been."""
    if "FAULTS_LIBRARY" in os.environ:
        return
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    library = folder / "faults.so"
    source = Path(__file__).with_name("faults.c")
    compiler = os.environ.get("CC", "cc")
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", library, source, "-ldl"],
        check=True,
    )
    added = {
        "FAULTS_LIBRARY": str(library),
        "LD_PRELOAD": " ".join([str(library), *os.environ.get("LD_PRELOAD", "").split()]),
        # One thread: a process with others cannot be forked safely, and trials run side by side.
        "OMP_NUM_THREADS": "1",
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # nor one that has initialised CUDA
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **added})


@dataclass(frozen=True)
class Fault:
    """What is to happen below a folder.

    Attributes:
        mode: One of the constants above.
        at: At which counted call, from 1.
    """

    mode: int = COUNT
    at: int = 0

    def arm(self, folder: Path, state: Path, trace: Path | None = None) -> None:
        """Arms this process and those that it will start.

        Args:
            folder: What is watched, and all below it.
            state: A file for :func:`read_state`; made.
            trace: A file that gets a line a call.
        """
        os.environ["FAULTS"] = f"{folder}:{state}:{self.mode}:{self.at}"
        os.environ["FAULTS_TRACE"] = str(trace or "")
        code = ctypes.CDLL(None).faults_arm(
            os.fsencode(folder),
            os.fsencode(state),
            self.mode,
            ctypes.c_long(self.at),
            os.fsencode(trace or ""),
        )
        if code != 0:
            raise OSError(f"{state}: cannot be shared")

    def __str__(self) -> str:
        return f"{NAMES[self.mode]} call {self.at}"


@dataclass(frozen=True)
class Seen:
    """What has happened so far.

    Attributes:
        count: Calls counted.
        hits: Faults.
        call: What the first one hit: a function's name.
        path: Its file.
    """

    count: int
    hits: int
    call: str
    path: str


def read_state(state: Path) -> Seen:
    """What a state file says; nothing where its program was killed before it was there."""
    content = state.read_bytes()[: _STATE.size] if state.exists() else b""
    if len(content) < _STATE.size:
        return Seen(0, 0, "", "")
    count, hits, call, path = _STATE.unpack(content)
    return Seen(count, hits, call.split(b"\0")[0].decode(), os.fsdecode(path.split(b"\0")[0]))
