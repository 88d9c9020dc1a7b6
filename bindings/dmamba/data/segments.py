"""Training segments for anybody's DataLoader, as our own training sees them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from dmamba import _C

_PAPER_ACTION = -10.0  # what the paper's code puts before a short segment


class SegmentDataset(Dataset[dict[str, torch.Tensor]]):
    """A map-style dataset with one item for each transition: the segment that starts there.

    The paper draws an episode with probability proportional to its length, then a start uniformly
    within it: that is, every transition alike. A DataLoader with ``shuffle=True`` draws the same
    segments without replacement, one with a ``RandomSampler(replacement=True)`` as the paper.

    An item is a dict of K = ``context_length`` steps, padded on the left where the episode ends
    before:

    - ``states`` (K, state_dim) float32, standardised; ``actions`` (K, act_dim) float32;
    - ``returns_to_go`` (K, 1) float32, divided by ``rtg_scale``;
    - ``timesteps`` (K,) int64, steps since the episode's start;
    - ``mask`` (K,) bool, False at padding.

    Args:
        store: The episodes; they are copied. Worker processes share the copy; for those that are
            not forked it is copied to shared memory, once.
        context_length: K, in steps.
        rtg_scale: Raw return per unit; None: ``dmamba.data.rtg_scale(store)``, as in training.
        state_mean: (state_dim,) subtracted from the states; None: the store's.
        state_std: (state_dim,) by which they are divided; None: the store's.
        max_timestep: Timesteps are capped at one less; None: no cap.
        padding: ``masked``: zeros. ``paper``: a raw state of zero, standardised, and actions -10.

    Raises:
        ConfigError: An argument out of range.
        DataError: K exceeds the longest episode.

    Example:
        >>> segments = dmamba.data.SegmentDataset(dmamba.data.load("hopper-medium"), 20)
        >>> loader = torch.utils.data.DataLoader(segments, batch_size=64, shuffle=True)
        >>> next(iter(loader))["states"].shape
        torch.Size([64, 20, 11])
    """

    def __init__(
        self,
        store: _C.TrajectoryStore,
        context_length: int,
        *,
        rtg_scale: float | None = None,
        state_mean: Sequence[float] | np.ndarray | None = None,
        state_std: Sequence[float] | np.ndarray | None = None,
        max_timestep: int | None = None,
        padding: str = "masked",
    ) -> None:
        if padding not in ("masked", "paper"):
            raise _C.ConfigError(f"padding must be masked or paper, got {padding!r}")
        lengths = store.episode_lengths
        mean, std = store.state_statistics()
        self.context_length = context_length
        self.state_mean = mean if state_mean is None else np.asarray(state_mean, np.float32)
        self.state_std = std if state_std is None else np.asarray(state_std, np.float32)
        self.rtg_scale = default_rtg_scale(store) if rtg_scale is None else float(rtg_scale)
        self.max_timestep = int(lengths.max()) if max_timestep is None else max_timestep
        _C.SegmentSampler(  # checks the arguments, as in training
            store=store,
            batch_size=1,
            context_length=context_length,
            seed=0,
            paper_padding=padding == "paper",
            rtg_scale=self.rtg_scale,
            state_mean=self.state_mean.tolist(),
            state_std=self.state_std.tolist(),
            max_timestep=self.max_timestep,
        )
        zero: np.ndarray = np.zeros(store.state_dim, np.float32)
        paper = padding == "paper"
        self._padding_state = (zero - self.state_mean) / self.state_std if paper else zero
        self._padding_action = _PAPER_ACTION if paper else 0.0
        self._copy(store, lengths)

    def _copy(self, store: _C.TrajectoryStore, lengths: np.ndarray) -> None:
        """Takes the recording over as items hold it: the arithmetic of the C++ sampler."""
        count = store.num_transitions
        states: np.ndarray = np.empty((count, store.state_dim), np.float32)
        actions: np.ndarray = np.empty((count, store.act_dim), np.float32)
        rtg: np.ndarray = np.empty((count, 1), np.float32)
        ends = np.cumsum(lengths)
        for i, end in enumerate(ends):
            episode, rows = store.episode(i), slice(int(end - lengths[i]), int(end))
            states[rows] = (episode["observations"] - self.state_mean) / self.state_std
            actions[rows] = episode["actions"]
            rtg[rows, 0] = episode["returns_to_go"].astype(np.float64) / self.rtg_scale
        # Of each transition: where its episode begins and ends.
        bounds: np.ndarray = np.repeat(np.stack([ends - lengths, ends], 1), lengths, 0)
        self._hold([states, actions, rtg, bounds])

    def _hold(self, arrays: list[np.ndarray]) -> None:
        self._arrays = arrays
        # What worker processes are sent: torch moves a tensor to shared memory the first time.
        # Items are read from the arrays, in two thirds of the time.
        self._sent = [torch.from_numpy(array) for array in arrays]

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_arrays"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._hold([tensor.numpy() for tensor in self._sent])

    def __len__(self) -> int:
        return len(self._arrays[0])

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"segment {index} of {len(self)}")
        first = index % len(self)
        states, actions, rtg, bounds = self._arrays
        start, end = bounds[first]
        length = min(self.context_length, int(end) - first)
        steps = np.arange(first - start, first - start + length)
        return {
            "states": self._padded(states, first, length, self._padding_state),
            "actions": self._padded(actions, first, length, self._padding_action),
            "returns_to_go": self._padded(rtg, first, length, 0.0),
            "timesteps": self._padded(np.minimum(steps, self.max_timestep - 1), 0, length, 0),
            "mask": self._padded(np.ones(length, bool), 0, length, False),
        }

    def _padded(self, rows: np.ndarray, first: int, length: int, padding: Any) -> torch.Tensor:
        out = np.empty((self.context_length, *rows.shape[1:]), rows.dtype)
        out[: self.context_length - length] = padding
        out[self.context_length - length :] = rows[first : first + length]
        return torch.from_numpy(out)


def default_rtg_scale(store: _C.TrajectoryStore) -> float:
    """The raw return per model unit: the largest power of ten not above the largest ``|return|``.

    Scaled returns then peak between 1 and 10, as in the paper's recipes (1000 for returns of
    thousands). 1 where no return is as large as that.
    """
    peak = float(np.abs(store.episode_returns).max())
    return 10.0 ** math.floor(math.log10(peak)) if peak >= 1.0 else 1.0
