"""The policy object: loops of one's own, Gymnasium's wrappers, TorchRL."""

import builtins
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from conftest import tiny, write_dataset
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from own_models import Net
from walk import Walk

import dmamba
from dmamba import _C
from dmamba.envs import jobs

TARGET = 300.0


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """A run on data of Walk's sizes, which names no environment."""
    folder = tmp_path_factory.mktemp("walk")
    config = tiny(write_dataset(folder / "walk.hdf5", state_dim=2, act_dim=1), steps=10)
    return dmamba.train(config, output=folder / "run", progress=False, evaluate=False)


def episode(agent, env, seed):
    """A plain loop; the actions, and what was earned."""
    observation, _ = env.reset(seed=seed)
    actions, total, done = [], 0.0, False
    while not done:
        actions.append(agent.act(observation))
        observation, reward, terminated, truncated, _ = env.step(actions[-1])
        total += reward
        done = terminated or truncated
    return np.array(actions), total


@pytest.mark.parametrize("policy", ["windowed", "recurrent"])
def test_a_plain_loop_is_an_evaluation(trained, policy):
    result = dmamba.evaluate(trained, targets=[TARGET], episodes=2, policy=policy, progress=False)
    agent = dmamba.load_policy(trained, target=TARGET, policy=policy)
    assert agent.environment == "Hopper-v4" and agent.num_envs is None
    env = agent.wrap(gymnasium.make("Hopper-v4"))
    for number in range(2):
        _, total = episode(agent, env, jobs.episode_seed(0, number))
        row = env.episodes[number]
        assert total == row["return"] == pytest.approx(result["targets"][0]["returns"][number])
        assert row["length"] == result["targets"][0]["lengths"][number]
        assert row["target"] == TARGET
        assert row["score"] == pytest.approx(dmamba.envs.normalized_score("Hopper-v4", total))


@pytest.mark.parametrize("policy", ["windowed", "recurrent"])
@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_a_batch_acts_as_each_of_its_environments_alone(walked, policy, mode):
    one = dmamba.load_policy(walked, target=5.0, policy=policy)
    single = one.wrap(Walk())
    expected = []
    for seed in (4, 5, 6):
        episode(one, single, seed)
        expected.append(single.episodes[-1]["return"])

    class Counted(Walk):
        """Its second episode has the seed that the third environment began with."""

        def reset(self, *, seed=None, options=None):
            return super().reset(seed=6 if seed is None else seed)

    agent = dmamba.load_policy(walked, target=5.0, policy=policy, num_envs=2)
    env = agent.wrap(SyncVectorEnv([Counted, Counted], autoreset_mode=mode))
    observations, _ = env.reset(seed=4)
    for _ in range(40):
        actions = agent.act(observations)
        assert actions.shape == (2, 1) and actions.dtype == np.float32
        observations, _, terminated, _, _ = env.step(actions)
        if mode == AutoresetMode.DISABLED and terminated.any():
            observations, _ = env.reset(options={"reset_mask": terminated})
    returns = [row["return"] for row in env.episodes]
    assert len(returns) >= 4
    for total in returns:
        assert min(abs(total - known) for known in expected) < 1e-5
    for known in expected:
        assert min(abs(total - known) for total in returns) < 1e-5
    assert env.episodes[0]["score"] is None


def test_without_a_wrapper_rewards_are_observed_by_hand(walked):
    agent, low = (dmamba.load_policy(walked, target=target) for target in (5.0, -400.0))
    observation = np.array([0.3, 0.0])
    first = agent.act(observation)
    assert first.shape == (1,) and first.dtype == np.float32
    assert not np.array_equal(first, low.act(torch.tensor(observation)))  # the target counts
    with pytest.raises(dmamba.Error, match=r"reward of the action before is missing.*agent.wrap"):
        agent.act(observation)
    agent.observe(1.0)
    second = agent.act(observation)
    with pytest.raises(dmamba.DataError, match="rewards must be finite, got nan"):
        agent.observe(float("nan"))
    agent.reset()
    assert np.array_equal(agent.act(observation), first)
    agent.observe(1.0)
    assert np.array_equal(agent.act(observation), second)
    agent.reset(-400.0)
    agent.reset()  # with the last target
    low.reset()
    assert np.array_equal(agent.act(observation), low.act(observation))
    with pytest.raises(dmamba.Error, match="no act"):
        low.reset()
        low.observe(0.0)


def test_some_of_a_batch_begin_anew(walked):
    agent = dmamba.load_policy(walked, target=5.0, num_envs=2)
    rows = np.array([[0.3, 0.0], [0.3, 0.0]])
    first = agent.act(rows)
    agent.observe(np.array([1.0, 1.0]))
    agent.reset([5.0, 7.0], which=[True, False])
    assert agent.targets.tolist() == [5.0, 5.0]
    second = agent.act(rows)
    assert np.array_equal(second[0], first[0]) and not np.array_equal(second[1], first[1])


def test_the_default_target_and_policy_are_the_runs(trained):
    agent = dmamba.load_policy(trained)
    assert agent.targets.tolist() == [trained.config.evaluation.targets[0]]
    checkpoint = trained.checkpoints()[0][1]
    assert isinstance(
        dmamba.load_policy(checkpoint, weights="bf16", policy="recurrent"), dmamba.Agent
    )


