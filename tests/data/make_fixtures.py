#!/usr/bin/env python3
"""Makes the dataset fixtures beside this file; run it again after a change and commit the results.

d4rl_tiny.hdf5: as h5py users write the D4RL layout: bool flags, gzip + shuffle, a metadata group,
    fields that a reader must ignore. Episodes of 3 (terminal), 5 (timeout) and 2 (terminal) steps,
    then a partial one of 2. Values follow from the row, see `fields`.
d4rl_wide.hdf5: the same numbers as float64, big-endian actions, rewards and flags (N, 1), uint8 and
    int8 flags, contiguous, no metadata.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

ROWS = 12
TERMINALS = (2, 9)
TIMEOUTS = (7,)


def fields() -> dict[str, np.ndarray]:
    """Returns the transitions: every number is exact in float32 and tells its row and column."""
    row = np.arange(ROWS)
    return {
        "observations": row[:, None] + np.array([0.0, 0.25]),
        "actions": -row[:, None] - np.array([0.0, 0.25, 0.5]),
        "rewards": row + 0.5,
        "terminals": np.isin(row, TERMINALS),
        "timeouts": np.isin(row, TIMEOUTS),
    }


def make_tiny(path: Path) -> None:
    """Writes the compressed float32 fixture."""
    with h5py.File(path, "w") as file:
        for name, values in fields().items():
            if values.dtype != bool:
                values = values.astype(np.float32)
            file.create_dataset(
                name, data=values, chunks=(8,) + values.shape[1:], compression="gzip", shuffle=True
            )
        file["next_observations"] = np.zeros((ROWS - 1, 2), np.float32)
        file["infos/qpos"] = np.zeros((3, 4))
        file["metadata/algorithm"] = "SAC"  # variable length
        file["metadata/environment"] = np.bytes_("Tiny-v0")  # fixed length
        file["metadata/iteration"] = 7
        file["metadata/policy/weight"] = np.zeros((2, 2), np.float32)


def make_wide(path: Path) -> None:
    """Writes the uncompressed float64 fixture."""
    data = fields()
    with h5py.File(path, "w") as file:
        file["observations"] = data["observations"]
        file["actions"] = data["actions"].astype(">f8")
        file["rewards"] = data["rewards"][:, None]
        file["terminals"] = data["terminals"][:, None].astype(np.uint8)
        file["timeouts"] = data["timeouts"].astype(np.int8)


if __name__ == "__main__":
    folder = Path(__file__).parent
    make_tiny(folder / "d4rl_tiny.hdf5")
    make_wide(folder / "d4rl_wide.hdf5")
