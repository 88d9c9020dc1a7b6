"""The run folder: atomic writes, checkpoints, lock, CSV files, TensorBoard."""

import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import dmamba
from dmamba.common.files import write_json, write_text
from dmamba.runs import Run, RunWriter, locate_checkpoint
from dmamba.runs.metrics import METRICS


def row(step, loss=0.5):
    return dict(zip(METRICS, (step, loss, 1.25, 1e-3, 0), strict=True))


def evaluation(step, mean=10.0):
    target = {
        "target": 100.0,
        "episodes": 2,
        "return_mean": mean,
        "return_std": 1.0,
        "return_stderr": 0.7,
        "return_interval": (9.0, 11.0),
        "length_mean": 5.0,
        "score_mean": None,
        "score_interval": None,
        "returns": np.array([9.0, 11.0]),
        "lengths": np.array([5, 5]),
    }
    return {
        "environment": "Nowhere-v0",
        "policy": "windowed",
        "checkpoint_step": step,
        "targets": [target],
    }


class FakeTrainer:
    """Saves as the trainer does: a folder with state.json."""

    def __init__(self, step):
        self.step = step

    def save(self, folder):
        Path(folder).mkdir()
        (Path(folder) / "model.safetensors").write_bytes(b"tensors")
        (Path(folder) / "state.json").write_text("{}")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    write_text(path, "old")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.json"]


def test_json_takes_arrays_and_refuses_nan(tmp_path):
    path = tmp_path / "file.json"
    value = {"a": np.arange(3), "b": np.float64(1.5), "c": tmp_path, "d": (1, None)}
    write_json(path, value)
    expected = {"a": [0, 1, 2], "b": 1.5, "c": str(tmp_path), "d": [1, None]}
    assert json.loads(path.read_text()) == expected
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == expected


