"""Recorded games: the store of frames, its reader and its sampler, through the bindings."""

import gc
import gzip
import io

import numpy as np
import pytest

import dmamba
from dmamba import _C


def write_array(folder, field, number, values):
    buffer = io.BytesIO()
    np.save(buffer, values)
    (folder / f"$store$_{field}_ckpt.{number}.gz").write_bytes(gzip.compress(buffer.getvalue()))


def write_shard(folder, number, lengths, seed):
    """Padded episodes of random frames; returns what a store should hold."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    frames, actions, rewards, terminals, kept = [], [], [], [], []
    for length in lengths:
        frames += [
            np.zeros((3, 84, 84), np.uint8),
            rng.integers(1, 255, (length, 84, 84), np.uint8),
        ]
        actions += [[0] * 3, rng.integers(0, 6, length)]
        rewards += [[0] * 3, rng.integers(-1, 2, length)]
        terminals += [[0] * (length + 2), [1]]
        kept += [[False] * 3, [True] * length]
    columns = {
        "observation": np.concatenate(frames),
        "action": np.concatenate(actions).astype(np.int32),
        "reward": np.concatenate(rewards).astype(np.float32),
        "terminal": np.concatenate(terminals).astype(np.uint8),
    }
    for field, values in columns.items():
        write_array(folder, field, number, values)
    return {field: values[np.concatenate(kept)] for field, values in columns.items()}


@pytest.fixture
def recording(tmp_path):
    logs = tmp_path / "Pong" / "1" / "replay_logs"
    shards = [write_shard(logs, 5, [4, 9], seed=1), write_shard(logs, 6, [7], seed=2)]
    return tmp_path, {field: np.concatenate([s[field] for s in shards]) for field in shards[0]}


def test_the_store_holds_the_recording(recording):
    path, expected = recording
    store = _C.open_replay(str(path))
    assert isinstance(store, _C.EpisodeStore)
    assert (store.name, len(store), store.num_episodes) == (str(path), 3, 3)
    assert store.metadata == {"game": "Pong", "shards": "5-6"}
    assert store.num_transitions == 20 and store.dropped_transitions == 0
    assert store.num_actions == expected["action"].max() + 1
    np.testing.assert_array_equal(store.frames, expected["observation"])
    np.testing.assert_array_equal(store.actions, expected["action"])
    np.testing.assert_array_equal(store.rewards, expected["reward"])
    np.testing.assert_array_equal(store.episode_ends, [4, 13, 20])
    np.testing.assert_array_equal(store.episode_lengths, [4, 9, 7])
    returns = np.add.reduceat(expected["reward"], [0, 4, 13])
    np.testing.assert_array_equal(store.episode_returns, returns)
    np.testing.assert_array_equal(store.returns_to_go[[0, 4, 13]], returns)
    assert store.summary()["return_mean"] == pytest.approx(returns.mean())


def test_episodes(recording):
    path, expected = recording
    store = _C.open_replay(str(path))
    for index, rows in ((0, slice(0, 4)), (1, slice(4, 13)), (-1, slice(13, 20))):
        episode = store.episode(index)
        np.testing.assert_array_equal(episode["frames"], expected["observation"][rows])
        np.testing.assert_array_equal(episode["actions"], expected["action"][rows])
        np.testing.assert_array_equal(episode["rewards"], expected["reward"][rows])
        assert episode["returns_to_go"][0] == expected["reward"][rows].sum()
        assert episode["terminated"] is True
    with pytest.raises(IndexError, match="episode 3 of 3"):
        store.episode(3)


def test_arrays_are_read_only_views_that_keep_the_store(recording):
    path, expected = recording
    store = _C.open_replay(str(path))
    frames, again = store.frames, store.frames
    assert np.shares_memory(frames, again)
    assert np.shares_memory(frames, store.episode(1)["frames"])
    with pytest.raises(ValueError, match="read-only"):
        frames[0, 0, 0] = 1
    del store, again
    gc.collect()
    np.testing.assert_array_equal(frames, expected["observation"])


def test_selection_and_cache(recording, tmp_path):
    path, expected = recording
    cache = tmp_path / "cache"
    store = _C.open_replay(str(path), buffers=1, game="pong", cache=str(cache))
    np.testing.assert_array_equal(store.frames, expected["observation"][13:])
    (converted,) = cache.iterdir()
    assert converted.name.startswith("Pong-") and converted.suffix == ".h5"
    np.testing.assert_array_equal(_C.open_replay(str(converted)).frames, store.frames)
    some = _C.open_replay(str(path), trajectories_per_buffer=1, transitions=5, seed=3)
    assert 5 <= some.num_transitions < 20


def test_progress(recording):
    path, _ = recording
    calls = []
    _C.open_replay(str(path), progress=lambda done, total: calls.append((done, total)))
    assert calls and calls[-1][0] == calls[-1][1] > 0
    with pytest.raises(KeyboardInterrupt):
        _C.open_replay(str(path), progress=stop)


def stop(done, total):
    raise KeyboardInterrupt


def test_errors(recording, tmp_path):
    path, _ = recording
    with pytest.raises(dmamba.DataError, match="no such file or folder"):
        _C.open_replay(str(path / "nowhere"))
    with pytest.raises(dmamba.ConfigError, match="transitions must be at least 0"):
        _C.open_replay(str(path), transitions=-1)
    with pytest.raises(dmamba.DataError, match="longest episode, 9 steps"):
        _C.FrameSampler(_C.open_replay(str(path)), batch_size=2, context_length=10)


def test_the_sampler_writes_segments(recording):
    path, _ = recording
    store = _C.open_replay(str(path))
    sampler = _C.FrameSampler(store, batch_size=32, context_length=6, seed=4, rtg_scale=2.0)
    strips, actions, rtg, timesteps, mask = sampler.sample(9)
    assert strips.shape == (32, 9, 84, 84) and strips.dtype == np.uint8
    assert actions.shape == (32, 6) and actions.dtype == np.int64
    assert rtg.shape == (32, 6, 1) and timesteps.shape == (32,) and mask.shape == (32, 6)
    for i in range(32):
        index, start, length = sampler.segment(9, i)
        episode = store.episode(index)
        padding = 6 - length
        np.testing.assert_array_equal(mask[i], [False] * padding + [True] * length)
        assert timesteps[i] == start
        rows = slice(start, start + length)
        np.testing.assert_array_equal(actions[i, padding:], episode["actions"][rows])
        np.testing.assert_array_equal(rtg[i, padding:, 0], episode["returns_to_go"][rows] / 2)
        stacked = np.concatenate([np.zeros((3, 84, 84), np.uint8), episode["frames"]])
        np.testing.assert_array_equal(strips[i, padding:], stacked[start : start + length + 3])
        assert not strips[i, :padding].any()
