#!/usr/bin/env python3
"""Times the reading of a recorded game, and says how much memory it takes.

    python scripts/benchmark_replay.py FOLDER [--copies 5] [--rounds 3]

FOLDER is in DQN-replay's layout; its shards are read --copies times, under other numbers, so that a
small recording stands for a large one. Each reading is a process of its own, whose peak memory is
its own: into memory, into the cache file, from it, and by numpy and gzip, one shard after the other
without any selection or check.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from dmamba.benchmarking import processor

FIELDS = ("observation", "action", "reward", "terminal")
MEASURE = """
import gzip, resource, sys, time
import numpy as np
from dmamba import _C
folder, cache, how = sys.argv[1:]
started = time.perf_counter()
if how == "numpy":
    from pathlib import Path
    arrays = [np.load(gzip.open(p)) for p in sorted(Path(folder).glob("$store$_*.gz"))]
    count = sum(len(a) for a in arrays if a.ndim == 3)
else:
    count = _C.open_replay(folder, cache=cache).num_transitions
seconds = time.perf_counter() - started
print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, count)
"""


def copy_shards(source: Path, target: Path, copies: int) -> None:
    """Links every shard of ``source`` into ``target`` under ``copies`` numbers."""
    numbers = sorted(
        int(path.name.split(".")[-2]) for path in source.glob("$store$_observation_ckpt.*.gz")
    )
    if not numbers:
        raise SystemExit(f"{source}: holds no $store$_observation_ckpt.N.gz")
    for index, number in enumerate(numbers * copies):
        for field in FIELDS:
            found = (source / f"$store$_{field}_ckpt.{number}.gz").resolve()
            os.symlink(found, target / f"$store$_{field}_ckpt.{index}.gz")


def measure(folder: Path, cache: str, how: str) -> tuple[float, float, int]:
    """(seconds, peak MiB, transitions or rows) of one reading."""
    command = [sys.executable, "-c", MEASURE, str(folder), cache, how]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    seconds, peak, count = output.split()
    return float(seconds), float(peak), int(count)


def main() -> None:
    """Reads the options, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="with the shards: .../replay_logs")
    parser.add_argument("--copies", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    results: dict[str, list[tuple[float, float, int]]] = {}
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as name:
            folder, cache = Path(name, "replay_logs"), str(Path(name, "cache"))
            folder.mkdir()
            copy_shards(options.folder, folder, options.copies)
            for title, where, how in (
                ("into memory", "", "dmamba"),
                ("into the cache file", cache, "dmamba"),
                ("from the cache file", cache, "dmamba"),
                ("numpy and gzip", "", "numpy"),
            ):
                results.setdefault(title, []).append(measure(folder, where, how))
    print(f"{processor()}, {os.cpu_count()} cores; medians of {options.rounds} rounds")
    print(f"{'':22}{'seconds':>9}{'least':>8}{'most':>8}{'peak MiB':>10}{'transitions':>13}")
    for title, rows in results.items():
        seconds = [row[0] for row in rows]
        peak = statistics.median(row[1] for row in rows)
        print(
            f"{title:<22}{statistics.median(seconds):>9.2f}{min(seconds):>8.2f}"
            f"{max(seconds):>8.2f}{peak:>10.0f}{rows[0][2]:>13,}"
        )


if __name__ == "__main__":
    main()