def test_checkpoints_are_found_by_number(tmp_path):
    run = Run(tmp_path)
    assert run.checkpoints() == [] and run.latest_checkpoint() is None
    for name in ("step-00000900", "step-00010000", "step-123456789", "step-00020000"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        if name != "step-00020000":  # cut off before the end
            (tmp_path / "checkpoints" / name / "state.json").write_text("{}")
    (tmp_path / "checkpoints" / ".step-00030000.tmp").mkdir()
    assert [step for step, _ in run.checkpoints()] == [900, 10000, 123456789]
    assert run.latest_checkpoint()[1].name == "step-123456789"


def test_a_checkpoint_that_is_replaced_while_it_is_looked_for(tmp_path, monkeypatch):
    old, new = (tmp_path / "checkpoints" / f"step-0000000{step}" for step in (1, 2))
    old.mkdir(parents=True)
    (old / "state.json").write_text("{}")
    listed = type(old).iterdir

    def iterdir(self):
        found = list(listed(self))
        if old.exists():
            old.rename(new)
        return iter(found)

    monkeypatch.setattr(type(old), "iterdir", iterdir)
    assert Run(tmp_path).latest_checkpoint() == (2, new)


def test_two_processes_cannot_train_in_one_folder(tmp_path):
    folder = tmp_path / "run"
    with RunWriter(folder, resume=False):
        message = rf"{folder}: process {os.getpid()} is training in this folder"
        with pytest.raises(dmamba.Error, match=message):
            RunWriter(folder, resume=False)
    with RunWriter(folder, resume=False):
        pass


def test_a_lock_whose_owner_is_dead_is_waited_for(tmp_path):
    """What a process that was killed had just started may hold it for a moment."""
    folder = tmp_path / "run"
    holder = RunWriter(folder, resume=False)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (folder / ".lock").write_text(f"{dead.pid}\n")
    threading.Timer(0.3, holder.__exit__, (None, None, None)).start()
    with RunWriter(folder, resume=False):
        pass


def test_a_used_folder_is_refused(tmp_path, trained):
    with pytest.raises(dmamba.Error, match=r"holds a run, at step 30; continue it with --resume"):
        RunWriter(trained.folder, resume=False)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    with pytest.raises(dmamba.Error, match="holds other files; choose another folder"):
        RunWriter(tmp_path / "other", resume=False)
    with RunWriter(trained.folder, resume=True):  # the refusal has let go of the lock
        pass


def test_nothing_to_resume(tmp_path):
    with pytest.raises(dmamba.CheckpointError, match="nothing to resume"):
        RunWriter(tmp_path / "run", resume=True)
    assert not (tmp_path / "run").exists()


def test_continuing_forgets_what_lies_past_the_checkpoint(tmp_path):
    config = dmamba.Config()
    with RunWriter(tmp_path, resume=False) as writer:
        writer.start(config, 0)
        for step in (10, 20, 30):
            writer.add_row(row(step), 5.0)
        writer.add_evaluation(evaluation(20))
        writer.add_evaluation(evaluation(30))
    with open(tmp_path / "metrics.csv", "a") as file:
        file.write("40,0.25,1.")  # cut off by a kill
    for name in ("step-00000040", ".step-00000040.tmp"):
        (tmp_path / "checkpoints" / name).mkdir()
    run = Run(tmp_path)
    assert run.metrics()["step"].tolist() == [10, 20, 30]
    with RunWriter(tmp_path, resume=True) as writer:
        writer.start(config, 20)
        writer.add_row(row(30, loss=0.125), 5.0)
    assert (tmp_path / "metrics.csv").read_text() == (
        "step,training/loss,training/grad_norm,training/learning_rate,training/skipped\n"
        "10,0.5,1.25,0.001,0\n20,0.5,1.25,0.001,0\n30,0.125,1.25,0.001,0\n"
    )
    assert [result["checkpoint_step"] for result in run.evaluations()] == [20]
    lines = (tmp_path / "evaluation.csv").read_text().splitlines()
    assert lines[0].startswith("step,policy,target,episodes,return_mean")
    assert lines[1:] == ["20,windowed,100.0,2,10.0,1.0,9.0,11.0,5.0,,,,workers,0,"]
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_a_damaged_metrics_file_is_named(tmp_path):
    (tmp_path / "metrics.csv").write_text(
        ",".join(METRICS) + "\n10,0.5,1.0,1.0,0\n20,x,1.0,1.0,0\n"
    )
    message = re.escape(f"{tmp_path / 'metrics.csv'}:3: not a row of metrics: '20,x,1.0,1.0,0'")
    with pytest.raises(dmamba.DataError, match=message):
        Run(tmp_path).metrics()
    (tmp_path / "metrics.csv").write_text("step,loss\n")
    with pytest.raises(dmamba.DataError, match="the header is 'step,loss'"):
        Run(tmp_path).metrics()


def test_only_the_latest_checkpoints_are_kept(tmp_path):
    with RunWriter(tmp_path, resume=False) as writer:
        writer.start(dmamba.Config(), 0)
        for step in (10, 20, 30):
            path = writer.save_checkpoint(FakeTrainer(step), keep=2)
            assert path == tmp_path / "checkpoints" / f"step-{step:08d}"
    assert [step for step, _ in Run(tmp_path).checkpoints()] == [20, 30]


def test_tensorboard(tmp_path):
    with RunWriter(tmp_path, resume=False) as writer:
        writer.start(dmamba.Config(), 0)
        writer.add_row(row(10), 123.0)
        result = evaluation(10)
        result["targets"][0]["score_mean"] = 42.0
        result["targets"][0]["score_interval"] = (41.0, 43.0)
        writer.add_evaluation(result)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    values = {key: events.Scalars(key)[0].value for key in events.Tags()["scalars"]}
    assert values == {
        "training/loss": 0.5,
        "training/grad_norm": 1.25,
        "training/learning_rate": pytest.approx(1e-3),
        "training/skipped": 0.0,
        "time/steps_per_s": 123.0,
        "evaluation/target_100_return_mean": 10.0,
        "evaluation/target_100_length_mean": 5.0,
        "evaluation/target_100_d4rl_score": 42.0,
    }
    assert {events.Scalars(key)[0].step for key in values} == {10}


def test_locate_checkpoint(trained):
    step, latest = trained.latest_checkpoint()
    assert step == 30
    assert locate_checkpoint(trained.folder) == (trained.folder, latest)
    earlier = trained.checkpoints()[0][1]
    assert locate_checkpoint(earlier) == (trained.folder, earlier)


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(dmamba.CheckpointError, match=r"not a run folder, it has no config\.yaml"):
        _ = Run(tmp_path).config
    with pytest.raises(dmamba.CheckpointError, match=r"no summary\.json"):
        Run(tmp_path).summary()
    assert Run(tmp_path).dataset_mean() is None
