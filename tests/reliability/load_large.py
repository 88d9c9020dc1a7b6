"""A dataset larger than the memory: it has to open and to train within a few hundred MiB.

The file is sparse: observations, actions and rewards are allocated and hardly written, so that 100
GB take a few hundred MB of the disk; flags are compressed, and say that an episode has 1,000 steps.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from measures import MIB, host

import dmamba

STATE_DIM, ACT_DIM, LENGTH = 111, 8, 1000
ROW_BYTES = 4 * (STATE_DIM + ACT_DIM + 1)
WRITTEN = 100  # episodes of random numbers; all others are zeros
FLAG_ROWS = 1_000_000  # of a compressed chunk
# What opening and training may add, whatever the file's size: blocks of rows, the model, torch's
# own; and 40 bytes an episode.
ALLOWED_BYTES = 256 * MIB


def run(gigabytes: float, steps: int, folder: str | None, device: str) -> int:
    """Makes the file, trains on it, and compares the memory with what is allowed."""
    place = Path(tempfile.mkdtemp(prefix="dmamba-load-", dir=folder))
    try:
        path = place / "large.hdf5"
        episodes = max(WRITTEN, round(gigabytes * 1e9 / ROW_BYTES / LENGTH))
        written = _write(path, episodes)
        status = path.stat()
        print(
            f"{path}: {status.st_size / 1e9:.1f} GB, of which {status.st_blocks * 512 / 1e6:.0f} MB"
            f" are on the disk; {episodes:,} episodes",
            flush=True,
        )
        found = _train(path, written, steps, place / "run", device, episodes)
    finally:
        shutil.rmtree(place)
    for line in found:
        print(f"FAILED {line}")
    print("bounded" if not found else f"{len(found)} complaints")
    return 1 if found else 0


def _write(path: Path, episodes: int) -> dict[int, np.ndarray]:
    """Writes the file; returns the states of the written episodes, by number."""
    rows = episodes * LENGTH
    rng = np.random.default_rng(0)
    written = {}
    with h5py.File(path, "w", libver="v108") as file:
        shapes = {
            "observations": (rows, STATE_DIM),
            "actions": (rows, ACT_DIM),
            "rewards": (rows,),
        }
        for name, shape in shapes.items():
            plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            space = h5py.h5s.create_simple(shape)
            h5py.h5d.create(file.id, name.encode(), h5py.h5t.IEEE_F32LE, space, plist)
        for number in np.linspace(0, episodes - 1, WRITTEN).astype(int):
            here = slice(number * LENGTH, (number + 1) * LENGTH)
            written[int(number)] = rng.standard_normal((LENGTH, STATE_DIM)).astype(np.float32)
            file["observations"][here] = written[int(number)]
            file["actions"][here] = rng.uniform(-1, 1, (LENGTH, ACT_DIM))
            file["rewards"][here] = rng.uniform(0, 1, LENGTH)
        for name, value in (("terminals", 0), ("timeouts", 1)):
            flags = file.create_dataset(
                name, (rows,), np.uint8, chunks=(min(rows, FLAG_ROWS),), compression="gzip"
            )
            for first in range(0, rows, FLAG_ROWS):
                block = np.zeros(min(FLAG_ROWS, rows - first), np.uint8)
                block[LENGTH - 1 :: LENGTH] = value
                flags[first : first + len(block)] = block
    return written


class _Most(dmamba.training.callbacks.Callback):
    """The most that was resident, by kind."""

    def __init__(self) -> None:
        self.values = host()

    def look(self) -> None:
        """Takes a sample."""
        self.values = {name: max(value, self.values[name]) for name, value in host().items()}

    def on_log(self, run: dmamba.Run, row: dict[str, Any]) -> None:
        """Takes a sample."""
        self.look()


def _train(
    path: Path,
    written: dict[int, np.ndarray],
    steps: int,
    folder: Path,
    device: str,
    episodes: int,
) -> list[str]:
    config = {
        "name": "large",
        "model": {"d_model": 16, "n_layer": 1, "context_length": 20},
        "training": {
            "steps": steps,
            "batch_size": 64,
            "log_every": max(1, steps // 50),
            "threads": 1,
            "device": device,
        },
    }
    warm = dmamba.data.from_arrays(
        *(np.ones((50, 3)),) * 2, np.ones(50), *(np.arange(50) == 49,) * 2
    )
    few = {**config, "training": {**config["training"], "steps": 5}}
    dmamba.train(few, dataset=warm, output=folder / "warm", progress=False, evaluate=False)
    before, most = host(), _Most()

    started = time.perf_counter()
    store = dmamba.data.load(path, storage="disk", progress=False)
    opened = time.perf_counter() - started
    most.look()
    found = []
    for number in list(written)[:: WRITTEN // 10]:
        if not np.array_equal(store.episode(number)["observations"], written[number]):
            found.append(f"episode {number} is not what was written")
    started = time.perf_counter()
    trained = dmamba.train(
        config,
        dataset=store,
        output=folder / "run",
        callbacks=[most],
        progress=False,
        evaluate=False,
    )
    whole = time.perf_counter() - started
    seconds = trained.summary()["times"]["training_seconds"]
    print(
        f"opened in {opened:.0f} s; statistics and the like {whole - seconds:.0f} s; "
        f"{steps:,} steps in {seconds:.0f} s, {steps / seconds:,.0f} steps/s"
    )
    for name in ("rss", "anonymous", "files"):
        print(
            f"{name:10} before {before[name] / MIB:8.1f} MiB, at most "
            f"{most.values[name] / MIB:8.1f} MiB: {(most.values[name] - before[name]) / MIB:+.1f}"
        )
    peak = int(_status("VmHWM").split()[0]) * 1024
    allowed = before["rss"] + ALLOWED_BYTES + 40 * episodes
    print(f"peak of all (VmHWM) {peak / MIB:.1f} MiB, allowed {allowed / MIB:.1f}")
    if peak > allowed:
        found.append(f"{peak:,} bytes were resident, {allowed:,} are allowed")
    return found


def _status(name: str) -> str:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return line.partition(":")[2]
    raise KeyError(name)
