"""Segments of games for a DataLoader: against a slow reference, and against the C++ sampler."""

import pickle
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from replay_games import CHAIN, write_recording

import dmamba
from dmamba import _C, data

K = 5


@pytest.fixture
def store(tmp_path):
    return data.load(write_recording(tmp_path / "Breakout"), cache="memory", progress=False)


def reference(store, index):
    """Item `index`, a step and a frame at a time."""
    ends = np.cumsum(store.episode_lengths)
    game = int(np.searchsorted(ends, index, side="right"))
    start, end = int(ends[game] - store.episode_lengths[game]), int(ends[game])
    first = max(start, min(index, end - K))
    length = min(K, end - first)
    item = {
        "frames": np.zeros((K, 4, 84, 84), np.uint8),
        "actions": np.zeros(K, np.int64),
        "returns_to_go": np.zeros((K, 1), np.float32),
        "timesteps": np.int64(first - start),
        "mask": np.zeros(K, bool),
    }
    for step in range(length):
        row, place = first + step, K - length + step
        for back in range(4):
            if row - back >= start:
                item["frames"][place, 3 - back] = store.frames[row - back]
        item["actions"][place] = store.actions[row]
        item["returns_to_go"][place] = store.rewards[row:end].sum() / 2.0
        item["mask"][place] = True
    return item


def test_items(store):
    segments = data.FrameSegmentDataset(store, K, rtg_scale=2.0)
    assert len(segments) == sum(CHAIN)
    for index in range(len(segments)):
        item, expected = segments[index], reference(store, index)
        assert item.keys() == expected.keys()
        for name, value in expected.items():
            assert np.array_equal(item[name].numpy(), value), (index, name)
            assert str(item[name].dtype).endswith(str(value.dtype)), name
    assert torch.equal(segments[-1]["frames"], segments[len(segments) - 1]["frames"])
    with pytest.raises(IndexError):
        segments[len(segments)]


def test_timesteps_are_capped(store):
    segments = data.FrameSegmentDataset(store, K, max_timestep=3)
    assert max(int(segments[i]["timesteps"]) for i in range(len(segments))) == 2


def test_our_training_draws_the_same_segments(store):
    segments = data.FrameSegmentDataset(store, K)
    sampler = _C.FrameSampler(store, batch_size=16, context_length=K, seed=3)
    ends = np.cumsum(store.episode_lengths)
    for step in range(4):
        strips, actions, rtg, timesteps, mask = sampler.sample(step)
        for row in range(16):
            game, start, _ = sampler.segment(step, row)
            item = segments[int(ends[game] - store.episode_lengths[game]) + start]
            stacks = np.lib.stride_tricks.sliding_window_view(strips[row], 4, axis=0)
            stacks = stacks.transpose(0, 3, 1, 2)
            assert np.array_equal(item["frames"][mask[row]], stacks[mask[row]])
            assert np.array_equal(item["actions"], actions[row])
            assert np.array_equal(item["returns_to_go"], rtg[row])
            assert item["timesteps"] == timesteps[row]
            assert np.array_equal(item["mask"], mask[row])


def test_workers_share_the_frames(store):
    segments = data.FrameSegmentDataset(store, K)
    loader = torch.utils.data.DataLoader(segments, batch_size=7, num_workers=1)
    batches = list(loader)
    assert batches[0]["frames"].shape == (7, K, 4, 84, 84)
    assert sum(len(batch["mask"]) for batch in batches) == sum(CHAIN)


def test_workers_that_are_not_forked_are_not_sent_the_frames(store):
    segments = data.FrameSegmentDataset(store, K, rtg_scale=2.0)
    sent = ForkingPickler.dumps(segments)
    assert len(sent) < store.frames.nbytes / 4 and len(sent) < len(pickle.dumps(segments)) / 4
    loader = torch.utils.data.DataLoader(
        segments, batch_size=4, num_workers=2, multiprocessing_context="spawn"
    )
    items = torch.cat([batch["frames"] for batch in loader])
    np.testing.assert_array_equal(
        items, np.stack([reference(store, index)["frames"] for index in range(len(segments))])
    )


def test_refusals(store):
    with pytest.raises(dmamba.DataError, match="longest"):
        data.FrameSegmentDataset(store, max(CHAIN) + 1)
    with pytest.raises(dmamba.ConfigError, match="rtg_scale"):
        data.FrameSegmentDataset(store, K, rtg_scale=0.0)
