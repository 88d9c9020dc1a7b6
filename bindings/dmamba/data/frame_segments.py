"""Training segments of recorded games for anybody's DataLoader."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch.utils.data import Dataset

from dmamba import _C

STACK = 4  # frames that the model sees at once


class FrameSegmentDataset(Dataset[dict[str, torch.Tensor]]):
    """A map-style dataset with one item for each transition: the segment of K steps from it on.

    As in the author's Atari code: where a game ends before K steps, the segment is moved back so
    that it ends there. A DataLoader with ``shuffle=True`` draws our training's segments without
    replacement.

    An item is a dict of K = ``context_length`` steps. Before the segment of a game that is shorter
    than K stand zeros:

    - ``frames`` (K, 4, 84, 84) uint8, the last of each stack being the step's own frame; zero
      before the game's start;
    - ``actions`` (K,) int64;
    - ``returns_to_go`` (K, 1) float32, sums of clipped rewards divided by ``rtg_scale``;
    - ``timesteps`` () int64, of the segment's first step, counted in its game;
    - ``mask`` (K,) bool, False at padding.

    Args:
        store: The games; their frames are not copied. Worker processes that are forked share them;
            for those that are started otherwise they are copied to shared memory, once.
        context_length: K, in steps.
        rtg_scale: Return per unit.
        max_timestep: Timesteps are capped at one less; None: no cap.

    Raises:
        ConfigError: An argument out of range.
        DataError: K exceeds the longest game.

    Example:
        >>> store = dmamba.data.load("samples/Breakout")
        >>> segments = dmamba.data.FrameSegmentDataset(store, 30)
        >>> loader = torch.utils.data.DataLoader(segments, batch_size=128, shuffle=True)
        >>> next(iter(loader))["frames"].shape
        torch.Size([128, 30, 4, 84, 84])
    """

    def __init__(
        self,
        store: _C.FrameStore,
        context_length: int,
        *,
        rtg_scale: float = 1.0,
        max_timestep: int | None = None,
    ) -> None:
        lengths = store.episode_lengths
        self.context_length = context_length
        self.rtg_scale = float(rtg_scale)
        self.max_timestep = int(lengths.max()) if max_timestep is None else max_timestep
        _C.FrameSampler(  # checks the arguments, as in training
            store=store,
            batch_size=1,
            context_length=context_length,
            rtg_scale=self.rtg_scale,
            max_timestep=self.max_timestep,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # nobody writes to what cannot be written to
            # A tensor, which torch's worker processes are given without its bytes.
            self._frames = torch.from_numpy(store.frames)
        self._actions: np.ndarray = store.actions.astype(np.int64)
        scaled = store.returns_to_go.astype(np.float64) / self.rtg_scale
        self._rtg: np.ndarray = scaled.astype(np.float32)[:, None]
        ends = store.episode_ends
        self._end: np.ndarray = np.repeat(ends, lengths)  # of the game of each transition
        self._start: np.ndarray = np.repeat(ends - lengths, lengths)

    def __len__(self) -> int:
        return len(self._actions)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"segment {index} of {len(self)}")
        drawn = index % len(self)
        start, end = int(self._start[drawn]), int(self._end[drawn])
        first = max(start, min(drawn, end - self.context_length))
        length = min(self.context_length, end - first)
        rows = slice(first, first + length)
        return {
            "frames": torch.from_numpy(self._stacks(first, length, start)),
            "actions": self._padded(self._actions[rows]),
            "returns_to_go": self._padded(self._rtg[rows]),
            "timesteps": torch.tensor(min(first - start, self.max_timestep - 1)),
            "mask": self._padded(np.ones(length, bool)),
        }

    def _stacks(self, first: int, length: int, start: int) -> np.ndarray:
        """(K, 4, 84, 84): a strip of K + 3 frames, seen through a window of four."""
        frame = self._frames.shape[1:]
        strip: np.ndarray = np.zeros((self.context_length + STACK - 1, *frame), np.uint8)
        before = min(STACK - 1, first - start)
        shown = self._frames[first - before : first + length].numpy()
        strip[len(strip) - len(shown) :] = shown
        windows = np.lib.stride_tricks.sliding_window_view(strip, STACK, axis=0)
        stacks = np.ascontiguousarray(windows.transpose(0, 3, 1, 2))
        stacks[: self.context_length - length] = 0
        return stacks

    def _padded(self, values: np.ndarray) -> torch.Tensor:
        out = np.zeros((self.context_length, *values.shape[1:]), values.dtype)
        out[self.context_length - len(values) :] = values
        return torch.from_numpy(out)
