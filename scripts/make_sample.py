#!/usr/bin/env python3
"""Makes a small dataset of whole episodes, chosen at random from a D4RL-layout HDF5 file.

As many episodes as fit into --max-bytes are kept, in their original order, compressed with gzip 9
and shuffle. The scalars of the group `metadata` are copied (the weights of a behaviour policy are
not) and `metadata/note` says what the file is. Needs numpy and h5py. The bundled sample:

    python scripts/make_sample.py --source hopper-medium.hdf5 \
        --output data/samples/hopper-medium.hdf5 --max-bytes 4000000 --seed 0
"""

from __future__ import annotations

import argparse
import io
import os
from pathlib import Path

import h5py
import numpy as np

CHUNK_ROWS = 8192


def read_source(path: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Reads the per-transition datasets and the scalars of `metadata`.

    Args:
        path: HDF5 file in the D4RL layout.

    Returns:
        The datasets at the file's root by name, all with one row per transition, and the metadata.
    """
    with h5py.File(path, "r") as file:
        fields = {name: item[()] for name, item in file.items() if isinstance(item, h5py.Dataset)}
        metadata = {
            name: item[()]
            for name, item in file.get("metadata", {}).items()
            if isinstance(item, h5py.Dataset) and item.shape == ()
        }
    return fields, metadata


def episode_bounds(fields: dict[str, np.ndarray]) -> np.ndarray:
    """Returns (episodes, 2) half-open row ranges; a partial episode at the end is left out."""
    ends = np.flatnonzero(fields["terminals"].ravel() | fields["timeouts"].ravel()) + 1
    return np.stack([np.concatenate([[0], ends[:-1]]), ends], axis=1)


def encode(fields: dict[str, np.ndarray], metadata: dict, bounds: np.ndarray, note: str) -> bytes:
    """Returns the HDF5 file with the episodes `bounds`, as bytes."""
    rows = np.concatenate([np.arange(begin, end) for begin, end in bounds])
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for name, values in fields.items():
            # one column a chunk: neighbouring values are alike, which is what gzip lives on
            chunks = (min(CHUNK_ROWS, len(rows)),) + (1,) * (values.ndim - 1)
            file.create_dataset(
                name,
                data=values[rows],
                chunks=chunks,
                compression="gzip",
                compression_opts=9,
                shuffle=True,
            )
        for name, value in metadata.items():
            file[f"metadata/{name}"] = value
        file["metadata/note"] = np.bytes_(note)
    return buffer.getvalue()


def make_sample(source: Path, max_bytes: int, seed: int) -> tuple[bytes, np.ndarray]:
    """Chooses the episodes and encodes them.

    Args:
        source: HDF5 file in the D4RL layout.
        max_bytes: upper bound of the result's size in bytes.
        seed: of the random choice.

    Returns:
        The file's bytes and the kept episodes' indices, ascending.

    Raises:
        ValueError: if not even one episode fits.
    """
    fields, metadata = read_source(source)
    bounds = episode_bounds(fields)
    order = np.random.default_rng(seed).permutation(len(bounds))
    best, best_kept = b"", order[:0]
    fits, too_many = 0, len(bounds) + 1
    while too_many - fits > 1:
        count = (fits + too_many) // 2
        kept = np.sort(order[:count])
        note = (
            f"a random subset of episodes: {count} of the {len(bounds)} of {source.name}, "
            f"in their original order, seed {seed}"
        )
        data = encode(fields, metadata, bounds[kept], note)
        if len(data) <= max_bytes:
            fits, best, best_kept = count, data, kept
        else:
            too_many = count
    if not best:
        raise ValueError(f"{source}: not even one episode fits into {max_bytes} bytes")
    return best, best_kept


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--source", type=Path, required=True, help="D4RL-layout HDF5 file")
    parser.add_argument("--output", type=Path, required=True, help="file to write")
    parser.add_argument("--max-bytes", type=int, default=4_000_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    data, kept = make_sample(args.source, args.max_bytes, args.seed)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    temporary = args.output.with_name(args.output.name + ".tmp")
    temporary.write_bytes(data)
    os.replace(temporary, args.output)
    print(f"{args.output}: {len(kept)} episodes, {len(data)} bytes")


if __name__ == "__main__":
    main()
