"""Minari's datasets: by id and by folder, in its formats, whole or refused, and trained on."""

import json
import os
import shutil
import sys
from pathlib import Path

import gymnasium
import h5py
import numpy as np
import pytest
from conftest import tiny
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete, Text, Tuple
from minari_made import ID, LENGTHS, VECTOR, make, make_episodes, reference
from reach import Reach

import dmamba
from dmamba import data
from dmamba.commands import main
from dmamba.data import minari_folders
from dmamba.envs import vector


@pytest.fixture
def root(elsewhere, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(elsewhere / "sets"))
    return elsewhere / "sets"


@pytest.fixture
def made(root):
    """A dataset of Hopper-v5's spaces; its folder ``data``."""
    make(ID, env="Hopper-v5", algorithm_name="SAC")
    return root / ID / "data"


def change(folder: Path, **entries) -> None:
    path = folder / "metadata.json"
    metadata = json.loads(path.read_text()) | entries
    path.write_text(json.dumps({key: value for key, value in metadata.items() if value != ""}))


def expect_same(store, episodes) -> None:
    assert store.num_episodes == len(episodes)
    for number, expected in enumerate(episodes):
        found = store.episode(number)
        assert np.array_equal(found["observations"], np.float32(expected.observations[:-1]))
        assert np.array_equal(found["actions"], np.float32(expected.actions))
        assert np.array_equal(found["rewards"], np.float32(expected.rewards))
        assert found["terminated"] == bool(expected.terminations[-1])


def test_by_id_folder_and_file(made):
    places = [ID, made.parent, made, made / "main_data.hdf5", str(made.parent) + "/"]
    for place in places:
        store = data.load(place)
        expect_same(store, reference(made))
        assert store.episode_lengths.tolist() == list(LENGTHS)
    assert {episode.terminations[-1] for episode in reference(made)} == {True, False}
    os.chdir(made.parents[2])
    assert data.load("hopper/medium-v0").num_episodes == len(LENGTHS), (
        "a path that looks like an id"
    )


def test_the_usual_place_is_in_the_home(elsewhere, monkeypatch, made):
    monkeypatch.delenv("MINARI_DATASETS_PATH")
    usual = elsewhere / "home" / ".minari" / "datasets"
    shutil.copytree(made.parents[3], usual)
    assert data.load(ID).name == str(usual / ID / "data" / "main_data.hdf5")


def test_info_names_the_environment_and_borrows_constants(made, capsys):
    result = data.info(ID)
    assert result["environment"] == "Hopper-v5"
    assert result["constants"]["borrowed"] is True
    assert result["metadata"]["dataset_id"] == ID and result["metadata"]["algorithm_name"] == "SAC"
    assert result["score_mean"] is not None
    assert main(["data", "info", ID]) == 0
    out = capsys.readouterr().out
    assert "Hopper-v5" in out and "borrowed" in out and "episodes by return" in out


def test_neither_minari_nor_h5py_is_needed_for_hdf5(made, monkeypatch):
    for package in ("minari", "h5py", "pyarrow"):
        monkeypatch.setitem(sys.modules, package, None)
    assert data.load(ID).num_episodes == len(LENGTHS)


@pytest.mark.parametrize("form", ["arrow", "parquet"])
def test_other_formats(root, form):
    make("mine/hdf5-v0", env="Hopper-v5")
    make("mine/other-v0", env="Hopper-v5", data_format=form)
    store = data.load("mine/other-v0")
    expect_same(store, reference(root / "mine" / "hdf5-v0" / "data"))
    assert store.name == str(root / "mine" / "other-v0" / "data")
    assert store.metadata["environment"] == "Hopper-v5"
    run = dmamba.train(tiny("x", steps=2), dataset=store, progress=False, evaluate=False)
    assert run.config.dataset.path == store.name, "which can be loaded again"


def test_a_format_without_its_package(root, monkeypatch):
    make(ID, env="Hopper-v5", data_format="arrow")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(dmamba.DataError, match=r"the format arrow.*pip install pyarrow"):
        data.load(ID)


@pytest.mark.parametrize("form", ["hdf5", "arrow"])
def test_dictionaries_and_tuples_become_vectors(root, form):
    space = Dict(
        {
            "goal": Box(-9, 9, (2,), np.float32),
            "a": Tuple((Box(-9, 9, (3,)), Dict({"x": Box(-9, 9, (1,), np.float64)}))),
        }
    )
    episodes = make(ID, observation_space=space, action_space=Box(-1, 1, (2,)), data_format=form)
    store = data.load(ID)
    assert store.state_dim == 6
    observed = episodes[0].observations
    for step in range(LENGTHS[0]):
        one = {
            "goal": observed["goal"][step],
            "a": (observed["a"][0][step], {"x": observed["a"][1]["x"][step]}),
        }
        expected = gymnasium.spaces.flatten(space, one)
        assert np.array_equal(store.episode(0)["observations"][step], np.float32(expected))
    if form == "hdf5":
        parts = "observations/a/_index_0, observations/a/_index_1/x, observations/goal"
        assert store.metadata["observation_parts"] == parts


