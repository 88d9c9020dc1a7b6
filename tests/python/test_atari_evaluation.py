"""Evaluation of a model for games: the same numbers anywhere, its settings, reports, videos."""

import json
import os
import shutil

import numpy as np
import pytest
import torch

import dmamba
from dmamba import _C, evaluation, nn
from dmamba.commands import main
from dmamba.display import plots
from dmamba.display.describing import format_result
from dmamba.evaluation import evaluate_model, suites
from dmamba.evaluation.rollout import FramePolicy
from dmamba.runs import RunWriter
from dmamba.training.beside import Evaluator
from dmamba.training.summary import format_run

STEPS = 25  # of an episode, so that they are short


def make_model(num_actions=4):
    torch.manual_seed(5)
    model = nn.AtariDMamba(num_actions, d_model=16, n_layer=1, context_length=4, max_timestep=100)
    return model.eval()


INFO = {"step": 30, "rtg_scale": 1.0}


def play(model=None, **settings):
    return evaluate_model(
        model or make_model(),
        INFO,
        **{
            "environment": "ALE/Breakout-v5",
            "targets": [90.0, 5.0],
            "episodes": 3,
            "max_episode_length": STEPS,
            "progress": False,
            **settings,
        },
    )


class Spy:
    """Keeps what the games' policies do, over the real ones."""

    def __init__(self, monkeypatch):
        self.arguments, self.actions, self.rewards = [], [], []
        original, spy = _C.AtariPolicy, self

        class Policy:
            def __init__(self, *arguments):
                spy.arguments.append(arguments[1:])
                self.policy = original(*arguments)
                self.reset = self.policy.reset

            def act(self, frames):
                actions = self.policy.act(frames)
                spy.actions.append(actions.numpy().copy())
                return actions

            def observe(self, rewards):
                spy.rewards.append(rewards.numpy().copy())
                self.policy.observe(rewards)

        monkeypatch.setattr(_C, "AtariPolicy", Policy)


def actions_by_episode(spy, episodes):
    """(episodes, STEPS) of equally long episodes, in the order in which they were handed out."""
    actions = np.array(spy.actions)
    rounds = [actions[first : first + STEPS].T for first in range(0, len(actions), STEPS)]
    return np.concatenate(rounds)[:episodes]


@pytest.mark.parametrize("policy", ["windowed", "recurrent"])
def test_slots_and_threads_do_not_matter(policy, monkeypatch):
    spy = Spy(monkeypatch)
    expected = play(policy=policy, num_envs=1, workers=1)
    played = actions_by_episode(spy, 6)
    assert expected["num_envs"] == 1
    for slots, workers in ((2, 1), (6, 2)):
        spy.actions.clear()
        result = play(policy=policy, num_envs=slots, workers=workers)
        np.testing.assert_array_equal(played, actions_by_episode(spy, 6))
        assert (result["num_envs"], result["workers"]) == (slots, workers)
        for row, same in zip(expected["targets"], result["targets"], strict=True):
            np.testing.assert_array_equal(row["returns"], same["returns"])
            np.testing.assert_array_equal(row["lengths"], same["lengths"])
    assert all(length == STEPS for row in expected["targets"] for length in row["lengths"])
    assert len(np.unique(played)) > 1


def test_what_a_result_tells():
    result = play(
        environment="breakout", temperature=0.5, rtg_rewards="clipped", sticky_actions=0.25
    )
    assert result["environment"] == "ALE/Breakout-v5"
    assert (result["temperature"], result["rtg_rewards"]) == (0.5, "clipped")
    assert result["sticky_actions"] == 0.25
    assert result["constants"]["min"] == 1.7
    for row in result["targets"]:
        score = 100 * (row["return_mean"] - 1.7) / (30.5 - 1.7)
        assert row["score_mean"] == pytest.approx(score)
    lines = format_result(result, dataset_mean=12.5).splitlines()
    assert lines[1] == (
        "actions drawn at temperature 0.5, returns-to-go less clipped rewards, sticky actions 0.25"
    )
    assert "human-normalised score" in lines[2] and "D4RL" not in "".join(lines)
    assert lines[5].split() == ["dataset", "mean,", "clipped", "12.5"]
    assert "Breakout 1.7 / 30.5 (Wang et al. 2016" in lines[6]
    assert "returns-to-go less raw rewards, no sticky actions" in format_result(play(episodes=1))


