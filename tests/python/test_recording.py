"""Recording: what is played is what is written, and it can be trained on."""

import json
import os
import signal
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from conftest import tiny
from replay_reference import games, read_shard, shard_numbers
from walk import Walk

import dmamba
from dmamba import data
from dmamba.commands import main
from dmamba.envs.atari import Environments
from dmamba.evaluation import recording


@pytest.fixture
def walk():
    """An environment whose episodes end by themselves after 3 to 11 steps; at most 9 here."""
    gymnasium.register("Walk-v0", Walk, max_episode_steps=9)
    yield "Walk-v0"
    del gymnasium.registry["Walk-v0"]


def record(policy, output, **arguments):
    return data.record(policy, output, progress=False, **arguments)


def replay(environment, seed, actions):
    """States, rewards and the manner of the end, by gymnasium itself."""
    env = gymnasium.make(environment)
    state, _ = env.reset(seed=seed)
    states, rewards, terminated = [], [], False
    for action in actions:
        states.append(state)
        state, reward, terminated, truncated, _ = env.step(action)
        rewards.append(reward)
    assert terminated or truncated, "the episode is whole"
    return np.float32(states), np.float32(rewards), terminated


def test_every_step_is_what_the_environment_did(walk, elsewhere):
    store = data.load(record(None, "walk.hdf5", environment=walk, episodes=40, seed=5))
    assert store.num_episodes == 40
    ends = set()
    for number in range(40):
        episode = store.episode(number)
        seed = dmamba.envs.jobs.episode_seed(5, number)
        states, rewards, terminated = replay(walk, seed, episode["actions"])
        assert np.array_equal(episode["observations"], states)
        assert np.array_equal(episode["rewards"], rewards)
        assert episode["terminated"] == terminated
        assert np.abs(episode["actions"]).max() <= 1
        ends.add(terminated)
    assert ends == {True, False}
    assert dict(store.metadata) == {"environment": walk, "policy": "random", "seed": "5"}


def test_neither_slots_nor_workers_matter(walk):
    written = [
        record(None, f"{n}.hdf5", environment=walk, transitions=100, num_envs=n).read_bytes()
        for n in (1, 3, 16)
    ]
    assert written[0] == written[1] == written[2]


@pytest.mark.parametrize("transitions", [1, 50, 51, 52])
def test_whole_episodes_up_to_a_number_of_transitions(walk, transitions):
    path = record(None, "walk.hdf5", environment=walk, transitions=transitions)
    lengths = data.load(path).episode_lengths
    assert lengths.sum() >= transitions > lengths[:-1].sum()


def test_a_policy_plays_as_in_its_evaluation(trained):
    path = record(trained, "mine.hdf5", episodes=3, target=500, kind="recurrent", seed=2)
    result = dmamba.evaluate(trained, targets=[500], episodes=3, policy="recurrent", seed=2)
    returns = data.load(path).episode_returns
    assert returns == pytest.approx(result["targets"][0]["returns"], rel=1e-5)
    metadata = data.load(path).metadata
    assert metadata["target"] == "500" and metadata["policy_kind"] == "recurrent"
    assert metadata["checkpoint_step"] == "30" and metadata["environment"] == "Hopper-v4"


def test_what_is_recorded_can_be_trained_on(elsewhere):
    record(None, "random.hdf5", environment="Hopper-v4", transitions=200)
    run = dmamba.train(tiny(elsewhere / "random.hdf5", steps=2), output="run", progress=False)
    assert run.summary()["dataset"]["transitions"] >= 200


@pytest.fixture
def stopped(monkeypatch):
    """Lets a recording be stopped by a signal after so many steps of its batch."""

    def after(steps, signum):
        count = iter(range(1, 10_000))
        step = recording.Noted.step

        def counted(self, actions, active):
            if next(count) == steps:
                os.kill(os.getpid(), signum)
            return step(self, actions, active)

        monkeypatch.setattr(recording.Noted, "step", counted)
        return pytest.raises(KeyboardInterrupt, match=f"stopped by {signal.Signals(signum).name}")

    return after


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("amount", [{"episodes": 50}, {"transitions": 500}])
def test_a_signal_keeps_the_first_episodes(walk, stopped, capsys, signum, amount):
    handler = signal.getsignal(signal.SIGINT)
    with stopped(20, signum) as error:
        data.record(None, "some.hdf5", environment=walk, num_envs=4, seed=3, **amount)
    assert signal.getsignal(signal.SIGINT) is handler
    assert error.value.signum == signum and error.value.folder == Path("some.hdf5")
    count = data.load("some.hdf5").num_episodes
    assert 4 <= count < 50
    assert f"some.hdf5 has the first {count}" in capsys.readouterr().err
    record(None, "same.hdf5", environment=walk, episodes=count, seed=3)
    assert Path("some.hdf5").read_bytes() == Path("same.hdf5").read_bytes()


def test_a_signal_before_the_first_end_keeps_nothing(walk, stopped, elsewhere, capsys):
    with stopped(1, signal.SIGINT):
        data.record(None, "new/none.hdf5", environment=walk, episodes=50)
    assert "nothing was kept, for the first episode had not ended" in capsys.readouterr().err
    assert list((elsewhere / "new").iterdir()) == []


