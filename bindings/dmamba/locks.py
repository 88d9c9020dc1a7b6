"""The lock of a run's folder: one process at a time trains there."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from dmamba import _C

_TRIES = 100  # 5 seconds


def take(folder: Path) -> int:
    """Takes the folder's lock, which is let go where the descriptor is closed, by a kill as well.

    Returns:
        The descriptor.

    Raises:
        Error: Another process has it; says which one.
        OSError: The lock's file cannot be written.
    """
    handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    for patience in range(_TRIES, -1, -1):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            pid = os.pread(handle, 32, 0).decode(errors="replace").strip() or "unknown"
            # A process that was killed while it started another: that one lets go in a moment.
            if patience > 0 and pid.isdigit() and not Path(f"/proc/{pid}").exists():
                time.sleep(0.05)
                continue
            os.close(handle)
            raise _C.Error(
                f"{folder}: process {pid} is training in this folder; wait for it, stop it, or "
                "choose another folder with --output"
            ) from None
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
    except BaseException:
        os.close(handle)
        raise
    return handle