def test_a_game_without_constants_is_played_all_the_same():
    result = play(make_model(9), environment="ALE/MsPacman-v5", episodes=1)
    assert result["constants"] is None
    assert result["targets"][0]["score_mean"] is None
    text = format_result(result)
    assert "no normalised score" in text and "human-normalised" not in text


def test_the_settings_reach_the_policy(monkeypatch):
    spy = Spy(monkeypatch)
    play(policy="recurrent", temperature=0.0, num_envs=2)
    assert spy.arguments == [("recurrent", 2, 1.0, 0.0, 0, 0)]
    assert play()["targets"][0]["lengths"][0] == STEPS
    assert spy.arguments[1] == ("windowed", 6, 1.0, 1.0, 0, 0)


def test_rtg_goes_down_by_raw_or_clipped_rewards_or_not(monkeypatch):
    spy = Spy(monkeypatch)
    for rtg_rewards in suites.RTG_REWARDS:
        policy = FramePolicy(make_model(), "windowed", 2, INFO, 1.0, rtg_rewards)
        frames = np.zeros((2, 4, 84, 84), dtype=np.uint8)
        policy.reset(np.array([True, True]), np.array([90.0, 90.0]), np.array([1, 2]))
        policy.act(frames)
        policy.observe(np.array([4.0, -7.0]))
    np.testing.assert_array_equal(spy.rewards, [[4.0, -7.0], [1.0, -1.0], [0.0, 0.0]])


def test_returns_are_raw_whatever_rtg_goes_down_by():
    for kind in suites.RTG_REWARDS:
        settings = {"environment": "Qbert", "rtg_rewards": kind, "max_episode_length": 100}
        rows = play(make_model(6), **settings)["targets"]
        assert max(row["returns"].max() for row in rows) >= 25.0


def test_the_seed_matters_to_games_and_draws(monkeypatch):
    spy = Spy(monkeypatch)
    play(num_envs=6)
    first = np.array(spy.actions)
    spy.actions.clear()
    play(num_envs=6, seed=1)
    assert not np.array_equal(first, np.array(spy.actions))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"environment": "Pong"}, dmamba.DataError, "among 4 actions, but ALE/Pong-v5 has 6"),
        ({"environment": "ALE/Brekout-v5"}, dmamba.ConfigError, "ALE/Breakout-v5"),
        ({"environment": "Hopper-v4"}, dmamba.ConfigError, "no Atari game 'Hopper-v4'"),
        ({"weights": "bf16"}, dmamba.ConfigError, "weights bf16 are not for models of Atari"),
        (
            {"temperature": -1.0},
            dmamba.ConfigError,
            "temperature must be finite and at least 0, got -1",
        ),
        ({"temperature": float("nan")}, dmamba.ConfigError, "temperature must be .* got nan"),
        ({"rtg_rewards": "half"}, dmamba.ConfigError, "one of raw, clipped, none, got 'half'"),
        ({"sticky_actions": 1.0}, dmamba.ConfigError, "at least 0 and below 1, got 1.0"),
        ({"environment": ""}, dmamba.ConfigError, "names no environment"),
    ],
)
def test_impossible_arguments(settings, error, message):
    with pytest.raises(error, match=message):
        play(**settings)


def test_a_model_of_vectors_plays_no_games(trained):
    model, info = nn.load(trained.latest_checkpoint()[1])
    with pytest.raises(dmamba.DataError, match="vectors, but ALE/Pong-v5 is an Atari game"):
        evaluate_model(model, info, environment="ALE/Pong-v5", targets=[1.0], episodes=1)
    with pytest.raises(dmamba.ConfigError, match="sticky_actions is for models of Atari games"):
        dmamba.evaluate(trained, sticky_actions=0.25)


