"""Known environments, normalised scores, batches of environments."""

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.registration import register

import dmamba
from dmamba import envs
from dmamba.envs import vector


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Hopper-v4", "hopper"),
        ("HalfCheetah-v5", "halfcheetah"),
        ("walker2d-medium-replay-v2", "walker2d"),
        ("mujoco/hopper/medium-v0", "hopper"),
        ("/home/hopper/walker2d_medium-v2.hdf5", "walker2d"),
        ("Ant-v4", "ant"),
        ("antmaze-umaze-v2", None),
        ("CartPole-v1", None),
        ("", None),
    ],
)
def test_find(name, expected):
    found = envs.find(name)
    assert (found.name if found else None) == expected


@pytest.mark.parametrize(
    ("name", "raw", "score"),
    [
        ("hopper", 1215.9, 38.0),
        ("halfcheetah", 4969.1, 42.3),
        ("walker2d", 4592.3, 100.0),
        ("ant", -325.6, 0.0),
    ],
)
def test_normalized_score(name, raw, score):
    assert envs.normalized_score(name, raw) == pytest.approx(score, abs=0.05)


def test_normalized_score_of_an_array():
    env = envs.ENVIRONMENTS["hopper"]
    scores = envs.normalized_score(env, np.array([env.score_min, env.score_max]))
    np.testing.assert_allclose(scores, [0.0, 100.0])


def test_unknown_environment_has_no_score():
    assert envs.normalized_score("CartPole-v1", 100.0) is None
    assert envs.score_constants("CartPole-v1") is None
    assert "no normalised score" in envs.describe_constants(None)


@pytest.mark.parametrize(
    ("environment", "dataset", "borrowed"),
    [
        ("Hopper-v4", "hopper-medium-v2", False),
        ("Hopper-v4", "/data/hopper_medium_replay-v2.hdf5", False),
        ("Hopper-v4", "hopper-medium.hdf5", True),
        ("Hopper-v4", "", True),
        ("Hopper-v5", "hopper-medium-v2", True),
        ("Hopper-v5", "mujoco/hopper/medium-v0", True),
    ],
)
def test_constants_say_whether_they_are_borrowed(environment, dataset, borrowed):
    constants = envs.score_constants(environment, dataset)
    assert constants["borrowed"] is borrowed
    assert ("borrowed" in envs.describe_constants(constants)) is borrowed
    assert constants["max"] == 3234.3


@pytest.mark.parametrize("env", envs.ENVIRONMENTS.values(), ids=lambda env: env.name)
def test_sizes_are_those_of_gymnasium(env):
    assert vector.dimensions(env.gym_id) == (env.state_dim, env.act_dim)
    assert vector.make(env.gym_id).spec.max_episode_steps == env.max_episode_steps


def test_unknown_id_is_an_error():
    with pytest.raises(dmamba.ConfigError, match="'Hoper-v4' cannot be made"):
        vector.make("Hoper-v4")


def test_discrete_actions_are_an_error():
    with pytest.raises(dmamba.ConfigError, match=r"actions must be a vector .* Discrete\(2\)"):
        vector.make("CartPole-v1")


class Endless(gymnasium.Env):
    """Never ends by itself; counts what is asked of it."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self):
        self.steps = self.resets = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.resets += 1
        return np.array([float(self.resets), 0.0]), {}

    def step(self, action):
        self.steps += 1
        return np.array([float(self.resets), float(self.steps)]), 1.0, False, False, {}


def test_an_environment_without_time_limit_needs_one():
    register("dmamba-test/Endless-v0", entry_point=Endless)
    with pytest.raises(dmamba.ConfigError, match=r"no time limit.*dataset\.max_episode_length"):
        vector.make("dmamba-test/Endless-v0")
    env = vector.make("dmamba-test/Endless-v0", max_episode_steps=3)
    env.reset()
    assert [env.step(np.zeros(1))[3] for _ in range(3)] == [False, False, True]


@pytest.mark.parametrize(("limit", "length"), [(0, 1000), (20, 20), (5000, 1000)])
def test_the_shorter_time_limit_counts(limit, length):
    env = vector.make("HalfCheetah-v4", limit)
    env.reset(seed=0)
    steps, ended = 0, False
    while not ended:
        _, _, terminated, truncated, _ = env.step(np.zeros(6))
        steps, ended = steps + 1, terminated or truncated
    assert (steps, truncated) == (length, True)


def test_a_parked_slot_rests_until_the_next_reset():
    register("dmamba-test/Endless-v1", entry_point=Endless)
    environments = vector.make_vector("dmamba-test/Endless-v1", 2, max_episode_steps=9)
    inner = [env.unwrapped for env in environments.envs]
    environments.reset()
    environments.step(np.zeros((2, 1)))
    first = np.array([True, False])
    environments.reset(options={"reset_mask": first, "park": True})
    states, rewards, _, _, _ = environments.step(np.zeros((2, 1)))
    assert [env.steps for env in inner] == [1, 2]
    np.testing.assert_array_equal(states, [[1.0, 1.0], [1.0, 2.0]])
    np.testing.assert_array_equal(rewards, [0.0, 1.0])
    environments.reset(options={"reset_mask": first})
    environments.step(np.zeros((2, 1)))
    assert [env.steps for env in inner] == [2, 3]
    assert [env.resets for env in inner] == [2, 1]
