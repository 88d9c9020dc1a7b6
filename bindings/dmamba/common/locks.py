"""Files that say which process is at work on something, and keep others from it.

A lock is held with ``flock``: the kernel lets go of it with the process, however that ends, so none
is ever left behind. The file names the holder's process and machine, for messages alone. On a
network file system, flock holds between machines where the server keeps locks (NFS 4 does); where
it keeps none, taking one is an error that says so.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from dmamba import _C

POLL_SECONDS = 0.1
_TRIES = 100  # 5 seconds, for a holder that is no more, or not known yet
_TEXT_BYTES = 512


class BusyError(_C.Error):
    """Another process has the lock; ``holder`` says which one."""

    def __init__(self, holder: str) -> None:
        super().__init__(f"{holder} has the lock")
        self.holder = holder


def take(path: Path) -> int:
    """Takes a lock, and says in its file who has it.

    Args:
        path: The file, which is made where there is none, and stays.

    Returns:
        A descriptor; closing it lets go of the lock.

    Raises:
        BusyError: Another process has it.
        Error: The file system keeps no locks.
        OSError: The file cannot be made.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        for patience in range(_TRIES, -1, -1):
            if _try(descriptor, path):
                break
            # A holder that has not signed yet will in a moment; what a process that was killed had
            # just started lets go in a moment.
            if patience == 0 or not _is_unsettled(descriptor):
                raise BusyError(holder_of(descriptor))
            time.sleep(0.05)
        _sign(descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


@contextlib.contextmanager
def waiting(path: Path, name: str, doing: str) -> Iterator[None]:
    """Holds a lock whose file goes with it; waits for the process that has it, and says so.

    Args:
        path: The lock's file.
        name: Begins the line on standard error.
        doing: What the holder does, such as "downloads it".

    Raises:
        Error: The file system keeps no locks.
    """
    said, unsettled = False, 0
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            if _try(descriptor, path):
                with contextlib.suppress(FileNotFoundError):
                    if os.fstat(descriptor).st_ino == os.stat(path).st_ino:
                        break  # it is not one that its holder has removed meanwhile
                os.close(descriptor)
                continue
            holder, known = holder_of(descriptor), not _is_unsettled(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        unsettled += not known
        if not said and (known or unsettled > _TRIES):
            print(f"{name}: {holder} {doing}; waiting", file=sys.stderr)
            said = True
        time.sleep(POLL_SECONDS)
    try:
        _sign(descriptor)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


@contextlib.contextmanager
def sweep(folder: Path) -> Iterator[None]:
    """Holds a sweep's folder, which is made where there is none.

    Raises:
        Error: Another sweep or search has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = take(folder / ".lock")
    except BusyError as busy:
        raise _C.Error(
            f"{folder}: {busy.holder} is at work on a sweep in this folder; wait for it, stop it, "
            "or choose another folder with --output (output=)"
        ) from None
    try:
        yield
    finally:
        os.close(descriptor)


def holder_of(descriptor: int) -> str:
    """Who has signed a lock's file: "process 123", with the machine's name if it is another."""
    pid, host = _signature(descriptor)
    if not pid:
        return "another process"
    return f"process {pid}" + (f" on {host}" if host not in ("", socket.gethostname()) else "")


def _try(descriptor: int, path: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise _C.Error(
            f"{path}: cannot be locked ({error.strerror}): two processes could write there at "
            "once; choose a folder of a file system that keeps locks"
        ) from None
    return True


def _sign(descriptor: int) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)


def _signature(descriptor: int) -> tuple[str, str]:
    """Process id and host; empty where the holder has not got to signing yet."""
    text = os.pread(descriptor, _TEXT_BYTES, 0).decode(errors="replace")
    pid, _, host = text.strip().partition(" ")
    return (pid, host) if pid.isdigit() else ("", "")


def _is_unsettled(descriptor: int) -> bool:
    """Whether nobody has signed, or a process of this machine that is no more."""
    pid, host = _signature(descriptor)
    here = host in ("", socket.gethostname())
    return not pid or (here and not Path(f"/proc/{pid}").exists())
