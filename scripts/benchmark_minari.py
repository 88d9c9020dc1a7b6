#!/usr/bin/env python3
"""Times the reading of a dataset of Minari's: our HDF5 reader beside Minari's iterate_episodes.

    python scripts/benchmark_minari.py [FOLDER] [--episodes 300] [--steps 1000] [--rounds 5]

FOLDER is a dataset's; without it one is made that has the spaces and the infos of Minari's
mujoco/hopper sets. Each reading is a process of its own, which ends with flat arrays of all steps;
the time of imports is not counted. It needs minari with h5py: pip install 'minari[hdf5]' pillow.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
from benchmark_ops import processor

MEASURE = """
import resource, sys, time
from pathlib import Path
import numpy as np
from dmamba.data import minari_sets
folder, how = Path(sys.argv[1]), sys.argv[2]
if how == "minari":
    from minari import MinariDataset
    MinariDataset(str(folder / "data"))  # what only the first costs
started = time.perf_counter(), time.process_time()
if how == "minari":
    episodes = list(MinariDataset(str(folder / "data")).iterate_episodes())
    arrays = [np.concatenate([e.observations[:-1] for e in episodes]).astype(np.float32)]
    for key in ("actions", "rewards", "terminations", "truncations"):
        arrays.append(np.concatenate([getattr(e, key) for e in episodes]))
    count = len(arrays[2])
else:
    count = minari_sets.load(folder).num_transitions
ended = time.perf_counter(), time.process_time()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(ended[0] - started[0], ended[1] - started[1], peak, count)
"""


def make_dataset(root: Path, episodes: int, steps: int) -> Path:
    """Writes a dataset by Minari; returns its folder."""
    os.environ["MINARI_DATASETS_PATH"] = str(root)
    import gymnasium
    import minari
    from minari.data_collector.episode_buffer import EpisodeBuffer

    random = np.random.default_rng(0)
    infos = {"x_position": (), "z_distance_from_origin": (), "x_velocity": (), "reward_forward": ()}
    infos |= {"reward_ctrl": (), "reward_survive": (), "qpos": (6,), "qvel": (6,)}
    buffers = [
        EpisodeBuffer(
            id=number,
            observations=random.normal(size=(steps + 1, 11)),
            actions=random.uniform(-1, 1, (steps, 3)).astype(np.float32),
            rewards=random.normal(size=steps),
            terminations=np.zeros(steps, bool),
            truncations=np.arange(steps) == steps - 1,
            infos={key: random.normal(size=(steps + 1, *shape)) for key, shape in infos.items()},
        )
        for number in range(episodes)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        minari.create_dataset_from_buffers(
            "made/up-v0",
            buffers,
            observation_space=gymnasium.spaces.Box(-np.inf, np.inf, (11,), np.float64),
            action_space=gymnasium.spaces.Box(-1, 1, (3,), np.float32),
            data_format="hdf5",
        )
    return root / "made" / "up-v0"


def measure(folder: Path, how: str) -> tuple[float, ...]:
    """(seconds, processor seconds, peak MiB, transitions) of one reading."""
    command = [sys.executable, "-c", MEASURE, str(folder), how]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return tuple(map(float, output.split()))


def main() -> None:
    """Reads the options, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help="a dataset's (one is made)")
    parser.add_argument("--episodes", type=int, default=300)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    results: dict[str, list[tuple[float, ...]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = options.folder or make_dataset(Path(name), options.episodes, options.steps)
        for _ in range(options.rounds):
            for how in ("dmamba", "minari"):
                results.setdefault(how, []).append(measure(folder, how))
    print(f"{processor()}, {os.cpu_count()} cores; medians of {options.rounds} rounds")
    print(f"{'':8}{'seconds':>9}{'least':>8}{'most':>8}{'CPU s':>8}{'peak MiB':>10}{'steps':>11}")
    for how, rows in results.items():
        seconds, used, peak, count = zip(*rows, strict=True)
        print(
            f"{how:<8}{statistics.median(seconds):>9.2f}{min(seconds):>8.2f}{max(seconds):>8.2f}"
            f"{statistics.median(used):>8.2f}{statistics.median(peak):>10.0f}{int(count[0]):>11,}"
        )


if __name__ == "__main__":
    main()
