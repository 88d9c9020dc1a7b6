"""Recorded games: how they are found and read, what they hold, the settings that follow."""

import shutil

import numpy as np
import pytest
from conftest import tiny, write_dataset
from replay_games import CHAIN, write_recording
from replay_reference import games, read_shard

import dmamba
from dmamba import data, training
from dmamba.sweeps.grid import make_grid

SAMPLE = data.PACKAGE_FOLDER / "samples" / "Breakout"


@pytest.fixture
def recording(elsewhere):
    """Two shards of a game, in a folder of games."""
    return write_recording(elsewhere / "games" / "Breakout", shards=(3, 4))


def load(path, **options):
    return data.load(path, progress=False, **{"cache": "memory", **options})


def resolve(store, *overrides, path="games"):
    config = training.load_config({"dataset": {"path": str(path)}}, overrides)
    return data.resolve(config, store)


def test_the_sample_is_what_its_note_says():
    store = load("samples/Breakout")
    expected = games(read_shard(SAMPLE / "1" / "replay_logs", 0))
    assert store.num_episodes == len(expected) == 16
    assert store.metadata["game"] == "Breakout" and store.num_actions == 4
    assert np.array_equal(store.frames, np.concatenate([g["observation"] for g in expected]))
    assert np.array_equal(store.actions, np.concatenate([g["action"] for g in expected]))
    assert store.episode_returns.min() >= 38
    size = sum(file.stat().st_size for file in SAMPLE.rglob("*") if file.is_file())
    assert size < 3_000_000


@pytest.mark.parametrize("place", ["games", "games/Breakout", "games/Breakout/1", "logs"])
def test_folders_that_lead_to_a_recording(recording, elsewhere, place):
    (elsewhere / "logs").symlink_to(recording / "1" / "replay_logs")
    store = load(place)
    assert store.episode_lengths.tolist() == [*CHAIN, *CHAIN]
    assert data.environment_of(store) == "ALE/Breakout-v5"


def test_a_folder_below_the_data_folder(elsewhere, monkeypatch):
    recording = write_recording(elsewhere / "games" / "dqn" / "Pong")
    monkeypatch.setenv("DMAMBA_DATA", str(elsewhere / "games"))
    assert data.locate("dqn/Pong") == recording
    (elsewhere / "dqn" / "Pong").mkdir(parents=True)
    assert data.locate("dqn/Pong").absolute() == elsewhere / "dqn" / "Pong"


def test_selections(recording):
    assert load("games", buffers=1).num_transitions == sum(CHAIN)
    assert load("games", transitions=1, trajectories_per_buffer=1).num_episodes == 1
    one, other = (
        load("games", trajectories_per_buffer=1, transitions=1, seed=seed).rewards.tolist()
        for seed in (0, 0)
    )
    assert one == other
    with pytest.raises(dmamba.DataError, match="3 shards are asked for, but there are 2"):
        load("games", buffers=3)


def test_the_game_of_a_folder_of_several(recording, elsewhere):
    write_recording(elsewhere / "games" / "Pong", lengths=(20,))
    with pytest.raises(dmamba.DataError, match="2 games"):
        load("games")
    assert load("games", game="Pong").num_episodes == 1
    config = training.load_config({"dataset": {"path": "games", "environment": "ALE/Pong-v5"}})
    assert data.load_configured(config.dataset, progress=False).metadata["game"] == "Pong"


def test_what_is_read_is_kept(recording, elsewhere):
    cache = data.cache_folders()[0] / "replays"
    store = load("games", cache="disk")
    (file,) = cache.iterdir()
    again = load("games", cache="disk")
    assert np.array_equal(store.frames, again.frames)
    converted = load(file)
    shutil.copy(file, elsewhere / "mine.h5")
    assert load("mine.h5", format="dqn-replay").num_transitions == converted.num_transitions
    assert converted.metadata["game"] == "Breakout"
    assert np.array_equal(converted.frames, store.frames)
    with pytest.raises(dmamba.DataError, match="nothing can be selected"):
        load(file, buffers=1)
    with pytest.raises(dmamba.ConfigError, match="cache must be one of disk, memory, got 'tape'"):
        load("games", cache="tape")


