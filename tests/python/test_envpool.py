"""Evaluation by envpool: episodes by their seeds, the dynamics of gymnasium's environments.

envpool and its data are 330 MB to download, so that the `test` extra does without; where it is not
installed, tests/python/without_optional_packages.py is all there is of it.
"""

import gymnasium
import numpy as np
import pytest
import torch

import dmamba
from dmamba import _C, nn
from dmamba.display.describing import format_result
from dmamba.evaluation import evaluate_model
from dmamba.evaluation.suites import check_engine

pytest.importorskip("envpool")

from dmamba.envs.pool import Environments  # noqa: E402  # which needs it

IDS = ("Hopper-v4", "HalfCheetah-v4", "Walker2d-v4", "Ant-v4", "Hopper-v5", "Walker2d-v5")


@pytest.mark.parametrize("name", IDS)
def test_it_moves_as_gymnasium_does(name):
    tolerance = 2e-3 if name.startswith("Ant") else 2e-5  # four feet on the ground soon differ
    with Environments(name, 2, np.array([3, 3])) as pool:
        states = pool.reset(np.array([True, True]), np.array([3, 3])).copy()
        np.testing.assert_array_equal(states[0], states[1])
        env = gymnasium.make(name)
        env.reset(seed=0)
        raw = env.unwrapped
        hidden = 2 if name.startswith("Ant") else 1  # places that observations leave out
        known = raw.model.nq - hidden
        place = np.concatenate([np.zeros(hidden), states[0][:known]])
        raw.set_state(place, states[0][known : known + raw.model.nv])
        random = np.random.default_rng(0)
        for _ in range(5):
            action = random.uniform(-0.5, 0.5, (1, len(pool.low)))
            states, rewards, ended = pool.step(action.repeat(2, axis=0), np.array([True, False]))
            state, reward, terminated, truncated, _ = env.step(action[0].astype(np.float32))
            np.testing.assert_allclose(states[0], state, atol=tolerance)
            assert rewards[0] == pytest.approx(reward, abs=10 * tolerance)
            assert bool(ended[0]) == (terminated or truncated)


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = _C.ModelConfig()
    config.d_model, config.n_layer, config.context_length = 16, 1, 5
    info = {"step": 3, "state_mean": [0.0] * 11, "state_std": [1.0] * 11, "rtg_scale": 1000.0}
    return nn.DMamba(11, 3, config=config), {**info, "context_length": 0}


def evaluate(model, **arguments):
    usual = {"environment": "Hopper-v4", "targets": [100.0, 900.0], "episodes": 5, "seed": 1}
    return evaluate_model(*model, **{**usual, "engine": "envpool", "progress": False, **arguments})


def returns(result):
    return [row["returns"].tolist() for row in result["targets"]]


def test_an_episode_follows_from_its_seed(model):
    result = evaluate(model)
    assert returns(result) == returns(evaluate(model, num_envs=3, workers=2))
    assert returns(result) != returns(evaluate(model, seed=2))
    later = evaluate(model, episodes=3, first_episode=2)
    assert [row[2:] for row in returns(result)] == returns(later)
    assert returns(result) != returns(evaluate(model, engine="workers"))


def test_the_shorter_time_limit_counts(model):
    result = evaluate(model, max_episode_length=4)
    assert all(row["lengths"].tolist() == [4] * 5 for row in result["targets"])


def test_results_name_the_engine(model):
    result = evaluate(model, episodes=1)
    import envpool

    assert (result["engine"], result["engine_version"]) == ("envpool", envpool.__version__)
    assert f", envpool {envpool.__version__}" in format_result(result).splitlines()[0]
    assert "envpool" not in format_result(evaluate(model, episodes=1, engine="workers"))


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ("ALE/Breakout-v5", "envpool is not for Atari games such as ALE/Breakout-v5"),
        ("Hopper-v4?reset_noise_scale=0.1", "without arguments, but not Hopper-v4"),
        ("CartPole-v1", "MuJoCo environments, such as Hopper-v4, .* but not CartPole-v1"),
        ("Hopper-v2", "Hopper-v2"),
    ],
)
def test_what_envpool_is_not_for(environment, message):
    with pytest.raises((dmamba.ConfigError, gymnasium.error.Error), match=message):
        check_engine("envpool", environment)
