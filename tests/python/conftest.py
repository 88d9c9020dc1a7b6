"""Fixtures: a tiny dataset, a tiny configuration, one trained run that the tests only read."""

import os
from pathlib import Path

import h5py
import numpy as np
import pytest

import dmamba

LENGTHS = (30, 12, 45, 7, 21)


def write_dataset(path: Path, state_dim=11, act_dim=3, lengths=LENGTHS, metadata=None) -> Path:
    """Writes a dataset in D4RL's layout, with actions that are a function of the state."""
    rng = np.random.default_rng(3)
    total = sum(lengths)
    states = rng.normal(size=(total, state_dim)).astype(np.float32)
    mixing = rng.normal(size=(state_dim, act_dim))
    timeouts = np.zeros(total, dtype=bool)
    timeouts[np.cumsum(lengths) - 1] = True
    with h5py.File(path, "w") as file:
        file["observations"] = states
        file["actions"] = np.tanh(states @ mixing).astype(np.float32)
        file["rewards"] = rng.uniform(1.0, 3.0, size=total).astype(np.float32)
        file["terminals"] = np.zeros(total, dtype=bool)
        file["timeouts"] = timeouts
        for key, value in (metadata or {}).items():
            file[f"metadata/{key}"] = value
    return path


def tiny(dataset: Path, **training) -> dict:
    """A configuration that trains in about a second, on the CPU, whatever the machine has."""
    return {
        "name": "tiny",
        "seed": 7,
        "dataset": {"path": str(dataset)},
        "model": {"d_model": 16, "n_layer": 1, "context_length": 5},
        "training": {
            "steps": 30,
            "batch_size": 8,
            "warmup_steps": 5,
            "log_every": 4,
            "checkpoint_every": 10,
            "device": "cpu",
            **training,
        },
        "evaluation": {"episodes": 3, "targets": [100, 500]},
    }


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> Path:
    """A dataset that names Hopper-v4 as its environment."""
    folder = tmp_path_factory.mktemp("data")
    return write_dataset(folder / "tiny.hdf5", metadata={"environment": "Hopper-v4"})


@pytest.fixture(scope="session")
def trained(dataset, tmp_path_factory) -> dmamba.Run:
    """A finished run with two evaluations; tests must not write to it."""
    config = tiny(dataset)
    config["evaluation"]["every"] = 15
    folder = tmp_path_factory.mktemp("runs") / "trained"
    return dmamba.train(config, output=folder, progress=False)


def left_in(folder: Path) -> list[str]:
    """Names of what a test has left there, but for its home."""
    return sorted(path.name for path in folder.iterdir() if path.name != "home")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Each test runs in a folder of its own, without the user's datasets and without D4RL's."""
    monkeypatch.chdir(tmp_path)
    data = ("DMAMBA_DATA", "MINARI_DATASETS_PATH", "MINARI_REMOTE")
    for name in (*data, "COLUMNS", "FORCE_COLOR", "CLICOLOR_FORCE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DMAMBA_D4RL_URL", "http://127.0.0.1:9/closed")
    # There lie the user's datasets, and which files have been checked.
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert Path.home() == tmp_path / "home"
    return Path(os.getcwd())
