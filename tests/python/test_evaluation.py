"""Evaluation: the queue of episodes, statistics, results, errors."""

import shutil

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.registration import register
from walk import Walk

import dmamba
from dmamba.common import scores
from dmamba.display.describing import format_result
from dmamba.envs.host import usable_cores
from dmamba.envs.jobs import episode_seed, make_jobs
from dmamba.envs.vector import Environments
from dmamba.evaluation.rollout import play
from dmamba.evaluation.suites import default_workers


class Steering:
    """A policy with a memory: goes towards the return that is left to get, ever slower."""

    def __init__(self, slots, broken=False):
        self.left = np.zeros(slots)
        self.steps = np.zeros(slots)
        self.broken = broken

    def reset(self, mask, targets, seeds):
        self.left[mask], self.steps[mask] = targets[mask], 0

    def act(self, states):
        action = np.tanh((self.left - states[:, 0]) / (1 + self.steps))
        if self.broken:
            action[self.steps == 1] = np.nan
        return action[:, None].astype(np.float32)

    def observe(self, rewards):
        self.left -= rewards
        self.steps += 1


def jobs_for(targets, episodes):
    return make_jobs(targets, episodes, seed=5)


def play_all(jobs, slots, policy=None, workers=1, **env):
    gymnasium.registry.pop("dmamba-test/WalkNow-v0", None)
    register("dmamba-test/WalkNow-v0", entry_point=Walk, max_episode_steps=50, kwargs=env)
    results = {}

    def on_episode(job, total, length):
        key = job.target_index, job.episode
        assert key not in results
        results[key] = total, length

    with Environments("dmamba-test/WalkNow-v0", slots, workers=workers) as environments:
        play(policy or Steering(slots), environments, jobs, on_episode)
    return results


def play_one(job):
    """The plain loop, one environment at a time."""
    env = Walk()
    state, _ = env.reset(seed=job.seed)
    policy, total = Steering(1), 0.0
    policy.reset(np.array([True]), np.array([job.target]), np.array([job.seed]))
    for length in range(1, 100):
        action = policy.act(state[None].astype(np.float32))[0]
        state, reward, done, _, _ = env.step(action)
        policy.observe(np.array([reward]))
        total += reward
        if done:
            return total, length
    raise AssertionError("the episode did not end")


@pytest.mark.parametrize("slots", [1, 2, 5, 12])
def test_every_slot_count_plays_the_same_episodes(slots):
    jobs = jobs_for([1.0, 30.0, -4.0], 4)
    expected = {(job.target_index, job.episode): play_one(job) for job in jobs}
    assert len({length for _, length in expected.values()}) > 1
    Walk.total_steps = 0
    results = play_all(jobs, slots)
    assert results == expected
    assert Walk.total_steps == sum(length for _, length in results.values())


@pytest.mark.parametrize("workers", [2, 3])
def test_every_worker_count_plays_the_same_episodes(workers):
    jobs = jobs_for([1.0, 30.0, -4.0], 4)
    assert play_all(jobs, 5, workers=workers) == play_all(jobs, 5)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("what", ["observation", "reward"])
def test_a_broken_environment_is_named(what, workers):
    message = rf"environment returned a non-finite {what} .* step 2 of episode 0, target 30"
    with pytest.raises(dmamba.Error, match=message):
        play_all(jobs_for([30.0], 2), workers, workers=workers, broken=what)


@pytest.mark.parametrize("workers", [1, 3])
def test_an_environment_that_raises_is_named(workers):
    seed = episode_seed(5, 1)
    message = (
        r"the environment raised ZeroDivisionError: by design \(.*walk\.py:\d+\), at step 2 of "
        rf"episode 1, target 30, seed {seed}"
    )
    with pytest.raises(dmamba.Error, match=message):
        play_all(jobs_for([30.0], 3), 3, workers=workers, broken="raises", seed=seed)


def test_a_worker_that_dies_is_named():
    message = (
        r"the environment died with exit code 7: its worker .* step 2 of episode \d, target 30"
    )
    with pytest.raises(dmamba.Error, match=message):
        play_all(jobs_for([30.0], 2), 2, workers=2, broken="exits")


@pytest.mark.parametrize(("jobs", "slots", "most"), [(47, 32, 1), (500, 2, 2), (9999, 9999, None)])
def test_workers_are_as_many_as_pay(jobs, slots, most):
    assert default_workers(jobs, slots) == min(most or usable_cores(), usable_cores())


def test_a_broken_policy_is_named():
    message = r"policy gave a non-finite action .* step 1 of episode 0, target 30"
    with pytest.raises(dmamba.Error, match=message):
        play_all(jobs_for([30.0], 1), 1, policy=Steering(1, broken=True))


def test_check_can_stop_the_episodes():
    def stop():
        raise KeyboardInterrupt

    register("dmamba-test/Walk-v0", entry_point=Walk, max_episode_steps=50)
    with (
        Environments("dmamba-test/Walk-v0", 1) as environments,
        pytest.raises(KeyboardInterrupt),
    ):
        play(Steering(1), environments, jobs_for([1.0], 1), lambda *_: None, stop)


def test_interval_of_the_mean():
    values = np.random.default_rng(0).normal(100.0, 10.0, size=50)
    low, high = scores.mean_interval(values)
    # The normal interval is mean ± 1.96 standard errors; the bootstrap's must be close to it.
    error = values.std(ddof=1) / np.sqrt(50)
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.5)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.5)
    assert scores.mean_interval(values) == (low, high)
    wide = scores.mean_interval(values, confidence=0.999)
    assert wide[0] < low and wide[1] > high