def test_a_model_of_ones_own_acts(dataset, tmp_path):
    run = dmamba.train(
        tiny(dataset), output=tmp_path / "run", progress=False, evaluate=False, model=Net
    )
    result = dmamba.evaluate(run, targets=[TARGET], episodes=1, model=Net, progress=False)
    agent = dmamba.load_policy(run, TARGET, model=Net)
    _, total = episode(agent, agent.wrap(gymnasium.make("Hopper-v4")), jobs.episode_seed(0, 0))
    assert total == pytest.approx(result["targets"][0]["return_mean"])
    with pytest.raises(dmamba.CheckpointError, match="model=Net"):
        dmamba.load_policy(run)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda run: dmamba.load_policy(run, num_envs=0), "num_envs must be at least 1, got 0"),
        (lambda run: dmamba.load_policy(run, float("inf")), "target must be finite, got inf"),
        (lambda run: dmamba.load_policy(run, policy="greedy"), "greedy.*windowed, recurrent"),
        (lambda run: dmamba.load_policy(run).act(np.zeros(3)), r"must be \[2\] float32, got \[3\]"),
        (lambda run: dmamba.load_policy(run).act([np.nan, 0]), "not finite"),
        (lambda run: dmamba.load_policy(run, num_envs=2).act(np.zeros(2)), r"must be \[2, 2\]"),
        (
            lambda run: dmamba.load_policy(run, num_envs=2).reset([1.0, 2.0, 3.0]),
            r"target must be one value, or 2 for 2 environments, got shape \[3\]",
        ),
        (lambda run: dmamba.load_policy(run).wrap(3), "not a gymnasium environment: int"),
        (
            lambda run: dmamba.load_policy(run, num_envs=3).wrap(Walk()),
            "acts in a batch of 3, this is one environment; load it with num_envs=None",
        ),
        (
            lambda run: dmamba.load_policy(run).wrap(gymnasium.make("Hopper-v4")),
            r"states \[2\] and actions \[1\], the environment Box",
        ),
    ],
)
def test_impossible_arguments(walked, call, message):
    with pytest.raises(dmamba.Error, match=message):
        call(walked)


def test_actions_are_clipped_to_the_bounds(walked):
    class Narrow(Walk):
        action_space = gymnasium.spaces.Box(-0.01, 0.01, (1,), np.float32)

        def step(self, action):
            assert abs(action[0]) <= np.float32(0.01)
            return super().step(action)

    agent = dmamba.load_policy(walked, target=5.0)
    actions, _ = episode(agent, agent.wrap(Narrow()), 3)
    assert np.abs(actions).max() > 0.01


def test_a_game(tmp_path):
    config = {
        "dataset": {"environment": "ALE/Breakout-v5", "rtg_scale": 1.0},
        "model": {"d_model": 16, "n_layer": 1, "context_length": 4},
    }
    config = dmamba.configuration.load_config(config)
    model = dmamba.nn.AtariDMamba(4, config.model)
    info = {"rtg_scale": 1.0}
    choices = dmamba.evaluation.suites.Choices()
    agents = [
        dmamba.Agent(model, info, choices, 90.0, count, "ALE/Breakout-v5") for count in (None, 2)
    ]
    frames = np.random.default_rng(0).integers(0, 255, (2, 4, 84, 84), dtype=np.uint8)
    action = agents[0].act(frames[0])
    assert isinstance(action, int) and 0 <= action < 4
    agents[0].reset(seed=3)
    agents[1].reset(seed=3)
    assert agents[1].act(frames)[0] == agents[0].act(frames[0])
    agents[0].observe(1.0)
    with pytest.raises(dmamba.DataError, match=r"\[4, 84, 84\] uint8, got \[4, 84, 84\] float64"):
        agents[0].act(frames[0] / 255)


def test_the_examples_of_the_documentation(trained, capsys):
    text = (Path(__file__).parents[2] / "docs" / "policies.md").read_text()
    text = text.replace("runs/hopper-sample-seed0", str(trained.folder)).replace("(1000", "(5")
    blocks = [block.split("```")[0] for block in text.split("```python\n")[1:]]
    scope = {"observation": np.zeros(11), "reward": 1.0}
    for block in (blocks[0], blocks[1], blocks[0], blocks[3], blocks[2]):
        exec(block, scope)
    assert '"target": 3600.0'.replace('"', "'") in capsys.readouterr().out
    assert len(scope["episode"]) == 5 and scope["rewards"].shape == (8,)


# ---- other libraries


def test_torchrl_rolls_out_the_same_episode(walked):
    from torchrl.envs import GymWrapper

    agent = dmamba.load_policy(walked, target=5.0)
    wrapped = agent.wrap(Walk())
    wrapped.reset(seed=4)  # as set_seed() does
    actions, total = episode(agent, wrapped, None)
    env = GymWrapper(wrapped)
    env.set_seed(4)
    played = env.rollout(50, agent.tensordict_module())
    assert played["next", "reward"].sum().item() == pytest.approx(total, rel=1e-5)
    assert np.array_equal(played["action"].numpy(), actions)
    assert len(played) == wrapped.episodes[-1]["length"] == wrapped.episodes[0]["length"]


def without(monkeypatch, *packages):
    """Hides packages from imports."""
    real = builtins.__import__

    def refuse(name, *arguments):
        if name.split(".")[0] in packages:
            raise ImportError(f"no {name}")
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", refuse)


def test_what_is_missing_is_named(walked, monkeypatch):
    agent = dmamba.load_policy(walked)
    without(monkeypatch, "tensordict")
    with pytest.raises(dmamba.Error, match="pip install torchrl"):
        agent.tensordict_module()


def test_it_needs_no_simulator(walked):
    """Loading and acting import neither gymnasium nor anything that simulates."""
    code = (
        "import sys, numpy, dmamba; agent = dmamba.load_policy(sys.argv[1]); "
        "agent.act(numpy.zeros(2)); print('gymnasium' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(walked.folder)], capture_output=True, text=True
    )
    assert done.stdout == "False\n", done.stderr


def test_the_c_plus_plus_policy_is_still_there(walked):
    assert dmamba.Policy is _C.Policy