def test_a_signal_keeps_the_first_games(stopped, capsys):
    words = ["--random", "--environment", "Pong", "--episodes", "3", "--num-envs", "1"]
    with stopped(1100, signal.SIGINT):
        data.record(None, "out", environment="Pong", episodes=3, num_envs=1)
    assert "out/Pong has the first 1 of 3 episodes" in capsys.readouterr().err
    assert json.loads(Path("out/Pong/rollout.json").read_text())[0]["games"] == 1
    assert main(["data", "record", *words, "--output", "out"]) == 2, "it exists"


def test_what_stops_it_leaves_nothing(walk, elsewhere, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(recording.hdf5, "write", stop)
    with pytest.raises(KeyboardInterrupt):
        record(None, elsewhere / "folder" / "walk.hdf5", environment=walk, episodes=1)
    assert list((elsewhere / "folder").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"environment": "Hopper-v4"}, "either episodes or transitions"),
        ({"environment": "Hopper-v4", "episodes": 1, "transitions": 1}, "either episodes or"),
        ({"environment": "Hopper-v4", "episodes": 0}, "episodes must be at least 1, got 0"),
        ({"environment": "Hopper-v4", "episodes": 1, "seed": -1}, "seed must not be negative"),
        ({"episodes": 1}, "random actions need an environment"),
        (
            {"episodes": 1, "environment": "Hopper-v4", "target": 3.0},
            "actions have no target",
        ),
        ({"episodes": 1, "environment": "Nowhere-v0"}, "'Nowhere-v0' cannot be made"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(dmamba.ConfigError, match=message):
        record(None, "x.hdf5", **arguments)


def test_other_refusals(trained, elsewhere):
    (elsewhere / "there.hdf5").write_text("kept")
    with pytest.raises(dmamba.DataError, match=r"there\.hdf5 exists"):
        record(trained, "there.hdf5", episodes=1)
    with pytest.raises(dmamba.DataError, match="has states of 11 values"):
        record(trained, "x.hdf5", episodes=1, environment="Walker2d-v4")
    with pytest.raises(dmamba.CheckpointError, match="no such folder"):
        record("nowhere", "x.hdf5", episodes=1)


def read_games(folder):
    """Games of a recorded folder, and what was written of their returns."""
    logs = folder / "1" / "replay_logs"
    found = [g for n in shard_numbers(logs) for g in games(read_shard(logs, n))]
    return found, json.loads((folder / "rollout.json").read_text())


def test_a_game_goes_by_again(elsewhere):
    """ALE, given the seed and the recorded actions, shows the recorded frames."""
    folder = record(None, "out", environment="ALE/Pong-v5", episodes=2, seed=4, num_envs=2)
    assert folder == Path("out/Pong")
    found, (row,) = read_games(folder)
    assert row["game"] == "Pong" and row["games"] == 2 and row["policy"] == "random"
    for number, game in enumerate(found):
        seed = dmamba.envs.jobs.episode_seed(4, number)
        total = 0.0
        with Environments("ALE/Pong-v5", 1) as environments:
            every = np.ones(1, bool)
            frames = environments.reset(every, np.array([seed]))
            for step, action in enumerate(game["action"]):
                assert np.array_equal(frames[0, -1], game["observation"][step])
                frames, rewards, ended = environments.step(np.array([action]), every)
                assert game["reward"][step] == np.clip(rewards[0], -1, 1)
                total += rewards[0]
                assert ended[0] == (step == len(game["action"]) - 1)
        assert row["returns"][number] == total


def test_a_game_s_policy_plays_as_in_its_evaluation(elsewhere):
    config = tiny("samples/Breakout", steps=1, batch_size=2)
    config["dataset"]["cache"] = "memory"
    run = dmamba.train(config, output="run", progress=False, evaluate=False)
    choices = {"temperature": 0.5, "seed": 3}
    folder = record(run, "out", episodes=2, target=50, kind="recurrent", **choices)
    found, (row,) = read_games(folder)
    result = dmamba.evaluate(
        run, targets=[50], episodes=2, policy="recurrent", progress=False, **choices
    )
    assert row["returns"] == result["targets"][0]["returns"].tolist()
    assert row["temperature"] == "0.5" and row["target"] == "50"
    store = data.load("out", cache="memory", progress=False)
    assert store.episode_lengths.tolist() == result["targets"][0]["lengths"].tolist()
    config["dataset"]["path"] = "out"
    dmamba.train(config, output="again", progress=False, evaluate=False)


def test_a_game_s_folder_is_whole_or_absent(elsewhere, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(recording, "write_json", stop)
    with pytest.raises(KeyboardInterrupt):
        record(None, "out", environment="ALE/Breakout-v5", episodes=1)
    assert list((elsewhere / "out").iterdir()) == []
    (elsewhere / "out" / "Breakout").mkdir()
    with pytest.raises(dmamba.DataError, match="out/Breakout exists"):
        record(None, "out", environment="ALE/Breakout-v5", episodes=1)