@pytest.fixture
def games_run(trained, tmp_path, monkeypatch):
    """A run folder whose checkpoint loads as a model for games."""
    folder = tmp_path / "games"
    shutil.copytree(trained.folder, folder)
    shutil.rmtree(folder / "evaluations")
    (folder / "evaluations").mkdir()
    config = dmamba.Run(folder).config
    config.override(
        [
            "dataset.environment=ALE/Breakout-v5",
            f"dataset.max_episode_length={STEPS}",
            "evaluation.targets=[90]",
            "evaluation.episodes=2",
            "evaluation.temperature=0.7",
        ]
    )
    (folder / "config.yaml").write_text(config.to_yaml())
    info = {**INFO, "num_actions": 4, "config": config}
    monkeypatch.setattr(evaluation.nn, "load", lambda *_, **__: (make_model(), info))
    return dmamba.Run(folder)


def test_what_is_left_out_comes_from_the_run(games_run):
    result = dmamba.evaluate(games_run, progress=False)
    assert result["temperature"] == 0.7
    assert [row["target"] for row in result["targets"]] == [90.0]
    assert dmamba.evaluate(games_run, temperature=0.0, progress=False)["temperature"] == 0.0


def test_the_run_folder_names_the_score(games_run, trained):
    result = dmamba.evaluate(games_run, progress=False)
    config = games_run.config
    with RunWriter(games_run.folder, resume=True) as writer:
        writer.start(config, 30)
        writer.add_evaluation(result)
    header, row = (games_run.folder / "evaluation.csv").read_text().splitlines()
    assert header.endswith(
        "length_mean,human_normalized_score,human_normalized_score_low,"
        "human_normalized_score_high,engine,failed,error"
    )
    assert row.split(",")[9] == str(result["targets"][0]["score_mean"])
    assert (trained.folder / "evaluation.csv").read_text().splitlines()[0] == (
        "step,policy,target,episodes,return_mean,return_std,return_low,return_high,length_mean,"
        "d4rl_score,d4rl_score_low,d4rl_score_high,engine,failed,error"
    )
    events = b"".join(path.read_bytes() for path in games_run.folder.glob("events.*"))
    assert b"evaluation/target_90_human_normalized_score" in events
    summary = games_run.summary()
    best = [{"step": 30, **games_run.evaluations()[0]["targets"][0]}]
    summary |= {"environment": "ALE/Breakout-v5", "constants": result["constants"]}
    summary["best"]["targets"] = best
    (games_run.folder / "summary.json").write_text(json.dumps(summary))
    with RunWriter(games_run.folder, resume=True) as writer:
        writer.start(config, 30)
        writer.add_evaluation({**result, "checkpoint_step": 29})
    text = format_run(games_run)
    assert text.count("human-normalised score") == 3 and "D4RL" not in text
    figure = Axis()
    plots._score_axis(figure, "ALE/Breakout-v5")
    assert figure.label == "human-normalised score"
    plots._score_axis(figure, "Hopper-v4")
    assert figure.label == "D4RL normalised score"


class Axis:
    def secondary_yaxis(self, side, functions):
        assert functions[0](functions[1](30.0)) == pytest.approx(30.0)
        return self

    def set_ylabel(self, label):
        self.label = label


def test_the_command(games_run, capsys):
    arguments = ["evaluate", str(games_run.folder), "--temperature", "0.5", "--episodes", "1"]
    arguments += ["--rtg-rewards", "clipped", "--sticky-actions", "0.25", "--output", "result.json"]
    assert main([*arguments, "--video", "play.gif"]) == 0
    out = capsys.readouterr().out
    assert "temperature 0.5, returns-to-go less clipped rewards, sticky actions 0.25" in out
    with open("result.json") as file:
        result = json.load(file)
    returned = result["targets"][0]["returns"][0]
    assert f"video       play.gif: target 90, return {returned:.1f}, {STEPS} steps at 15" in out
    assert os.path.getsize("play.gif") > 1000


def test_evaluation_beside_the_training(tmp_path):
    """The process takes a game for what it is; there is no checkpoint for it to load."""
    evaluator = Evaluator("cpu", {"environment": "ALE/Breakout-v5", "targets": [1], "episodes": 1})
    try:
        evaluator.submit(tmp_path / "none")
        [(snapshot, what)] = evaluator.results(120.0)
        assert snapshot == tmp_path / "none"
        assert isinstance(what, str) and "none" in what
    finally:
        evaluator.close()
