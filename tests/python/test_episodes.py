"""Stores from arrays: what they hold, what is refused, and training on them."""

import h5py
import numpy as np
import pytest
from conftest import left_in, tiny

import dmamba
from dmamba import data
from dmamba.data import hdf5

STATE_DIM, ACT_DIM = 4, 2


def episode(length, terminated=False, extra=0, seed=0):
    rng = np.random.default_rng([seed, length])
    return {
        "observations": rng.normal(size=(length + extra, STATE_DIM)),
        "actions": rng.uniform(-1, 1, size=(length, ACT_DIM)),
        "rewards": rng.uniform(1, 3, size=length),
        "terminated": terminated,
    }


EPISODES = [episode(9), episode(1, True), episode(30, True, extra=1), episode(12)]


def test_episodes_come_back_as_they_were():
    store = data.from_episodes(EPISODES, name="mine", environment="Hopper-v4")
    assert (store.state_dim, store.act_dim) == (STATE_DIM, ACT_DIM)
    assert store.episode_lengths.tolist() == [9, 1, 30, 12]
    assert data.environment_of(store) == "Hopper-v4"
    assert "mine" in store.name
    for i, given in enumerate(EPISODES):
        got = store.episode(i)
        count = len(given["rewards"])
        np.testing.assert_array_equal(
            got["observations"], given["observations"][:count].astype(np.float32)
        )
        for field in ("actions", "rewards"):
            np.testing.assert_array_equal(got[field], given[field].astype(np.float32))
        assert got["terminated"] is given["terminated"]


def test_tuples_and_what_a_store_gives_are_episodes_too():
    by_dict = data.from_episodes(EPISODES)
    by_tuple = data.from_episodes([tuple(e.values()) for e in EPISODES])
    again = data.from_episodes([by_dict.episode(i) for i in range(len(by_dict))])
    assert by_tuple.summary() == by_dict.summary() == again.summary()


def test_arrays_as_d4rl_has_them():
    ends = np.zeros(12, bool)
    ends[[4, 9]] = True
    terminals = np.zeros(12, np.int64)
    terminals[4] = 1
    arrays = (np.ones((12, 3), int), np.ones((12, 1)), np.arange(12.0), terminals, ends)
    store = data.from_arrays(*arrays)
    assert store.episode_lengths.tolist() == [5, 5] and store.dropped_transitions == 2
    assert [store.episode(i)["terminated"] for i in range(2)] == [True, False]
    assert store.episode_returns.tolist() == [10.0, 35.0]


def changed(**fields):
    return [EPISODES[0], {**EPISODES[3], **fields}]


@pytest.mark.parametrize(
    ("episodes", "message"),
    [
        ([], "e: there are no episodes"),
        ([EPISODES[0], "text"], "e: episode 1: must be a dict or a tuple"),
        ([EPISODES[0], (1, 2)], "e: episode 1: .* got tuple of 2"),
        ([{"rewards": [1.0]}], "e: episode 0: missing observations, actions, terminated"),
        (changed(rewards=[]), "e: episode 1: rewards are empty"),
        (changed(rewards=np.ones((12, 1))), r"episode 1: rewards: must be \(T,\), got \(12, 1\)"),
        (changed(actions=np.ones(12)), r"episode 1: actions: must be \(T, act_dim\), got \(12,\)"),
        (changed(actions=np.ones((11, 2))), "episode 1: actions: 11 rows, must be 12"),
        (changed(observations=np.ones((14, 4))), "observations: 14 rows, must be 12 or 13"),
        (changed(observations=np.ones((12, 5))), "episode 1: observations have 5 .* 0 have 4"),
        (changed(actions=np.ones((12, 3))), "episode 1: actions have 3 .* 0 have 2"),
        (changed(actions=np.ones((12, 2), complex)), "actions: must be real numbers, got complex"),
        (changed(observations=[[1.0], [1.0, 2.0]]), "episode 1: observations: not an array"),
        (changed(rewards=[1.0] * 11 + [np.nan]), r"episode 1: rewards\[11\] is nan"),
        (changed(actions=np.full((12, 2), 1e39)), r"actions\[0, 0\] is 1e\+39.*24 such"),
        (changed(rewards=np.full(12, 1e38)), "rewards: their sum leaves the range"),
        (changed(terminated=np.zeros(12, bool)), r"terminated: must be one bool .* shape \(12,\)"),
        (changed(terminated=1), "episode 1: terminated: must be one bool"),
    ],
)
def test_episodes_that_cannot_be_used(episodes, message):
    with pytest.raises(dmamba.DataError, match=message):
        data.from_episodes(episodes, name="e")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rewards": np.ones(0)}, "arrays: there are no transitions"),
        ({"actions": np.ones((3, 2))}, "arrays: actions: 3 rows, must be 4"),
        ({"terminals": [0, 0, 2, 1]}, "terminals: must be bool, or 0 and 1"),
        ({"timeouts": np.zeros((4, 1), bool)}, r"timeouts: must be \(N,\), got \(4, 1\)"),
        ({"terminals": [False] * 4}, "no episode ends"),
    ],
)
def test_arrays_that_cannot_be_used(change, message):
    arrays = {
        "observations": np.ones((4, 3)),
        "actions": np.ones((4, 2)),
        "rewards": np.ones(4),
        "terminals": [False, False, False, True],
        "timeouts": [False] * 4,
    }
    assert data.from_arrays(**arrays).num_transitions == 4
    with pytest.raises(dmamba.DataError, match=message):
        data.from_arrays(**{**arrays, **change})