def test_interval_of_few_values():
    assert scores.mean_interval(np.array([5.0])) is None
    assert scores.mean_interval(np.array([5.0, 5.0, 5.0])) == (5.0, 5.0)
    described = scores.describe(np.array([5.0]))
    assert described == {"mean": 5.0, "std": None, "stderr": None, "interval": None}
    low, high = scores.mean_interval(np.array([1.0, 2.0]))
    assert 1.0 <= low < high <= 2.0


@pytest.mark.parametrize("policy", ["windowed", "recurrent"])
def test_evaluate_hopper(trained, policy):
    result = dmamba.evaluate(trained, targets=[200, 900], episodes=4, policy=policy, progress=False)
    assert result["environment"] == "Hopper-v4"
    assert result["policy"] == policy
    assert result["checkpoint_step"] == 30
    assert result["constants"]["borrowed"] is True
    assert [row["target"] for row in result["targets"]] == [200.0, 900.0]
    for row in result["targets"]:
        assert row["returns"].shape == row["lengths"].shape == (4,)
        assert row["return_mean"] == pytest.approx(row["returns"].mean())
        assert row["length_mean"] == pytest.approx(row["lengths"].mean())
        assert row["score_mean"] == pytest.approx(
            dmamba.envs.normalized_score("hopper", row["return_mean"])
        )
        assert row["return_interval"][0] <= row["return_mean"] <= row["return_interval"][1]
        assert np.all(row["lengths"] >= 1) and np.all(row["lengths"] <= 1000)
    again = dmamba.evaluate(
        trained.folder, targets=[200, 900], episodes=4, policy=policy, progress=False, workers=2
    )
    assert (result["workers"], again["workers"]) == (1, 2)
    for row, same in zip(result["targets"], again["targets"], strict=True):
        np.testing.assert_array_equal(row["returns"], same["returns"])
        assert row["return_interval"] == same["return_interval"]


def test_evaluate_with_rounded_weights(trained):
    arguments = {"targets": [200], "episodes": 2, "policy": "recurrent", "progress": False}
    exact, rounded = (
        dmamba.evaluate(trained, weights=weights, **arguments) for weights in ("fp32", "bf16")
    )
    assert (exact["weights"], rounded["weights"]) == ("fp32", "bf16")
    returns = [result["targets"][0]["returns"] for result in (exact, rounded)]
    assert not np.array_equal(*returns)
    with pytest.raises(dmamba.ConfigError, match="bf16 are for kind recurrent"):
        dmamba.evaluate(trained, weights="bf16", **{**arguments, "policy": "windowed"})


def test_seed_changes_the_episodes(trained):
    arguments = {"targets": [200], "episodes": 2, "progress": False}
    first = dmamba.evaluate(trained, **arguments)["targets"][0]["returns"]
    other = dmamba.evaluate(trained, seed=1, **arguments)["targets"][0]["returns"]
    assert not np.array_equal(first, other)


def test_what_is_left_out_comes_from_the_run(trained):
    result = dmamba.evaluate(trained, progress=False)
    assert [row["target"] for row in result["targets"]] == [100.0, 500.0]
    assert [row["episodes"] for row in result["targets"]] == [3, 3]
    last = trained.evaluations()[-1]
    for row, kept in zip(result["targets"], last["targets"], strict=True):
        np.testing.assert_array_equal(row["returns"], kept["returns"])


def test_a_checkpoint_stands_alone(trained, tmp_path):
    _, checkpoint = trained.latest_checkpoint()
    copy = shutil.copytree(checkpoint, tmp_path / "copied")
    arguments = {"targets": [200], "episodes": 2, "progress": False}
    inside = dmamba.evaluate(checkpoint, **arguments)["targets"][0]["returns"]
    outside = dmamba.evaluate(copy, **arguments)["targets"][0]["returns"]
    np.testing.assert_array_equal(inside, outside)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"targets": []}, "evaluation.targets is empty"),
        ({"targets": [float("nan")]}, "evaluation.targets must be finite"),
        ({"episodes": 0}, "evaluation.episodes must be at least 1, got 0"),
        ({"num_envs": 0}, "num_envs must be at least 1, got 0"),
        ({"workers": 0}, "workers must be at least 1, got 0"),
        ({"policy": "greedy"}, "greedy"),
        ({"seed": -1}, "seed must not be negative, got -1"),
    ],
)
def test_impossible_arguments(trained, arguments, message):
    with pytest.raises(dmamba.ConfigError, match=message):
        dmamba.evaluate(trained, progress=False, **arguments)


def test_missing_checkpoints(tmp_path, trained):
    with pytest.raises(dmamba.CheckpointError, match="nowhere: no such folder"):
        dmamba.evaluate(tmp_path / "nowhere")
    with pytest.raises(dmamba.CheckpointError, match="neither a run folder .* nor a checkpoint"):
        dmamba.evaluate(tmp_path)
    shutil.copy(trained.folder / "config.yaml", tmp_path)
    with pytest.raises(dmamba.CheckpointError, match="no complete checkpoint"):
        dmamba.evaluate(tmp_path)


def test_the_table(trained):
    result = trained.evaluations()[-1]
    lines = format_result(result, dataset_mean=50.0).splitlines()
    assert lines[0].startswith("Hopper-v4, step 30, windowed policy, 3 episodes a target, seed 0")
    assert lines[1].split()[:2] == ["target", "return"]
    assert lines[2].split()[0] == "100"
    assert lines[3].split()[0] == "500"
    assert lines[4].split()[:3] == ["dataset", "mean", "50.0"]
    assert "borrowed" in lines[5]
    unscored = {**result, "constants": None, "environment": "CartPole-v1"}
    text = format_result(unscored, dataset_mean=50.0)
    assert "D4RL score" not in text and "no normalised score" in text
