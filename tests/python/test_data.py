"""Datasets by name, what they hold, and the settings that follow from them."""

from types import SimpleNamespace

import numpy as np
import pytest
from conftest import LENGTHS, tiny, write_dataset

import dmamba
from dmamba import data, training


def store_with(returns):
    return SimpleNamespace(episode_returns=np.array(returns))


def test_load(dataset):
    store = data.load(dataset)
    assert (store.num_episodes, store.num_transitions) == (len(LENGTHS), sum(LENGTHS))
    assert store.episode_lengths.tolist() == list(LENGTHS)
    assert store.episode(1)["observations"].shape == (12, 11)


@pytest.mark.parametrize("name", ["hopper-medium", "samples/hopper-medium.hdf5"])
def test_the_sample_comes_with_the_package(name):
    assert data.locate(name) == data.PACKAGE_FOLDER / "samples" / "hopper-medium.hdf5"
    assert data.locate(name).is_file()


def test_the_order_of_the_places(elsewhere, monkeypatch):
    cache = elsewhere / "home" / ".cache" / "dmamba" / "datasets"
    own = elsewhere / "own"
    places = [
        cache / "hopper_medium_replay-v2.hdf5",
        cache / "hopper-medium-replay-v2.hdf5",
        own / "hopper-medium-replay-v2.hdf5",
        elsewhere / "hopper-medium-replay-v2",
    ]
    monkeypatch.setenv("DMAMBA_DATA", str(own))
    for place in places:  # each is found before those that are there already
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"")
        assert data.locate("hopper-medium-replay-v2").absolute() == place


def test_a_missing_dataset_lists_the_places(elsewhere, monkeypatch):
    monkeypatch.setenv("DMAMBA_DATA", str(elsewhere / "own"))
    with pytest.raises(dmamba.DataError, match="dataset 'hopper-medium-v2' not found") as error:
        data.locate("hopper-medium-v2")
    assert "dmamba data download hopper-medium-v2" in str(error.value)
    for place in (
        elsewhere / "own" / "hopper-medium-v2.hdf5",
        elsewhere / "own" / "hopper_medium-v2.hdf5",
        elsewhere / "home" / ".cache" / "dmamba" / "datasets" / "hopper_medium-v2.hdf5",
    ):
        assert str(place) in str(error.value)
    with pytest.raises(dmamba.DataError, match=r"set dataset\.path"):
        data.load("")


def test_a_file_that_is_no_dataset(elsewhere):
    (elsewhere / "notes.hdf5").write_text("not HDF5")
    with pytest.raises(dmamba.DataError, match=r"notes\.hdf5"):
        data.load("notes.hdf5")
    (elsewhere / "folder").mkdir()
    with pytest.raises(dmamba.DataError, match="folder"):
        data.load("folder")


def test_info(dataset):
    result = data.info(dataset)
    assert result["environment"] == "Hopper-v4"
    assert (result["episodes"], result["transitions"]) == (len(LENGTHS), sum(LENGTHS))
    assert (result["length_min"], result["length_max"]) == (min(LENGTHS), max(LENGTHS))
    assert result["constants"]["borrowed"] is True
    expected = dmamba.envs.normalized_score("hopper", result["return_mean"])
    assert result["score_mean"] == pytest.approx(expected)
    text = data.format_info(result)
    assert "Hopper-v4" in text and "borrowed" in text and f"{sum(LENGTHS)}" in text


def test_info_of_an_unknown_environment(elsewhere):
    path = write_dataset(elsewhere / "robot.hdf5", state_dim=4, act_dim=2)
    result = data.info(path)
    assert result["environment"] == "" and result["score_mean"] is None
    text = data.format_info(result)
    assert "not named by the file" in text and "no normalised score" in text


def test_the_environment_follows_from_the_name(elsewhere):
    path = write_dataset(elsewhere / "hopper_medium-v2.hdf5")
    result = data.info(path)
    assert result["environment"] == "Hopper-v4"
    assert result["constants"]["borrowed"] is False


@pytest.mark.parametrize(
    ("returns", "scale"),
    [
        ([2173.6, 750.0], 1000.0),
        ([999.9], 100.0),
        ([1000.0], 1000.0),
        ([-20.0, 5.0], 10.0),
        ([0.5], 1.0),
        ([0.0], 1.0),
    ],
)
def test_rtg_scale(returns, scale):
    assert data.rtg_scale(store_with(returns)) == scale


def test_default_targets(dataset):
    store = data.load(dataset)
    low, high = data.default_targets(store)
    assert high == pytest.approx(store.episode_returns.max(), rel=1e-3)
    assert low == pytest.approx(store.summary()["return_percentile_90"], rel=1e-3)


def test_resolve_fills_in_what_is_empty(dataset, elsewhere):
    config = training.load_config(tiny(dataset), ["evaluation.targets=[]", "max_timestep=10"])
    config.dataset.path = str(dataset.relative_to(dataset.parents[1]))
    (elsewhere / dataset.parent.name).symlink_to(dataset.parent)
    resolved = data.resolve(config, data.load(dataset))
    assert resolved.dataset.path == str(dataset.resolve())
    assert resolved.dataset.environment == "Hopper-v4"
    assert resolved.dataset.rtg_scale == 10.0
    assert resolved.dataset.max_episode_length == 1000, "Hopper's own time limit"
    assert resolved.model.max_timestep == 1000
    assert len(resolved.evaluation.targets) == 2
    assert config.dataset.rtg_scale == 0.0, "the original is left alone"


def test_the_length_of_an_episode_comes_from_the_data(elsewhere):
    path = write_dataset(elsewhere / "robot.hdf5")
    config = training.load_config(tiny(path), ["max_timestep=10"])
    resolved = data.resolve(config, data.load(path))
    assert resolved.dataset.max_episode_length == max(LENGTHS)
    assert resolved.model.max_timestep == max(LENGTHS)
    assert resolved.dataset.environment == ""


def test_resolve_keeps_what_is_set(dataset):
    overrides = ["rtg_scale=7", "environment=Walker2d-v4", "max_episode_length=200"]
    config = training.load_config(tiny(dataset), overrides)
    resolved = data.resolve(config, data.load(dataset))
    assert resolved.dataset.rtg_scale == 7.0
    assert resolved.dataset.environment == "Walker2d-v4"
    assert resolved.dataset.max_episode_length == 200
    assert resolved.model.max_timestep == 1000
    assert resolved.evaluation.targets == [100.0, 500.0]