def test_saved_episodes_are_a_dataset(elsewhere):
    store = data.from_episodes(EPISODES, environment="Hopper-v4", save="mine.hdf5")
    assert store.name == "mine.hdf5"
    assert data.info("mine.hdf5")["environment"] == "Hopper-v4"
    with h5py.File("mine.hdf5") as file:  # an independent reader
        assert sorted(file) == [
            "actions",
            "metadata",
            "observations",
            "rewards",
            "terminals",
            "timeouts",
        ]
        expected = np.concatenate([e["actions"] for e in EPISODES]).astype(np.float32)
        np.testing.assert_array_equal(file["actions"][:], expected)
        assert np.flatnonzero(file["terminals"]).tolist() == [9, 39]
        assert np.flatnonzero(file["timeouts"]).tolist() == [8, 51]
        assert file["metadata/environment"][()].decode() == "Hopper-v4"
    assert left_in(elsewhere) == ["mine.hdf5"]


def test_the_file_is_read_by_others(elsewhere):
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([1, 0], np.uint8)}
    hdf5.write("x.hdf5", arrays, {"ü": "naïve"})
    with h5py.File("x.hdf5") as file:
        for name, array in arrays.items():
            np.testing.assert_array_equal(file[name][:], array)
            assert file[name].dtype == array.dtype
        assert file["metadata/ü"][()].decode() == "naïve"


def test_training_on_arrays_and_resuming(elsewhere):
    def config(steps):
        return {**tiny("unused", steps=steps), "seed": 3}

    store = data.from_episodes(EPISODES, name="mine")
    quiet = {"progress": False, "evaluate": False}
    run = dmamba.train(config(10), dataset=store, output="run", **quiet)
    assert run.config.dataset.path.startswith("memory:mine-")
    with pytest.raises(dmamba.DataError, match="trained on arrays in memory.*dataset=store"):
        dmamba.train(None, output="run", resume=True, **quiet)
    same = data.from_episodes(EPISODES, name="mine")
    again = dmamba.train(None, dataset=same, output="run", resume=True, **quiet)
    assert again.summary()["times"]["first_step"] == 10
    other = data.from_episodes(EPISODES[:3], name="mine")
    with pytest.raises(dmamba.ConfigError, match="dataset.path was"):
        dmamba.train(None, dataset=other, output="run", resume=True, **quiet)


def test_training_on_a_store_is_training_on_its_file(dataset, trained):
    config = tiny(dataset)
    config["evaluation"]["every"] = 15
    config["dataset"]["path"] = "somewhere-else.hdf5"
    store = data.load(dataset)
    run = dmamba.train(config, dataset=store, output="run", progress=False, evaluate=False)
    assert run.config.dataset.path == str(dataset.resolve())
    expected = trained.metrics()["training/loss"]
    np.testing.assert_array_equal(run.metrics()["training/loss"], expected)