def test_nothing_is_kept_in_memory(recording, elsewhere):
    load("games")
    assert not (elsewhere / "home").exists()


def test_progress(recording, capsys):
    data.load("games", cache="memory")
    assert "reading games" in capsys.readouterr().err


def test_a_folder_without_a_recording(elsewhere):
    (elsewhere / "empty").mkdir()
    with pytest.raises(dmamba.DataError, match="no recording in the DQN-replay layout"):
        load("empty")


def test_selecting_from_a_file_of_vectors(elsewhere):
    path = write_dataset(elsewhere / "robot.hdf5")
    with pytest.raises(dmamba.ConfigError, match=r"robot\.hdf5: buffers is for recorded games"):
        load(path, buffers=2)


def test_info(recording):
    result = data.info("games", cache="memory", progress=False)
    assert (result["game"], result["shards"], result["num_actions"]) == ("Breakout", "3-4", 4)
    assert (result["episodes"], result["transitions"]) == (6, 2 * sum(CHAIN))
    assert sum(result["action_counts"]) == 2 * sum(CHAIN)
    assert result["score_mean"] is None and result["dropped_transitions"] == 0
    text = data.format_info(result)
    assert "Breakout" in text and "clipped to [-1, 1]" in text and "shards 3-4" in text


def test_resolve(recording):
    resolved = resolve(load("games"))
    assert resolved.dataset.environment == "ALE/Breakout-v5"
    assert resolved.dataset.path == str(recording.parent.resolve())
    assert resolved.dataset.rtg_scale == 1.0
    assert resolved.dataset.max_episode_length == 0, "the environment's own"
    assert resolved.evaluation.targets == [90.0]
    resolved = resolve(load("games"), "model.max_timestep=5", "rtg_scale=2")
    assert resolved.model.max_timestep == max(CHAIN) + 1
    assert resolved.dataset.rtg_scale == 2.0


def test_targets_of_a_game_without_any_in_the_papers(elsewhere):
    store = load(write_recording(elsewhere / "Tennis"))
    assert resolve(store, path="Tennis").evaluation.targets == data.default_targets(store)


def test_the_actions_are_the_game_s(recording, elsewhere):
    few = load(write_recording(elsewhere / "few" / "Breakout", actions=2))
    assert few.num_actions == 2
    assert dmamba.data.replays.num_actions(few, "ALE/Breakout-v5") == 4
    assert dmamba.data.replays.num_actions(few, "") == 2
    many = load(write_recording(elsewhere / "many" / "Breakout", actions=6))
    with pytest.raises(dmamba.DataError, match="6 actions, but ALE/Breakout-v5 has 4"):
        dmamba.data.replays.num_actions(many, "ALE/Breakout-v5")


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("dataset.buffers=3", "dataset.buffers"),
        ("model.encoder=impala", "model.encoder"),
        ("evaluation.temperature=0.5", "evaluation.temperature"),
    ],
)
def test_keys_of_games_are_refused_for_vectors(dataset, override, key):
    config = training.load_config(tiny(dataset), [override])
    with pytest.raises(dmamba.ConfigError, match=rf"{key} is for recorded games"):
        data.resolve(config, data.load(dataset))


def small(path, **training_keys):
    """A configuration that trains on a recording in a second or two."""
    config = tiny(path, **{"steps": 4, "batch_size": 4, **training_keys})
    config["dataset"]["environment"] = "ALE/Breakout-v5"
    config["dataset"]["cache"] = "memory"
    config["evaluation"] = {"episodes": 2}
    return config


def test_train_and_resume(recording, elsewhere):
    quiet = {"progress": False, "evaluate": False}
    run = dmamba.train(small("games", steps=8), output="whole", **quiet)
    assert run.summary()["dataset"]["transitions"] == 2 * sum(CHAIN)
    with pytest.raises(KeyboardInterrupt):
        dmamba.train(
            small("games", steps=8, checkpoint_every=4),
            output="parts",
            callbacks=[_StopAt(4)],
            **quiet,
        )
    again = dmamba.train(None, output="parts", resume=True, **quiet)
    paths = [r.latest_checkpoint()[1] / "model.safetensors" for r in (run, again)]
    assert paths[0].read_bytes() == paths[1].read_bytes()