@pytest.mark.parametrize("workers", [1, 2])
def test_environments_flatten_as_the_datasets(workers):
    gymnasium.register("Reach-v0", Reach, max_episode_steps=5)
    mask = np.ones(2, bool)
    with vector.Environments("Reach-v0?start=7", 2, workers=workers) as environments:
        assert environments.reset(mask, np.arange(2)).tolist() == [[3.0, 7.0, 2.0]] * 2
        states, _, _ = environments.step(np.full((2, 1), 0.5), mask)
        assert states.tolist() == [[3.0, 0.5, 2.0]] * 2
    assert vector.dimensions("Reach-v0") == (3, 1)
    del gymnasium.registry["Reach-v0"]


REFUSED = [
    ({"action_space": Discrete(4)}, "actions are Discrete .n 4.*must be a vector of real"),
    ({"action_space": MultiDiscrete([2, 3])}, "actions are MultiDiscrete"),
    ({"action_space": Tuple((Box(-1, 1, (2,)),))}, "actions are a dictionary or a tuple"),
    ({"observation_space": Discrete(5)}, "observations are Discrete .n 5"),
    ({"observation_space": Box(0, 255, (40, 40, 3), np.uint8)}, r"Box .shape \[40, 40, 3\]"),
    (
        {"observation_space": Dict({"map": Box(0, 1, (4, 4)), "x": Box(0, 1, (1,))})},
        "observations/map are Box",
    ),
    ({"observation_space": Tuple((Box(0, 1, (1,)), Text(5)))}, "observations/1 are Text"),
]


@pytest.mark.parametrize(("spaces", "message"), REFUSED, ids=[m[:30] for _, m in REFUSED])
def test_spaces_that_are_not_supported(root, spaces, message):
    make(ID, **{**VECTOR, **spaces})
    with pytest.raises(dmamba.DataError, match=message) as error:
        data.load(ID)
    assert str(root / ID / "data" / "metadata.json") in str(error.value)


@pytest.mark.parametrize("form", ["hdf5", "arrow"])
def test_nan_and_early_ends_are_refused_by_episode(root, form):
    episodes = make_episodes(VECTOR)
    episodes[1].rewards[2] = np.nan
    make("own/nan-v0", episodes, data_format=form, **VECTOR)
    with pytest.raises(dmamba.DataError, match=r"episode.1.*rewards.*2.*(NaN|nan)"):
        data.load("own/nan-v0")
    episodes = make_episodes(VECTOR)
    episodes[2].truncations[3] = True
    make("own/early-v0", episodes, data_format=form, **VECTOR)
    with pytest.raises(dmamba.DataError, match=r"episode.2.*truncations row 3 is set.*to row 11"):
        data.load("own/early-v0")


@pytest.mark.parametrize("form", ["hdf5", "arrow"])
def test_episodes_that_nothing_ends_are_counted(root, form):
    episodes = make_episodes(VECTOR)
    for episode in episodes[:2]:
        episode.terminations[:] = episode.truncations[:] = False
    make(ID, episodes, data_format=form, **VECTOR)
    store = data.load(ID)
    assert store.num_episodes == len(LENGTHS)
    assert store.metadata["episodes_without_end"] == "2"


def test_what_is_incomplete_is_refused(made):
    change(made, total_steps=sum(LENGTHS) + 1)
    with pytest.raises(
        dmamba.DataError, match=f"has {sum(LENGTHS)} steps.*says {sum(LENGTHS) + 1}"
    ):
        data.load(ID)
    change(made, total_steps=sum(LENGTHS), total_episodes=2)
    with pytest.raises(dmamba.DataError, match=f"has {len(LENGTHS)} episodes.*says 2"):
        data.load(ID)
    with h5py.File(made / "main_data.hdf5", "a") as file:
        del file["episode_1"]
    with pytest.raises(dmamba.DataError, match="episode_1 is missing"):
        data.load(ID)
    content = (made / "main_data.hdf5").read_bytes()
    (made / "main_data.hdf5").write_bytes(content[: len(content) // 2])
    with pytest.raises(dmamba.DataError, match=r"main_data\.hdf5: the file is truncated"):
        data.load(ID)
    (made / "main_data.hdf5").unlink()
    with pytest.raises(dmamba.DataError, match=r"main_data\.hdf5: no such file"):
        data.load(ID)
    (made / "metadata.json").unlink()
    with pytest.raises(dmamba.DataError, match="incomplete, as after a download"):
        data.load(ID)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"metadata\.json: cannot be read"),
        ("[]", r"metadata\.json: lacks total_episodes and total_steps"),
        ('{"total_episodes": 1, "total_steps": 1, "data_format": "csv"}', "'csv', known are hdf5"),
        (
            '{"total_episodes": 1, "total_steps": 1, "observation_space": "{"}',
            "observation_space is damaged",
        ),
    ],
)
def test_metadata_that_is_damaged(made, content, message):
    (made / "metadata.json").write_text(content)
    with pytest.raises(dmamba.DataError, match=message):
        data.load(ID)


