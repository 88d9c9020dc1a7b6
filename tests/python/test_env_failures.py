"""Environments that raise, hang, answer nonsense or die: each costs its episode, and is told."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from faulty import DEADLY, HANGING, KINDS, Faulty
from test_envs import is_alive
from test_evaluation import Steering

import dmamba
from dmamba import _C, nn
from dmamba.commands import main
from dmamba.display.describing import format_result
from dmamba.envs.failures import Guard
from dmamba.envs.jobs import episode_seed, make_jobs
from dmamba.envs.vector import Environments
from dmamba.evaluation import evaluate_model
from dmamba.evaluation.rollout import play

EPISODES = 12
TARGETS = [1.0, 30.0]


@pytest.fixture
def faulty():
    """Registers an environment with the given faults; returns its id."""

    def make(**arguments):
        gymnasium.registry.pop("dmamba-test/Faulty-v0", None)
        gymnasium.register("dmamba-test/Faulty-v0", Faulty, max_episode_steps=50, kwargs=arguments)
        return "dmamba-test/Faulty-v0"

    Faulty.made = 0
    yield make
    gymnasium.registry.pop("dmamba-test/Faulty-v0", None)


def play_all(environment, slots, workers, timeout=60.0, targets=TARGETS):
    """Returns by (target, episode), what failed likewise, and how many workers were replaced."""
    results, failed = {}, {}

    def on_episode(job, total, length):
        results[job.target, job.episode] = total, length

    def on_failure(job, what, step):
        assert (job.target, job.episode) not in failed
        failed[job.target, job.episode] = what, step

    guard = Guard(timeout, isolated=True)
    with Environments(environment, slots, 0, workers, guard=guard) as environments:
        jobs = make_jobs(targets, EPISODES, seed=5)
        play(Steering(slots), environments, jobs, on_episode, on_failure=on_failure)
        replaced = environments.replaced
    return results, failed, replaced


def fault(episode, kind):
    return episode_seed(5, episode), kind


def assert_only(failed, results, clean, episodes):
    """The episodes of these numbers have failed; all others are as they would be."""
    targets = {target for target, _ in results}
    assert sorted(failed) == sorted((t, e) for t in targets for e in episodes)
    expected = {k: v for k, v in clean.items() if k[0] in targets and k[1] not in episodes}
    assert results == expected


@pytest.fixture(scope="module")
def clean():
    gymnasium.register("dmamba-test/Clean-v0", Faulty, max_episode_steps=50)
    results, failed, replaced = play_all("dmamba-test/Clean-v0", 5, 1)
    assert (failed, replaced) == ({}, 0) and len(results) == len(TARGETS) * EPISODES
    return results


def test_whatever_is_raised_or_returned_costs_its_episode(faulty, clean):
    for start in range(0, len(KINDS), EPISODES - 2):
        kinds = dict(enumerate(list(KINDS)[start : start + EPISODES - 2], 1))
        environment = faulty(faults=[fault(e, kind) for e, kind in kinds.items()])
        results, failed, replaced = play_all(environment, 5, 2)
        assert_only(failed, results, clean, kinds)
        assert replaced == 0
        for (_, episode), (what, step) in failed.items():
            assert KINDS[kinds[episode]] in what
            assert what.startswith("the environment r")
            assert step == (0 if "reset" in kinds[episode] else 2)


def test_a_process_that_dies_is_replaced(faulty, clean):
    kinds = dict(enumerate(DEADLY, 3))
    environment = faulty(faults=[fault(e, kind) for e, kind in kinds.items()])
    results, failed, replaced = play_all(environment, 6, 2)
    assert_only(failed, results, clean, kinds)
    assert replaced == len(TARGETS) * len(kinds)
    for (_, episode), (what, _) in failed.items():
        assert DEADLY[kinds[episode]] in what and "its worker process" in what


def test_what_hangs_is_killed(faulty, clean):
    kinds = dict(enumerate(HANGING, 2))
    environment = faulty(faults=[fault(e, kind) for e, kind in kinds.items()])
    results, failed, replaced = play_all(environment, 4, 2, timeout=1.5, targets=TARGETS[:1])
    assert_only(failed, results, clean, kinds)
    assert replaced == len(kinds)
    for (_, episode), (what, _) in failed.items():
        assert HANGING[kinds[episode]] in what


def test_an_environment_that_cannot_be_made_costs_its_episode(faulty, clean):
    results, failed, replaced = play_all(faulty(unmade=3), 5, 1)
    [((target, episode), (what, step))] = failed.items()
    assert (step, replaced) == (0, 0) and "raised OSError: no licence" in what
    assert results == {key: value for key, value in clean.items() if key != (target, episode)}


class Killer(Steering):
    """Kills a worker at some of its steps, as the kernel does where memory runs out."""

    def __init__(self, slots, environments, steps):
        super().__init__(slots)
        self.environments, self.when, self.acts = environments, set(steps), 0

    def act(self, states):
        self.acts += 1
        if self.acts in self.when:
            worker = self.environments._engine._workers[self.acts % 2]
            os.kill(worker.process.pid, signal.SIGKILL)
        return super().act(states)


def test_a_worker_that_is_killed_from_outside_costs_nothing(faulty, clean):
    results = {}

    def on_episode(job, total, length):
        results[job.target, job.episode] = total, length

    with Environments(faulty(), 5, workers=2) as environments:
        policy = Killer(5, environments, [1, 2, 9, 14])
        play(policy, environments, make_jobs(TARGETS, EPISODES, seed=5), on_episode)
        assert environments.replaced == 4
    assert results == clean


def test_what_kills_every_worker_does_not_go_on_for_ever(faulty):
    with Environments(faulty(), 4, workers=2) as environments:
        policy = Killer(4, environments, range(1, 1000))
        jobs = make_jobs(TARGETS, EPISODES, seed=5)
        with pytest.raises(dmamba.Error, match=r"died of SIGKILL: its worker.*\(the 4th time\)"):
            play(policy, environments, jobs, lambda *_: None)
        assert environments.replaced < 20


@pytest.fixture
def model():
    """A model for the environment, and what an evaluation needs beside it."""
    torch.manual_seed(0)
    config = _C.ModelConfig()
    config.d_model, config.n_layer, config.context_length = 16, 1, 5
    info = {"step": 3, "state_mean": [0.0] * 2, "state_std": [1.0] * 2, "rtg_scale": 10.0}
    return nn.DMamba(2, 1, config=config), {**info, "context_length": 0}


def evaluate(model, environment, **arguments):
    usual = {"targets": TARGETS, "episodes": 20, "seed": 5, "num_envs": 8, "progress": False}
    return evaluate_model(*model, environment=environment, **{**usual, **arguments})


def test_an_evaluation_says_what_has_failed(faulty, model):
    whole = evaluate(model, faulty())
    assert whole["failures"] == [] and whole["replaced_workers"] == 0
    environment = faulty(faults=[fault(4, "dies"), fault(11, "nan reward")])
    with pytest.warns(UserWarning, match=r"4 of 40 episodes failed, the means are of the others"):
        result = evaluate(model, environment)
    for row, clean_row in zip(result["targets"], whole["targets"], strict=True):
        assert (row["episodes"], row["failed"], row["failed_episodes"]) == (20, 2, [4, 11])
        np.testing.assert_array_equal(row["returns"], np.delete(clean_row["returns"], [4, 11]))
        assert row["return_mean"] == row["returns"].mean()
    assert [one["episode"] for one in result["failures"]] == [4, 11, 4, 11]
    first = result["failures"][0]
    assert first["seed"] == episode_seed(5, 4) and first["step"] == 2
    assert first["text"] in format_result(result) and "died with exit code 7" in first["text"]
    assert format_result(result).count("2 of 20") == 2
    assert "failed" not in format_result(whole)


def test_too_many_failures_are_an_error(faulty, model):
    three = [fault(e, "raises") for e in (2, 5, 7)]
    message = (
        r"3 of 20 episodes for target 1 failed, of which at most 2 may \(evaluation.max_failed "
        r"0.1\); the first: the environment raised ZeroDivisionError: by design \(.*faulty.py:\d+"
        rf"\), at step 2 of episode 2, target 1, seed {episode_seed(5, 2)}"
    )
    with pytest.raises(dmamba.Error, match=message):
        evaluate(model, faulty(faults=three))
    with pytest.raises(dmamba.Error, match="1 of 2 episodes .* at most 0 may"):
        evaluate(model, faulty(faults=[fault(0, "raises")]), episodes=2)
    everything = faulty(faults=[fault(e, "raises") for e in range(20)])
    with pytest.raises(dmamba.Error, match="20 of 20 episodes .* at most 19 may"):
        evaluate(model, everything, max_failed=1.0)
    with pytest.warns(UserWarning, match="6 of 40 episodes failed"):
        result = evaluate(model, faulty(faults=three), max_failed=0.15)
    assert [row["failed"] for row in result["targets"]] == [3, 3]


def test_a_recording_on_the_command_line_leaves_out_what_fails(faulty, capsys):
    hung, raised = fault(1, "hangs"), fault(3, "raises")
    environment = faulty(faults=[hung, raised])
    words = ["--random", "--environment", environment, "--episodes", "10", "--seed", "5"]
    command = ["data", "record", *words, "--num-envs", "4", "--timeout", "2"]
    assert main([*command, "--output", "none.hdf5"]) == 2
    assert "episodes failed, more than max_failed 0.1 allows" in capsys.readouterr().err
    with pytest.warns(UserWarning, match=r"2 of 10 episodes failed and are left out"):
        assert main([*command, "--output", "some.hdf5", "--max-failed", "0.2"]) == 0
    store = dmamba.data.load("some.hdf5")
    assert store.num_episodes == 8 and store.metadata["failed_episodes"] == "2"


def test_a_policy_that_diverges_in_one_episode_costs_that_one(faulty, clean):
    class Diverging(Steering):
        def act(self, states):
            action = super().act(states)
            action[(self.left > 20) & (self.steps == 2)] = np.nan
            return action

    failed, results = [], []
    with Environments(faulty(), 3) as environments:
        play(
            Diverging(3),
            environments,
            make_jobs(TARGETS, EPISODES, seed=5),
            lambda job, total, length: results.append((job, total, length)),
            on_failure=lambda job, what, step: failed.append((job.target, what)),
        )
    assert {target for target, _ in failed} == {30.0}
    assert all("the policy gave a non-finite action" in what for _, what in failed)
    for job, total, length in results:
        assert clean[job.target, job.episode] == (total, length)


HANGING_PROGRAM = """
import os, pathlib, signal, sys, threading
import gymnasium, numpy as np
from faulty import Faulty
from dmamba.envs.vector import Environments
from dmamba.envs.failures import Guard

