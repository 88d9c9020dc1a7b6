"""A run that was stopped, in whatever way, ends with the bytes of one that was not."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import tiny

import dmamba

STEPS = 400


def config_for(dataset):
    """Long enough to be hit in the middle; nothing in it is a multiple of anything else."""
    config = tiny(dataset, steps=STEPS, log_every=7, checkpoint_every=50, keep_checkpoints=2)
    config["model"]["d_model"] = 32
    return config


@pytest.fixture(scope="module")
def whole(dataset, tmp_path_factory):
    """The run that nobody stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return dmamba.train(config_for(dataset), output=folder, progress=False, evaluate=False)


def start(dataset, folder):
    """Trains in a process of its own."""
    path = folder.with_suffix(".yaml")
    path.write_text(json.dumps(config_for(dataset)))
    command = [sys.executable, "-m", "dmamba", "train", str(path), "--no-evaluate"]
    return subprocess.Popen(
        [*command, "--output", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_step(process, folder, step):
    """Waits until metrics.csv has a row of this step or a later one."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        metrics = folder / "metrics.csv"
        lines = metrics.read_text().splitlines() if metrics.exists() else []
        if len(lines) > 1 and int(lines[-1].split(",")[0] or 0) >= step:
            return
        time.sleep(0.002)
    raise AssertionError(f"step {step} was not reached")


def assert_same_bytes(run, whole):
    assert run.latest_checkpoint()[0] == STEPS
    for name in ("metrics.csv", "config.yaml"):
        assert (run.folder / name).read_bytes() == (whole.folder / name).read_bytes(), name
    for name in ("model.safetensors", "optimizer.safetensors", "state.json"):
        mine = run.latest_checkpoint()[1] / name
        assert mine.read_bytes() == (whole.latest_checkpoint()[1] / name).read_bytes(), name
    assert [step for step, _ in run.checkpoints()] == [step for step, _ in whole.checkpoints()]


@pytest.mark.parametrize(
    ("signum", "step"),
    [(signal.SIGKILL, 60), (signal.SIGKILL, 201), (signal.SIGINT, 100), (signal.SIGTERM, 150)],
)
def test_a_stopped_run_continues_to_the_same_bytes(dataset, whole, tmp_path, signum, step):
    folder = tmp_path / "run"
    process = start(dataset, folder)
    wait_for_step(process, folder, step)
    process.send_signal(signum)
    out, err = process.communicate(timeout=30)
    stopped = dmamba.Run(folder).latest_checkpoint()
    assert stopped is not None and stopped[0] < STEPS, "the signal came too late to test anything"
    if signum == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
        assert stopped[0] % 50 == 0
    else:
        assert process.returncode == 128 + signum, err
        assert "Traceback" not in err
        assert f"stopped by {signum.name} at step {stopped[0]} of {STEPS}" in out
        assert f"dmamba train --resume {folder}" in out
        assert dmamba.Run(folder).metrics()["step"][-1] <= stopped[0]
    run = dmamba.train(None, output=folder, resume=True, progress=False, evaluate=False)
    assert run.summary()["times"]["first_step"] == stopped[0]
    assert_same_bytes(run, whole)


def test_a_run_killed_before_its_first_checkpoint_begins_again(dataset, whole, tmp_path):
    folder = tmp_path / "run"
    process = start(dataset, folder)
    wait_for_step(process, folder, 7)
    process.kill()
    process.communicate(timeout=30)
    for _, checkpoint in dmamba.Run(folder).checkpoints():  # on a fast machine there is one by now
        (checkpoint / "state.json").unlink()
    run = dmamba.train(None, output=folder, resume=True, progress=False, evaluate=False)
    assert run.summary()["times"]["first_step"] == 0
    assert_same_bytes(run, whole)


def test_an_evaluation_that_was_cut_off_is_made_up_for(dataset, trained, tmp_path):
    class InterruptsEvaluation(dmamba.training.callbacks.Callback):
        def on_checkpoint(self, run, path):
            if path.name.endswith("15"):
                os.kill(os.getpid(), signal.SIGINT)  # seen after the evaluation's first step

    config = tiny(dataset)
    config["evaluation"]["every"] = 15
    arguments = {"output": tmp_path / "run", "progress": False}
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="stopped by SIGINT"):
        dmamba.train(config, callbacks=[InterruptsEvaluation()], **arguments)
    assert signal.getsignal(signal.SIGINT) is handler
    stopped = dmamba.Run(tmp_path / "run")
    assert stopped.latest_checkpoint()[0] == 15 and stopped.evaluations() == []
    run = dmamba.train(config, resume=True, **arguments)
    assert (run.folder / "evaluation.csv").read_bytes() == (
        trained.folder / "evaluation.csv"
    ).read_bytes()
    assert (run.folder / "metrics.csv").read_bytes() == (
        trained.folder / "metrics.csv"
    ).read_bytes()


def test_a_finished_run_has_nothing_left_to_do(dataset, tmp_path):
    config = tiny(dataset, steps=8)
    arguments = {"output": tmp_path / "run", "progress": False, "evaluate": False}
    first = dmamba.train(config, **arguments)
    before = (first.latest_checkpoint()[1] / "model.safetensors").stat().st_mtime_ns
    again = dmamba.train(config, resume=True, **arguments)
    after = (again.latest_checkpoint()[1] / "model.safetensors").stat().st_mtime_ns
    assert before == after and again.metrics()["step"].tolist() == [4, 8]


def test_what_shaped_the_run_cannot_change(dataset, tmp_path):
    arguments = {"output": tmp_path / "run", "progress": False, "evaluate": False}
    dmamba.train(tiny(dataset, steps=8), **arguments)
    with pytest.raises(dmamba.ConfigError, match=r"training\.steps was 8, now 9") as error:
        dmamba.train(tiny(dataset, steps=9), ["learning_rate=0.5"], resume=True, **arguments)
    assert "training.learning_rate was 0.001, now 0.5" in str(error.value)
    changed = ["evaluation.episodes=1", "training.keep_checkpoints=1"]
    run = dmamba.train(None, changed, resume=True, **arguments)
    assert run.config.evaluation.episodes == 1


def test_nothing_to_resume(dataset, tmp_path):
    with pytest.raises(dmamba.CheckpointError, match="nowhere: not a run folder"):
        dmamba.train(None, output=tmp_path / "nowhere", resume=True)
    with pytest.raises(dmamba.CheckpointError, match="new: not a run folder"):
        dmamba.train(tiny(dataset), output=tmp_path / "new", resume=True)
    with pytest.raises(dmamba.ConfigError, match="no configuration given"):
        dmamba.train(None)


def test_a_damaged_checkpoint_is_named(dataset, tmp_path):
    arguments = {"output": tmp_path / "run", "progress": False, "evaluate": False}
    run = dmamba.train(tiny(dataset, steps=8), **arguments)
    damaged = run.latest_checkpoint()[1] / "optimizer.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-10])
    with pytest.raises(dmamba.CheckpointError, match=r"step-00000008/optimizer\.safetensors"):
        dmamba.train(None, resume=True, **arguments)
