"""Files and folders that are there whole or not at all, whatever kills who writes them.

What is being written has a name of its own beside its target, ``.dmamba-HOST-PROCESS-NUMBER.tmp``,
until it is on the disk. A killed process leaves it; the next one that writes into the same folder
removes it, and a run that is continued removes what any machine has left in its folder.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dmamba import _C

_TEMPORARY = re.compile(r"\.dmamba-(?P<host>.+)-(?P<pid>\d+)-\d+\.tmp(\.\w+)?")
_numbers = itertools.count()


def write_text(path: Path, text: str) -> None:
    """Replaces a file.

    Raises:
        OSError: It cannot be written; names the file, which is left as it was.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode())


def write_json(path: Path, value: Any) -> None:
    """Replaces a JSON file; arrays become lists, and NaN is refused."""
    write_text(path, json.dumps(value, indent=2, default=_plain, allow_nan=False) + "\n")


RUN_REMEDY = (
    "Remove the file and continue its run with dmamba train --resume RUN, which writes it again, "
    "or remove the run's folder"
)


def read_json(path: Path, remedy: str = RUN_REMEDY) -> Any:
    """The content of a JSON file, a run's if ``remedy`` says no other thing to do.

    Raises:
        DataError: It is damaged; the message says which file, and what to do.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # of JSON, or of UTF-8
        raise _C.DataError(f"{path}: damaged, not JSON ({error}). {remedy}") from None


@contextlib.contextmanager
def replacing(path: Path, suffix: str = "") -> Iterator[Path]:
    """Gives the name under which a file is to be written; at the end it is flushed and renamed.

    Args:
        path: What it replaces.
        suffix: Of the name, for those who look at it, such as ``.png``.

    Raises:
        OSError: It cannot be written; names ``path``, which is left as it was.
    """
    temporary = temporary_beside(path, suffix)
    with naming(path):
        try:
            yield temporary
            flush(temporary)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        flush(path.parent)


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """The same for a folder, which is given empty; who writes files in it flushes them."""
    temporary = temporary_beside(path)
    with naming(path):
        try:
            temporary.mkdir(parents=True)
            yield temporary
            for folder in (temporary, *(part for part in temporary.rglob("*") if part.is_dir())):
                flush(folder)
            _C.replace_folder(os.fspath(temporary), os.fspath(path))
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Has an error of the operating system within say which file it was, and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        advice = f"{error.strerror}; make room there, or mend what is wrong, and try again"
        raise OSError(error.errno, advice, os.fspath(path)) from error


def temporary_beside(path: Path, suffix: str = "") -> Path:
    """A name for what is to become ``path``; removes what killed processes have left beside it."""
    remove_abandoned(path.parent)
    number = next(_numbers)
    return path.parent / f".dmamba-{socket.gethostname()}-{os.getpid()}-{number}.tmp{suffix}"


def remove_abandoned(folder: Path, *, of_all: bool = False) -> None:
    """Removes what killed processes of this machine were writing in a folder.

    Args:
        folder: Not those within it. It need not be there.
        of_all: Whether no other process can be writing here, so that all of it goes.
    """
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            match = _TEMPORARY.fullmatch(entry.name)
            if match is None:
                continue
            ours = match["host"] == socket.gethostname()
            if not (of_all or (ours and not _lives(int(match["pid"])))):
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


def flush(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _plain(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"cannot write {type(value).__name__} as JSON")
