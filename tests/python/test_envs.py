"""Known environments, normalised scores, batches of environments."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.registration import register

import dmamba
from dmamba import envs
from dmamba.envs import ids, vector
from dmamba.envs.host import usable_cores


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


@pytest.mark.parametrize("workers", [1, 2])
def test_a_slot_rests_until_its_next_order(workers):
    register("dmamba-test/Endless-v1", entry_point=Endless)
    everywhere, first = np.array([True, True]), np.array([True, False])
    zeros = np.zeros((2, 1), dtype=np.float32)
    with vector.Environments("dmamba-test/Endless-v1", 2, 9, workers) as environments:
        environments.reset(everywhere, np.zeros(2, dtype=np.int64))
        environments.step(zeros, everywhere)
        states, rewards, ended = environments.step(zeros, ~first)
        np.testing.assert_array_equal(states, [[1.0, 1.0], [1.0, 2.0]])
        np.testing.assert_array_equal(rewards, [1.0, 1.0])
        assert not ended.any()
        states = environments.reset(first, np.zeros(2, dtype=np.int64))
        np.testing.assert_array_equal(states, [[2.0, 0.0], [1.0, 2.0]])
        states, _, _ = environments.step(zeros, everywhere)
        np.testing.assert_array_equal(states, [[2.0, 2.0], [1.0, 3.0]])
        for _ in range(6):
            _, _, ended = environments.step(zeros, everywhere)
        assert ended.tolist() == [False, True]


def test_workers_import_neither_torch_nor_dmamba():
    with vector.Environments("Hopper-v4", 2, workers=2) as environments:
        environments.reset(np.ones(2, dtype=bool), np.zeros(2, dtype=np.int64))
        for process in children():
            files = Path(f"/proc/{process}/maps").read_text()
            assert "mujoco" in files and "libtorch" not in files and "dmamba/_C" not in files


def children():
    """Ids of this process's children."""
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def test_workers_end_with_the_environments():
    before = set(children())
    environments = vector.Environments("Hopper-v4", 4, workers=3)
    assert len(set(children()) - before) == 3
    environments.close()
    environments.close()
    assert set(children()) == before


def test_workers_end_with_their_parent():
    program = (
        "import dmamba, numpy as np, os, pathlib, signal\n"
        "from dmamba.envs.vector import Environments\n"
        "environments = Environments('Hopper-v4', 4, workers=2)\n"
        "environments.reset(np.ones(4, dtype=bool), np.zeros(4, dtype=np.int64))\n"
        "print(pathlib.Path(f'/proc/self/task/{os.getpid()}/children').read_text(), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    workers = done.stdout.split()
    assert done.returncode == -signal.SIGKILL and len(workers) == 2
    deadline = time.monotonic() + 30
    while any(is_alive(worker) for worker in workers):
        assert time.monotonic() < deadline, "a worker outlives its parent"
        time.sleep(0.01)


def is_alive(process):
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_worker_that_is_killed_is_replaced():
    with vector.Environments("Hopper-v4", 4, workers=2) as environments:
        everywhere, seeds = np.ones(4, dtype=bool), np.zeros(4, dtype=np.int64)
        first = environments.reset(everywhere, seeds).copy()
        os.kill(int(children()[-1]), signal.SIGKILL)
        environments.step(np.zeros((4, 3), dtype=np.float32), everywhere)
        assert sorted(environments.failures) == [2, 3] and environments.replaced == 1
        for failure in environments.failures.values():
            assert failure.what.startswith("died of SIGKILL: its worker process")
            assert failure.again and failure.unexplained
        np.testing.assert_array_equal(environments.reset(everywhere, seeds), first)
        assert environments.failures == {}


@pytest.mark.parametrize(
    ("text", "cores"), [("150000 100000", 2), ("50000 100000", 1), ("max 100000", None), ("", None)]
)
def test_usable_cores_respect_the_quota(tmp_path, monkeypatch, text, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    (tmp_path / "cpu.max").write_text(text)
    assert usable_cores(tmp_path) == (cores or 6)
    assert usable_cores(tmp_path / "none") == 6


@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        ({}, "Maze-v3"),
        ({"dense": False, "a": 1.5}, "Maze-v3?a=1.5&dense=false"),
        ({"map": [[1, "r"], [0, 1]]}, 'Maze-v3?map=[[1,"r"],[0,1]]'),
        ({"name": "a&b=c%+#?"}, 'Maze-v3?name="a%26b=c%25%2B%23?"'),
    ],
)
def test_ids_with_arguments(arguments, written):
    assert ids.join("Maze-v3", arguments) == written
    assert ids.split(written) == ("Maze-v3", arguments)


def test_arguments_in_ids_that_cannot_be_read():
    for environment, message in (
        ("Hopper-v4?", "'' must be NAME=VALUE"),
        ("Hopper-v4?x", "'x' must be NAME=VALUE"),
        ("Hopper-v4?x=yes", "the value of x must be JSON"),
        ("Hopper-v4?legs=7", "cannot be made: .*legs"),
        ("no_such_module:Hopper-v4", "cannot be made: No module named 'no_such_module'"),
    ):
        with pytest.raises(dmamba.ConfigError, match=message):
            vector.make(environment)


STRANGER = """
from gymnasium.envs.classic_control.pendulum import PendulumEnv

class Pendulum(PendulumEnv):
    pass
"""


@pytest.mark.parametrize("name", ["jobs", "slots"])
def test_an_environment_may_lie_in_a_module_of_any_name(name, tmp_path, monkeypatch):
    (tmp_path / f"{name}.py").write_text(STRANGER)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)
    register("dmamba-test/Stranger-v0", f"{name}:Pendulum", max_episode_steps=9)
    try:
        with vector.Environments("dmamba-test/Stranger-v0", 2, workers=2) as environments:
            environments.reset(np.ones(2, dtype=bool), np.arange(2))
            assert not environments.failures
    finally:
        del gymnasium.registry["dmamba-test/Stranger-v0"]
        sys.modules.pop(name, None)