def test_an_empty_dataset(made):
    with h5py.File(made / "main_data.hdf5", "w"):
        pass
    with pytest.raises(dmamba.DataError, match="the dataset is empty"):
        data.load(ID)


def test_a_namespace_is_no_dataset(made):
    with pytest.raises(dmamba.DataError, match="dataset 'mujoco' not found"):
        data.load("mujoco")


def test_arguments_of_games_are_refused(made):
    with pytest.raises(dmamba.ConfigError, match="buffers is for recorded games"):
        data.load(ID, buffers=2)


def test_the_environment_comes_from_the_spec(made):
    spec = json.loads(json.loads((made / "metadata.json").read_text())["env_spec"])
    spec |= {"id": "Ant-v5", "kwargs": {"include_cfrc_ext_in_observation": False}}
    change(made, env_spec=json.dumps(spec))
    environment = "Ant-v5?include_cfrc_ext_in_observation=false"
    assert data.info(ID)["environment"] == environment
    assert vector.dimensions(environment) == (27, 8)
    assert vector.dimensions("Ant-v5") == (105, 8)
    spec |= {"id": "InvertedPendulum-v5", "kwargs": {"render_mode": "rgb_array"}}
    change(made, eval_env_spec=json.dumps(spec))
    metadata = data.load(ID).metadata
    assert metadata["environment"] == "InvertedPendulum-v5", "which is meant for evaluation"
    assert metadata["recorded_in"] == environment
    spec |= {"id": "Maze-v3", "entry_point": "mazes.envs:Maze", "kwargs": {"map": [[1, "r"]]}}
    change(made, eval_env_spec=json.dumps(spec))
    assert data.load(ID).metadata["environment"] == 'mazes:Maze-v3?map=[[1,"r"]]'
    change(made, env_spec="", eval_env_spec="")
    assert data.info(ID)["environment"] == ""


def test_a_configuration_names_it(made):
    config = tiny("x", steps=4)
    config["dataset"]["path"] = ID
    config["evaluation"]["episodes"] = 2
    run = dmamba.train(config, progress=False)
    assert run.config.dataset.path == ID and run.config.dataset.environment == "Hopper-v5"
    summary = json.loads((run.folder / "summary.json").read_text())
    assert summary["constants"]["borrowed"] is True
    assert dmamba.evaluate(run, targets=[10], episodes=1, progress=False)["dataset"] == ID


def test_another_environment_than_the_dataset_s_is_warned_of(made):
    config = tiny(made, steps=1)
    config["dataset"]["environment"] = "Hopper-v4"
    config["evaluation"]["episodes"] = 1
    message = r"names Hopper-v5 as its environment, but dataset.environment is Hopper-v4"
    with pytest.warns(UserWarning, match=message):
        dmamba.train(config, progress=False)


def test_the_list_has_local_sets(made, capsys):
    (made.parents[1] / "torn-v0" / "data").mkdir(parents=True)
    (made.parents[1] / "torn-v0" / "data" / "main_data.hdf5").write_bytes(b"x" * 10)
    (made.parents[3] / minari_folders.PARTIAL / "x" / "data").mkdir(parents=True)
    rows = {row["name"]: row for row in data.listing() if row["url"] is None}
    assert list(rows) == [ID, "mujoco/hopper/torn-v0"]
    assert rows[ID]["path"] == str(made.parent)
    assert rows[ID]["bytes"] == sum(file.stat().st_size for file in made.iterdir())
    assert rows["mujoco/hopper/torn-v0"]["path"] is None
    assert main(["data", "list"]) == 0
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines()]
    assert [ID, "0.1", str(made.parent)] in lines or [ID, "0.0", str(made.parent)] in lines
    assert ["mujoco/hopper/torn-v0", "0.0", "(interrupted)"] in lines
    assert f"Minari's lie in {made.parents[3]}" in out
