"""Evaluation beside the training: the same files as between the steps, whatever happens."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import tiny, write_dataset
from gymnasium.envs.registration import register
from walk import Walk

import dmamba
from dmamba.training.callbacks import Callback


def config_for(dataset):
    config = tiny(dataset, keep_checkpoints=1)
    config["evaluation"]["every"] = 15
    return config


def evaluations(run):
    """The evaluations but for what a repetition may change."""
    found = run.evaluations()
    for result in found:
        assert result.pop("time_seconds") > 0 and result.pop("workers") == 1
    return found


def assert_same_results(run, between):
    assert evaluations(run) == evaluations(between)
    for name in ("evaluation.csv", "metrics.csv"):
        assert (run.folder / name).read_bytes() == (between.folder / name).read_bytes(), name
    assert run.snapshots() == []


class Order(Callback):
    """The steps of the evaluations, in the order in which they are recorded."""

    def __init__(self):
        self.steps = []

    def on_evaluation(self, run, result):
        self.steps.append(result["checkpoint_step"])
        assert result["targets"][0]["returns"].shape == (3,)


def test_the_same_numbers_as_between_the_steps(dataset, trained, tmp_path, capsys):
    order = Order()
    run = dmamba.train(
        config_for(dataset), output=tmp_path / "run", evaluate="beside", callbacks=[order]
    )
    assert order.steps == [15, 30]
    assert_same_results(run, trained)
    times = run.summary()["times"]
    assert times["evaluated"] == "beside"
    assert times["evaluation_seconds"] > 0 and times["waiting_seconds"] > 0
    assert "beside it, waited" in capsys.readouterr().out
    times = trained.summary()["times"]
    assert (times["evaluated"], times["evaluation_seconds"] > 0) == ("between", True)
    assert times["waiting_seconds"] < 0.01


@pytest.mark.parametrize("again", ["beside", "between"])
def test_a_killed_run_owes_its_evaluations(dataset, trained, tmp_path, again):
    path, folder = tmp_path / "tiny.yaml", tmp_path / "run"
    path.write_text(json.dumps(config_for(dataset)))
    process = subprocess.Popen(
        [sys.executable, "-m", "dmamba", "train", str(path), "--evaluate", "beside"]
        + ["--output", str(folder), "--no-progress"]
    )
    stopped = dmamba.Run(folder)
    deadline = time.monotonic() + 300
    while not stopped.snapshots():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert stopped.evaluations() == [] and stopped.snapshots()[0][0] == 15
    run = dmamba.train(None, output=folder, resume=True, progress=False, evaluate=again)
    assert_same_results(run, trained)


def test_an_interrupted_run_owes_its_evaluations(dataset, trained, tmp_path):
    class Interrupts(Callback):
        def on_checkpoint(self, run, path):
            if path.name.endswith("30"):
                os.kill(os.getpid(), signal.SIGINT)  # seen while the evaluations are waited for

    arguments = {"output": tmp_path / "run", "progress": False, "evaluate": "beside"}
    with pytest.raises(KeyboardInterrupt, match="stopped by SIGINT"):
        dmamba.train(config_for(dataset), callbacks=[Interrupts()], **arguments)
    stopped = dmamba.Run(tmp_path / "run")
    assert [step for step, _ in stopped.snapshots()][-1] == 30
    assert [step for step, _ in stopped.checkpoints()] == [30]
    run = dmamba.train(None, resume=True, **arguments)
    assert_same_results(run, trained)


def test_an_environment_that_only_this_process_knows(tmp_path):
    register("dmamba-test/Beside-v0", entry_point=Walk, max_episode_steps=50)
    config = tiny(write_dataset(tmp_path / "walk.hdf5", state_dim=2, act_dim=1), steps=4)
    config["dataset"]["environment"] = "dmamba-test/Beside-v0"
    run = dmamba.train(config, output=tmp_path / "run", progress=False, evaluate="beside")
    assert [result["checkpoint_step"] for result in run.evaluations()] == [4]


def test_a_failure_is_not_the_training_s(dataset, tmp_path):
    class Damages(Callback):
        def on_checkpoint(self, run, path):
            if path.name.endswith("15"):
                (path / "model.safetensors").write_bytes(b"")

    config = config_for(dataset)
    config["training"]["steps"] = 16
    with pytest.warns(UserWarning, match="step 15 could not be evaluated: .*safetensors"):
        run = dmamba.train(
            config,
            output=tmp_path / "run",
            progress=False,
            evaluate="beside",
            callbacks=[Damages()],
        )
    [failed] = run.failed_evaluations()
    assert failed["checkpoint_step"] == 15 and "model.safetensors" in failed["error"]
    assert [result["checkpoint_step"] for result in run.evaluations()] == [16]


def test_an_evaluator_that_dies_is_replaced(dataset, tmp_path):
    class Kills(Callback):
        def on_checkpoint(self, run, path):
            if path.name.endswith("20"):  # while step 15 is evaluated, or waits to be
                for child in children_with("dmamba.training.beside"):
                    os.kill(child, signal.SIGKILL)

    with pytest.warns(UserWarning, match="could not be evaluated: its process ended with exit"):
        run = dmamba.train(
            config_for(dataset),
            output=tmp_path / "run",
            progress=False,
            evaluate="beside",
            callbacks=[Kills()],
        )
    assert [one["checkpoint_step"] for one in run.failed_evaluations()] == [15]
    assert [result["checkpoint_step"] for result in run.evaluations()] == [30]


def children_with(word):
    """Ids of the children whose command line has a word."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [int(child) for child in children if word in Path(f"/proc/{child}/cmdline").read_text()]


def test_a_choice_that_is_none(dataset):
    with pytest.raises(dmamba.ConfigError, match="one of auto, between, beside, got 'behind'"):
        dmamba.train(config_for(dataset), evaluate="behind")
