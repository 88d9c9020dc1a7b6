"""An independent reader of the DQN-replay layout, in plain numpy, for tests to compare with."""

import gzip
import io
import re
from pathlib import Path

import numpy as np

FIELDS = ("observation", "action", "reward", "terminal")


def shard_numbers(logs: Path) -> list[int]:
    """Numbers of the shards in a folder, ascending."""
    names = [re.fullmatch(r"\$store\$_terminal_ckpt\.(\d+)\.gz", p.name) for p in logs.iterdir()]
    return sorted(int(name[1]) for name in names if name)


def read_shard(logs: Path, number: int) -> dict[str, np.ndarray]:
    """The rows of one shard, padding included."""

    def read(field):
        packed = (logs / f"$store$_{field}_ckpt.{number}.gz").read_bytes()
        return np.load(io.BytesIO(gzip.decompress(packed)))

    return {field: read(field) for field in FIELDS}


def games(shard: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Whole games of a shard, without the three zero rows before each."""
    ends = np.flatnonzero(shard["terminal"]) + 1
    result = []
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        assert not any(shard[field][start : start + 3].any() for field in FIELDS), start
        result.append({field: shard[field][start + 3 : end] for field in FIELDS})
    return result
