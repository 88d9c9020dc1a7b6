"""Writing recorded games in the DQN-replay layout (Agarwal and others, arXiv 1907.04543).

    FOLDER/replay_logs/$store$_observation_ckpt.N.gz   (rows, 84, 84) uint8, single frames
                       $store$_action_ckpt.N.gz        (rows,) int32
                       $store$_reward_ckpt.N.gz        (rows,) float32, clipped to [-1, 1]
                       $store$_terminal_ckpt.N.gz      (rows,) uint8, 1 at the last row of a game
                       add_count_ckpt.N.gz, invalid_range_ckpt.N.gz

Each file is the gzip of a .npy. Before each game stand three zero rows, with which Dopamine's
buffers fill the stack of frames. The same games give the same bytes, whenever they are written.
"""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy

FRAME_SHAPE = (84, 84)
PADDING_ROWS = 3  # Dopamine's stack_size - 1
SHARD_ROWS = 50_000  # a shard ends with the game that passes this: 350 MB when inflated

_CHUNK_BYTES = 1 << 20


class Game:
    """One game as it is being recorded; its frames are kept compressed, some 100 bytes each.

    Attributes:
        actions, rewards: By step; rewards raw, as the environment paid them.
    """

    def __init__(self) -> None:
        self.actions: list[int] = []
        self.rewards: list[float] = []
        self._compressor = zlib.compressobj(1)
        self._frames: list[bytes] = []

    def __len__(self) -> int:
        return len(self.actions)

    def add(self, frame: np.ndarray, action: int, reward: float) -> None:
        """Appends a step.

        Args:
            frame: (84, 84) uint8, what was seen before the action.
            action: Its index among the game's actions.
            reward: Raw, what it was paid.
        """
        if frame.shape != FRAME_SHAPE or frame.dtype != np.uint8:
            raise ValueError(f"a frame must be (84, 84) uint8, got {frame.shape} {frame.dtype}")
        self._frames.append(self._compressor.compress(frame.tobytes()))
        self.actions.append(int(action))
        self.rewards.append(float(reward))

    def close(self) -> None:
        """Ends the game; nothing can be added after that."""
        self._frames.append(self._compressor.flush())

    def frames(self) -> Iterator[bytes]:
        """The frames' bytes, piece by piece."""
        inflater = zlib.decompressobj()
        for piece in self._frames:
            inflated = inflater.decompress(piece)
            if inflated:
                yield inflated

    @property
    def total(self) -> float:
        """Sum of the raw rewards."""
        return float(np.sum(self.rewards))

    @property
    def clipped_total(self) -> float:
        """Sum of the rewards as they are written: what a reader takes for the return."""
        return float(np.clip(self.rewards, -1.0, 1.0).sum())


def write_shards(
    folder: Path, games: Sequence[Game], *, first: int = 0, shard_rows: int = SHARD_ROWS
) -> list[dict[str, Any]]:
    """Writes whole games, in order, into ``folder/replay_logs``.

    Args:
        folder: Made if it is not there.
        games: At least one; all closed.
        first: Number of the first shard.
        shard_rows: A shard ends with the game that reaches this many rows.

    Returns:
        A dict for each shard, for ``rollout.json``: ``suffix`` (its number), ``rows`` (padding
        included), ``games``, ``returns`` (raw, by game), ``mean_return``, ``min_return``,
        ``max_return``, ``mean_clipped``, ``mean_length``.

    Raises:
        OSError: A file cannot be written.
    """
    logs = folder / "replay_logs"
    logs.mkdir(parents=True, exist_ok=True)
    shards = []
    for suffix, group in enumerate(_groups(games, shard_rows), start=first):
        shards.append({"suffix": suffix, **_write_shard(logs, suffix, group)})
    return shards


def _groups(games: Sequence[Game], shard_rows: int) -> Iterator[list[Game]]:
    group: list[Game] = []
    rows = 0
    for game in games:
        group.append(game)
        rows += PADDING_ROWS + len(game)
        if rows >= shard_rows:
            yield group
            group, rows = [], 0
    if group:
        yield group


def _write_shard(logs: Path, suffix: int, games: list[Game]) -> dict[str, Any]:
    actions = _padded([np.asarray(game.actions, np.int32) for game in games])
    rewards = _padded([np.clip(game.rewards, -1.0, 1.0).astype(np.float32) for game in games])
    terminals = _padded([_terminals(game) for game in games])
    rows = len(actions)
    _write_array(logs / f"$store$_action_ckpt.{suffix}.gz", actions)
    _write_array(logs / f"$store$_reward_ckpt.{suffix}.gz", rewards)
    _write_array(logs / f"$store$_terminal_ckpt.{suffix}.gz", terminals)
    # A buffer of this many rows that is full: its cursor is back at the first.
    _write_array(logs / f"add_count_ckpt.{suffix}.gz", np.array(rows - 1, np.int64))
    invalid: np.ndarray = (np.arange(-1, PADDING_ROWS + 1) % rows).astype(np.int64)
    _write_array(logs / f"invalid_range_ckpt.{suffix}.gz", invalid)
    frames = logs / f"$store$_observation_ckpt.{suffix}.gz"
    _write(frames, (rows, *FRAME_SHAPE), np.dtype(np.uint8), _frames(games))
    returns = [game.total for game in games]
    return {
        "rows": rows,
        "games": len(games),
        "mean_return": float(np.mean(returns)),
        "min_return": min(returns),
        "max_return": max(returns),
        "mean_clipped": float(np.mean([game.clipped_total for game in games])),
        "mean_length": float(np.mean([len(game) for game in games])),
        "returns": returns,
    }


def _terminals(game: Game) -> np.ndarray:
    # The layout knows no time limit: a game that was cut ends with the same mark.
    terminals: np.ndarray = np.zeros(len(game), np.uint8)
    terminals[-1] = 1
    return terminals


def _padded(columns: list[np.ndarray]) -> np.ndarray:
    padding = np.zeros(PADDING_ROWS, columns[0].dtype)
    return np.concatenate([part for column in columns for part in (padding, column)])


def _frames(games: list[Game]) -> Iterator[bytes]:
    padding = bytes(PADDING_ROWS * FRAME_SHAPE[0] * FRAME_SHAPE[1])
    for game in games:
        yield padding
        yield from game.frames()


def _write_array(path: Path, array: np.ndarray) -> None:
    _write(path, array.shape, array.dtype, [array.tobytes()])


def _write(path: Path, shape: tuple[int, ...], dtype: np.dtype, pieces: Iterable[bytes]) -> None:
    """A .npy under gzip, without the time and the name that gzip would note."""
    with open(path, "wb") as file:
        with gzip.GzipFile("", "wb", 9, file, mtime=0) as packed:
            head = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
            npy.write_array_header_1_0(packed, head)
            for piece in _gathered(pieces):
                packed.write(piece)
        _sync(file)


def _gathered(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Pieces of a size that is worth a call."""
    held, size = [], 0
    for piece in pieces:
        held.append(piece)
        size += len(piece)
        if size >= _CHUNK_BYTES:
            yield b"".join(held)
            held, size = [], 0
    yield b"".join(held)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
