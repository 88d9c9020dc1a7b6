"""Downloading Minari's datasets, through the minari package.

minari downloads into the place where datasets are looked up, and what an interrupted download
leaves there looks like a dataset. So it is sent to a hidden folder beside, and a dataset gets its
place when it is whole and has been read.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from dmamba import _C
from dmamba.common import locks
from dmamba.data import minari_folders, minari_sets

_PIP = "pip install 'minari[hf]' pillow"


def obtain(name: str, *, progress: bool = True) -> Path:
    """Downloads a dataset into :func:`dmamba.data.minari_folders.root`, unless it is there.

    Args:
        name: Minari's id, such as ``mujoco/hopper/medium-v0``.
        progress: Whether to show what minari shows, on standard error.

    Returns:
        The dataset's folder.

    Raises:
        DataError: minari is missing, the server cannot be reached or has no such dataset, or what
            came is not usable; the message says what to do.
    """
    target = minari_folders.root() / name
    partial = minari_folders.root() / minari_folders.PARTIAL / name.replace("/", "--")
    try:
        partial.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _C.DataError(
            f"{name}: {partial} cannot be made ({error.strerror}); let MINARI_DATASETS_PATH name "
            "a folder that can"
        ) from None
    try:
        with locks.waiting(partial.with_suffix(".lock"), name, "downloads it"):
            if not target.exists():  # another process may have been first
                _fetch(name, partial, target, progress)
                _accept(name, partial, target)
    finally:
        for folder in (partial, partial.parent):
            with contextlib.suppress(OSError):  # unless there is something in it
                folder.rmdir()
    return target


def _fetch(name: str, partial: Path, target: Path, progress: bool) -> None:
    try:
        import minari
    except ImportError as error:
        raise _C.DataError(
            f"{name} is not in {minari_folders.root()}, and its download needs minari ({error}): "
            f"{_PIP}"
        ) from error
    try:
        with _datasets_path(partial), _standard_output(progress):
            for found in minari.list_remote_datasets(prefix=name).values():
                if found.get("dataset_id") == name:  # refused before anything comes
                    minari_folders.check_spaces(found, f"{name}: what the server says of it")
            # Forced, or it would take what is there already for the whole.
            minari.download_dataset(name, force_download=True)
    except _C.Error:
        raise
    except ImportError as error:  # which says what to install
        raise _C.DataError(f"{name}: minari lacks what it downloads with: {error}") from error
    except Exception as error:  # each of minari's servers has errors of its own
        reason = str(error).strip().splitlines()
        raise _C.DataError(
            f"{name} is not in {minari_folders.root()}, and minari cannot download it: "
            f"{type(error).__name__}: {reason[0] if reason else 'it gives no reason'}. Try again "
            f"later: what has come is kept; or let MINARI_REMOTE name another server; "
            f"or run `minari download {name}` elsewhere and copy the folder to {target}"
        ) from error


def _accept(name: str, partial: Path, target: Path) -> None:
    """Reads what has come, and gives it its place; drops what is not usable."""
    come = partial / name
    try:
        if not come.is_dir():
            raise _C.DataError("there is no folder of that name in what came")
        minari_sets.load(come)
    except _C.DataError as error:
        shutil.rmtree(partial)
        raise _C.DataError(f"{name}: minari downloaded what is not usable: {error}") from error
    target.parent.mkdir(parents=True, exist_ok=True)
    for file in partial.rglob("namespace_metadata.json"):
        place = minari_folders.root() / file.relative_to(partial)
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, place)
    os.rename(come, target)
    shutil.rmtree(partial)


@contextlib.contextmanager
def _datasets_path(folder: Path) -> Iterator[None]:
    """Lets minari work in a folder; it knows of no other way to say so."""
    before = os.environ.get("MINARI_DATASETS_PATH")
    os.environ["MINARI_DATASETS_PATH"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["MINARI_DATASETS_PATH"]
        else:
            os.environ["MINARI_DATASETS_PATH"] = before


@contextlib.contextmanager
def _standard_output(shown: bool) -> Iterator[None]:
    """Sends what minari prints to standard error, or nowhere."""
    with contextlib.ExitStack() as stack:
        if shown:
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        else:
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        yield
