"""Datasets that stay on disk: the same segments, the same run, and errors that say what to do."""

import os

import numpy as np
import pytest
from conftest import tiny
from minari_made import ID, make

import dmamba
from dmamba import _C, data


def both(path):
    return [data.load(path, storage=kind, progress=False) for kind in ("memory", "disk")]


def test_a_run_has_the_same_bits_from_disk_and_from_memory(dataset, elsewhere):
    folders = []
    for number, store in enumerate(both(dataset)):
        config = tiny(dataset, steps=12)
        run = dmamba.train(
            config, dataset=store, output=f"run-{number}", progress=False, evaluate=False
        )
        folders.append(run.folder)
    for file in ("metrics.csv", "checkpoints/step-00000012/model.safetensors"):
        assert (folders[0] / file).read_bytes() == (folders[1] / file).read_bytes()


def test_episodes_statistics_and_shares_are_the_same(dataset):
    memory, disk = both(dataset)
    assert disk.summary() == memory.summary()
    for mine, theirs in zip(disk.state_statistics(), memory.state_statistics(), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    config = _C.Config()
    config.dataset.fraction, config.dataset.rewards = 0.5, "delayed"
    shares = [data.reshape(store, config.dataset) for store in (memory, disk)]
    for number in range(len(shares[0])):
        for key, value in shares[0].episode(number).items():
            np.testing.assert_array_equal(shares[1].episode(number)[key], value)


def test_minari_from_disk(elsewhere, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(elsewhere / "minari"))
    from minari_made import VECTOR

    make(ID, **VECTOR)
    memory, disk = both(ID)
    assert disk.metadata == memory.metadata and disk.summary() == memory.summary()
    for number in range(len(memory)):
        for key, value in memory.episode(number).items():
            np.testing.assert_array_equal(disk.episode(number)[key], value)


def test_scratch_files_leave_nothing_behind(dataset, elsewhere, monkeypatch):
    monkeypatch.setenv("DMAMBA_DATA", str(elsewhere / "cache"))
    before = len(os.listdir("/proc/self/fd"))
    store = data.load(dataset, storage="disk", progress=False)
    assert len(os.listdir("/proc/self/fd")) == before + 4  # three columns, the returns-to-go
    assert os.listdir(elsewhere / "cache") == []
    del store
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_key_of_the_configuration_chooses_memory(dataset, elsewhere, monkeypatch):
    kinds = []
    opened = _C.open_dataset

    def note(path, format, *, storage, **others):
        kinds.append(storage)
        return opened(path, format, storage=storage, **others)

    monkeypatch.setattr(_C, "open_dataset", note)
    config = _C.Config()
    config.dataset.path = str(dataset)
    for cache in ("disk", "memory"):
        config.dataset.cache = cache
        data.load_configured(config.dataset, progress=False)
    assert kinds == ["auto", "memory"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"storage": "tape"}, "storage must be one of auto, memory, disk, got 'tape'"),
        ({"storage": "disk", "game": "Pong"}, "game is for recorded games"),
    ],
)
def test_options_that_do_not_fit(dataset, options, message):
    with pytest.raises(dmamba.ConfigError, match=message):
        data.load(dataset, progress=False, **options)


def test_of_games_it_is_the_cache_that_chooses(elsewhere):
    from replay_games import write_recording

    with pytest.raises(dmamba.ConfigError, match=r"not for recorded games, which have cache"):
        data.load(write_recording(elsewhere / "Pong"), storage="disk", progress=False)


def test_no_room_for_scratch_files(dataset, elsewhere, monkeypatch):
    (elsewhere / "file").write_text("")
    monkeypatch.setenv("DMAMBA_DATA", str(elsewhere / "file"))
    with pytest.raises(dmamba.DataError, match=r"file: no scratch file .* let DMAMBA_DATA name"):
        data.load(dataset, storage="disk", progress=False)


def test_reading_can_be_interrupted(dataset, monkeypatch):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _C.open_dataset(str(dataset), "auto", "disk", "", stop)