class _StopAt(dmamba.Callback):
    def __init__(self, step):
        self.step = step

    def on_checkpoint(self, run, path):
        if path.name.endswith(f"{self.step:08d}"):
            raise KeyboardInterrupt


def test_train_on_a_store(recording, elsewhere):
    config = small("nowhere")
    store = load("games", buffers=1)
    run = dmamba.train(config, dataset=store, output="run", progress=False, evaluate=False)
    assert run.config.dataset.path.startswith("memory:games-")
    shutil.rmtree(elsewhere / "games")
    again = {"output": "run", "resume": True, "progress": False, "evaluate": False}
    with pytest.raises(dmamba.DataError, match="trained on arrays in memory"):
        dmamba.train(None, **again)
    dmamba.train(None, dataset=store, **again)


def test_a_grid_checks_every_point(recording):
    config = {"dataset": {"path": "games", "environment": "ALE/Breakout-v5", "cache": "memory"}}
    grid = make_grid(config, ["K=2,5", "dataset.buffers=1,2"])
    assert [point.settings["dataset.buffers"] for point in grid.points] == [1, 2, 1, 2]
    assert grid.dataset_mean is None, "of different selections"
    with pytest.raises(dmamba.DataError, match="=90: .*exceeds the longest episode, 14"):
        make_grid(config, ["K=2,90"])


def test_a_recording_of_another_game_is_refused(recording):
    with pytest.raises(dmamba.DataError, match="recording of Breakout, but dataset.environment is"):
        resolve(load(recording), "dataset.environment=ALE/Pong-v5")


def test_a_cache_that_cannot_be_made(recording, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DMAMBA_DATA", str(tmp_path / "file"))
    with pytest.raises(dmamba.DataError, match="cannot be made.*or use cache=memory"):
        data.load(recording, progress=False)


@pytest.mark.parametrize(
    "chosen",
    [{}, {"buffers": 1}, {"transitions": 20, "seed": 3}, {"trajectories_per_buffer": 1}],
    ids=str,
)
def test_a_look_tells_what_a_reading_does(recording, elsewhere, chosen):
    for path in ("games", "samples/Breakout"):
        looked = data.info(path, progress=False, **chosen)
        assert looked == data.describe(load(path, **chosen))
    assert not (elsewhere / "home").exists(), "nothing is written"


def test_a_look_needs_no_frames_but_the_first(recording):
    expected = data.info("games", progress=False)
    logs = recording / "1" / "replay_logs"
    for frames in logs.glob("$store$_observation_ckpt.*.gz"):
        content = frames.read_bytes()
        frames.write_bytes(content[: len(content) * 3 // 4])
    assert data.info("games", progress=False) == expected
    with pytest.raises(dmamba.DataError, match="observation_ckpt"):
        load("games")


def test_a_look_takes_a_converted_file_that_is_there(recording, elsewhere):
    data.load("games", progress=False)
    (converted,) = (elsewhere / "home").rglob("*.h5")
    expected = data.info("games", progress=False)
    assert data.info(converted, progress=False) == {**expected, "path": str(converted)}
    converted.write_bytes(b"damaged")
    assert data.info("games", progress=False) == expected, "and else looks itself"
    assert converted.read_bytes() == b"damaged"


def test_a_look_refuses_as_a_reading(recording, elsewhere):
    with pytest.raises(dmamba.ConfigError, match="buffers must be at least 0"):
        data.info("games", buffers=-1)
    with pytest.raises(dmamba.ConfigError, match="cache must be one of"):
        data.info("games", cache="tape")
    with pytest.raises(dmamba.DataError, match="Pong"):
        data.info("games", game="Pong")
    (recording / "1" / "replay_logs" / "$store$_reward_ckpt.3.gz").unlink()
    with pytest.raises(dmamba.DataError, match="reward"):
        data.info("games")
