"""Opening and closing datasets over and over: no file, no mapping, no HDF5 object may be left."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from measures import complaints, host, table

import dmamba

DATA = Path(__file__).parents[1] / "data"
SAMPLES = 20
WARM_UP = 0.1  # of the openings
_ALL_OBJECTS = 0x1F  # H5F_OBJ_ALL, of files and of what is open in them


def run(times: int, readers: list[str] | None, share: float) -> int:
    """Opens each reader's dataset so often; the exit status."""
    unknown = set(readers or ()) - set(READERS)
    if unknown:
        print(f"no reader {', '.join(sorted(unknown))}; there are {', '.join(READERS)}")
        return 2
    failed = []
    home = Path(tempfile.mkdtemp(prefix="dmamba-load-"))
    os.environ.update(DMAMBA_DATA=str(home / "data"), MINARI_DATASETS_PATH=str(home / "minari"))
    try:
        for name in readers or READERS:
            folder = home / name
            folder.mkdir()
            found = _repeat(name, READERS[name](folder), times, share)
            failed += [name] if found else []
    finally:
        shutil.rmtree(home)
    print(f"failed: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


def _repeat(name: str, open_once: Callable[[], object], times: int, share: float) -> list[str]:
    started, samples, first = time.perf_counter(), [], int(times * WARM_UP)
    for number in range(times):
        open_once()
        if number >= first and (number - first) % max(1, (times - first) // SAMPLES) == 0:
            gc.collect()
            samples.append(host() | {"hdf5_objects": hdf5_objects()})
    seconds = time.perf_counter() - started
    print(f"-- {name}: {times:,} times in {seconds:.0f} s, {seconds / times * 1e3:.2f} ms each")
    print(table(samples))
    found = complaints(samples, share)
    for line in found:
        print(f"FAILED {line}")
    return found


def hdf5_objects() -> int:
    """Ids that the HDF5 library under dmamba has open; 0 where it is inside dmamba's own library.

    h5py has one of its own, which is not asked.
    """
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.split(maxsplit=5)[-1]
        library = os.path.basename(path)
        if library.startswith("libhdf5") and "_hl" not in library and "h5py" not in path:
            count = ctypes.CDLL(path).H5Fget_obj_count
            count.argtypes, count.restype = (ctypes.c_int64, ctypes.c_uint), ctypes.c_ssize_t
            return count(_ALL_OBJECTS, _ALL_OBJECTS)
    return 0


def _d4rl(folder: Path) -> Callable[[], object]:
    return lambda: dmamba.data.load(DATA / "d4rl_tiny.hdf5", progress=False)


def _broken(folder: Path) -> Callable[[], object]:
    """Files that cannot be opened: cut off, no HDF5, a wrong type, nothing at all."""
    whole = (DATA / "d4rl_tiny.hdf5").read_bytes()
    contents = {"cut.hdf5": whole[: len(whole) * 2 // 3], "text.hdf5": b"no HDF5\n", "no.hdf5": b""}
    for name, content in contents.items():
        (folder / name).write_bytes(content)

    def open_once() -> None:
        for name in (*contents, "missing.hdf5"):
            with contextlib.suppress(dmamba.DataError):
                dmamba.data.load(folder / name, progress=False)
                raise AssertionError(f"{name} was opened")

    return open_once


def _arrays(folder: Path) -> Callable[[], object]:
    rng = np.random.default_rng(0)
    ends = np.arange(200) % 20 == 19
    arrays = (rng.standard_normal((200, 3)), rng.standard_normal((200, 2)), rng.random(200))
    return lambda: dmamba.data.from_arrays(*arrays, np.zeros(200, bool), ends)


def _made_by(module: str, make: Callable[[object], Path]) -> Path:
    """What a module of the Python tests writes."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "python"))
    try:
        return make(__import__(module))
    finally:
        sys.path.pop(0)


def _minari(folder: Path) -> Callable[[], object]:
    name = "load/handles-v0"
    _made_by("minari_made", lambda made: made.make(name, **made.VECTOR))
    return lambda: dmamba.data.load(name, progress=False)


def _replay(folder: Path) -> Callable[[], object]:
    """The first opening converts the recording, all others map the converted file."""
    game = _made_by("replay_games", lambda games: games.write_recording(folder / "Pong"))
    return lambda: dmamba.data.load(game, progress=False)


def _replay_in_memory(folder: Path) -> Callable[[], object]:
    game = _made_by("replay_games", lambda games: games.write_recording(folder / "Pong"))
    return lambda: dmamba.data.load(game, cache="memory", progress=False)


READERS: dict[str, Callable[[Path], Callable[[], object]]] = {
    "d4rl": _d4rl,
    "minari": _minari,
    "replay": _replay,
    "replay-memory": _replay_in_memory,
    "arrays": _arrays,
    "broken": _broken,
}
