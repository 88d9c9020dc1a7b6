"""Tiny recordings of games for tests, written as Dopamine writes them."""

import gzip
import io
from pathlib import Path

import numpy as np

CHAIN = (9, 3, 14)  # steps of the games of a shard


def write_recording(folder: Path, shards=(0,), lengths=CHAIN, actions=4) -> Path:
    """Writes whole games into ``folder/1/replay_logs``, other ones in every shard."""
    logs = folder / "1" / "replay_logs"
    logs.mkdir(parents=True)
    for shard in shards:
        rng = np.random.default_rng(shard)
        columns: dict = {"observation": [], "action": [], "reward": [], "terminal": []}
        for length in lengths:
            game = {
                "observation": rng.integers(1, 255, (length, 84, 84)).astype(np.uint8),
                "action": rng.integers(0, actions, length).astype(np.int32),
                "reward": rng.integers(-1, 2, length).astype(np.float32),
                "terminal": (np.arange(length) == length - 1).astype(np.uint8),
            }
            for field, values in game.items():
                columns[field] += [np.zeros((3, *values.shape[1:]), values.dtype), values]
        columns["action"][1][0] = actions - 1
        for field, parts in columns.items():
            buffer = io.BytesIO()
            np.save(buffer, np.concatenate(parts))
            packed = gzip.compress(buffer.getvalue(), 1, mtime=0)
            (logs / f"$store$_{field}_ckpt.{shard}.gz").write_bytes(packed)
    return folder
