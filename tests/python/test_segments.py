"""SegmentDataset against the sampler that training uses, and in a DataLoader."""

import pickle
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from conftest import LENGTHS
from torch.utils.data import DataLoader

import dmamba
from dmamba import _C, data

FIELDS = ("states", "actions", "returns_to_go", "timesteps", "mask")
K = 10


@pytest.fixture(scope="module")
def store(dataset):
    return data.load(dataset)


@pytest.mark.parametrize("padding", ["masked", "paper"])
def test_items_are_training_s_own_bits(store, padding):
    segments = data.SegmentDataset(store, K, max_timestep=20, padding=padding)
    mean, std = store.state_statistics()
    sampler = _C.SegmentSampler(
        store, 64, K, 5, padding == "paper", data.rtg_scale(store), mean, std, 20
    )
    starts = np.cumsum([0, *LENGTHS])
    short = 0
    for step in range(3):
        batch = dict(zip(FIELDS, sampler.sample(step), strict=True))
        for row in range(64):
            number, start, length = sampler.segment(step, row)
            item = segments[int(starts[number]) + start]
            short += length < K
            assert list(item) == list(FIELDS)
            for field in FIELDS:
                np.testing.assert_array_equal(item[field].numpy(), batch[field][row], field)
                assert item[field].numpy().dtype == batch[field].dtype
    assert short > 10, "padding was compared, too"


def test_every_transition_is_the_start_of_one(store):
    segments = data.SegmentDataset(store, K)
    assert len(segments) == sum(LENGTHS)
    last = segments[-1]
    assert last["mask"].tolist() == [False] * (K - 1) + [True]
    assert last["timesteps"][-1] == LENGTHS[-1] - 1
    for index in (len(segments), -len(segments) - 1):
        with pytest.raises(IndexError, match=f"segment {index} of {len(segments)}"):
            segments[index]


def test_a_loader_feeds_the_model(store):
    segments = data.SegmentDataset(store, K, rtg_scale=50.0)
    loader = DataLoader(segments, batch_size=16, shuffle=True, num_workers=1, drop_last=True)
    seen = 0
    model = dmamba.nn.DMamba(store.state_dim, store.act_dim, d_model=16, context_length=K)
    for batch in loader:
        seen += len(batch["mask"])
        actions = model(*(batch[field] for field in FIELDS))
        assert actions.shape == (16, K, store.act_dim) and torch.isfinite(actions).all()
        break
    assert seen == 16


def test_workers_that_are_not_forked_share_the_arrays(store):
    segments = data.SegmentDataset(store, K)
    in_full = pickle.dumps(segments)
    assert len(in_full) > store.num_transitions * store.state_dim * 4
    assert len(ForkingPickler.dumps(segments)) < len(in_full) / 2
    loader = DataLoader(segments, batch_size=16, num_workers=2, multiprocessing_context="spawn")
    states = torch.cat([batch["states"] for batch in loader])
    expected = np.stack([segments[index]["states"] for index in range(len(segments))])
    np.testing.assert_array_equal(states, expected)
    again = ForkingPickler.loads(ForkingPickler.dumps(pickle.loads(in_full)))
    np.testing.assert_array_equal(again[5]["states"], expected[5])


def test_one_s_own_normalisation(store):
    mean, std = np.full(store.state_dim, 2.0), np.full(store.state_dim, 4.0)
    item = data.SegmentDataset(store, 1, state_mean=mean, state_std=std, rtg_scale=10)[0]
    raw = store.episode(0)
    np.testing.assert_allclose(item["states"][0], (raw["observations"][0] - 2) / 4, rtol=1e-6)
    assert item["returns_to_go"][0, 0] == pytest.approx(raw["returns_to_go"][0] / 10)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"context_length": 46}, dmamba.DataError, "K = 46 exceeds the longest episode, 45"),
        ({"context_length": 0}, dmamba.ConfigError, "context_length must be at least 1"),
        ({"rtg_scale": 0.0}, dmamba.ConfigError, "rtg_scale must be a positive number"),
        ({"state_std": [1.0]}, dmamba.ConfigError, "state_dim = 11"),
        ({"padding": "none"}, dmamba.ConfigError, "padding must be masked or paper"),
    ],
)
def test_arguments_that_cannot_be_used(store, options, error, message):
    with pytest.raises(error, match=message):
        data.SegmentDataset(store, **{"context_length": 5, **options})