armed = []

def check():
    if not armed:
        return
    if sys.argv[1] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    raise KeyboardInterrupt

faults = [(seed, "hangs in C") for seed in range(4)]
gymnasium.register("Hangs-v0", Faulty, max_episode_steps=9, kwargs={"faults": faults})
everywhere = np.ones(4, dtype=bool)
with Environments("Hangs-v0", 4, workers=2, guard=Guard(0.0, check)) as environments:
    environments.reset(everywhere, np.arange(4))
    print(*(worker.process.pid for worker in environments._engine._workers), flush=True)
    environments.step(np.zeros((4, 1)), everywhere)
    armed.append(True)
    environments.step(np.zeros((4, 1)), everywhere)
"""


WRITING_PROGRAM = """
import mmap, sys
memory, size = mmap.mmap(int(sys.argv[1]), 0), int(sys.argv[2])
while True:
    for order in (b"\\0", b"\\1"):
        for row in range(0, len(memory), size):
            memory[row:row + 1] = order
"""


def test_workers_may_write_while_they_are_looked_at():
    with Environments("Pendulum-v1", 2, workers=2) as environments:
        processes = environments._engine
        rows, memory = processes.rows, processes._setup["memory"]
        assert rows.dtype.fields["order"][1] == 0 and rows["order"].itemsize == 1
        writing = subprocess.Popen(
            [sys.executable, "-c", WRITING_PROGRAM, str(memory), str(rows.itemsize)],
            pass_fds=[memory],
        )
        try:
            deadline = time.monotonic() + 30
            while not rows["order"].any():
                assert time.monotonic() < deadline and writing.poll() is None
            deadline = time.monotonic() + 1
            while time.monotonic() < deadline:
                assert processes._pending(processes._workers[0]) is None  # none has begun
        finally:
            writing.kill()
            writing.wait()
        rows["order"] = 0


@pytest.mark.parametrize("how", ["killed", "interrupted"])
def test_nothing_is_left_of_workers_that_hang(how):
    path = os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", HANGING_PROGRAM, how],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    workers = done.stdout.split()
    assert len(workers) == 2, done.stderr
    assert done.returncode == (-signal.SIGKILL if how == "killed" else -signal.SIGINT)
    deadline = time.monotonic() + 30
    while any(is_alive(worker) for worker in workers):
        assert time.monotonic() < deadline, "a hanging worker outlives its parent"
        time.sleep(0.01)


def test_a_campaign_of_random_faults():
    """A short round of scripts/nightly/environments.sh."""
    program = Path(__file__).parents[1] / "reliability" / "environments.py"
    done = subprocess.run(
        [sys.executable, program, "--repetitions", "1"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 evaluations were not as they should be" in done.stdout
