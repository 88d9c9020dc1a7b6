"""A loss or gradient that is not finite: the run stops with a way on, or passes over the batch."""

import csv
import hashlib
import json
import re

import numpy as np
import pytest
import torch
from conftest import tiny, write_dataset
from own_models import Poisoned
from safetensors.torch import load_file

import dmamba
from dmamba import _C


def train(config, folder, *overrides, model=None, **arguments):
    return dmamba.train(
        config,
        list(overrides),
        output=folder,
        progress=False,
        evaluate=False,
        model=model,
        **arguments,
    )


def tensors(run, name="model"):
    return load_file(run.latest_checkpoint()[1] / f"{name}.safetensors")


def steps(run):
    return [step for step, _ in run.checkpoints()]


def test_the_run_stops_before_the_step(dataset, tmp_path):
    """The message says where and how to go on; checkpoints stay, and hold nothing of the step."""
    model = Poisoned.at(16)
    with pytest.raises(dmamba.NotFiniteError) as caught:
        train(tiny(dataset, schedule="constant"), tmp_path / "run", model=model)
    message = str(caught.value)
    for part in ("step 17 (seed 7)", "8 segments of", "of episode", "checkpoints/step-00000010",
                 f"--resume {tmp_path / 'run'} training.skip_nan_batches=10",
                 "Parameters and moments are those of step 16"):  # fmt: skip
        assert part in message, message
    run = dmamba.Run(tmp_path / "run")
    assert steps(run) == [0, 10]
    assert run.metrics()["step"].tolist() == [4, 8, 12, 16]
    assert all(t.isfinite().all() for t in tensors(run).values())
    config = tiny(dataset, steps=10, schedule="constant")
    clean = train(config, tmp_path / "clean", model=Poisoned.at())
    for name in ("model", "optimizer"):
        for key, tensor in tensors(clean, name).items():
            assert torch.equal(tensor, tensors(run, name)[key]), key


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_stopped_run_goes_on_without_the_batch(dataset, tmp_path, what):
    """Resumed with leave to skip, it ends as the run that had the leave from the start."""
    with pytest.raises(dmamba.NotFiniteError):
        train(tiny(dataset), tmp_path / "run", model=Poisoned.at(16, what=what))
    run = train(
        None, tmp_path / "run", "training.skip_nan_batches=1", resume=True,
        model=Poisoned.at(16, what=what),
    )  # fmt: skip
    whole = train(
        tiny(dataset, skip_nan_batches=1), tmp_path / "whole", model=Poisoned.at(16, what=what)
    )
    assert run.metrics()["training/skipped"].tolist() == [0, 0, 0, 0, 1, 0, 0, 0]
    assert (run.folder / "metrics.csv").read_bytes() == (whole.folder / "metrics.csv").read_bytes()
    for name in ("model", "optimizer"):
        for key, tensor in tensors(whole, name).items():
            assert torch.equal(tensor, tensors(run, name)[key]), key
    assert run.summary()["skipped_steps"] == 1


class Recorder(dmamba.Callback):
    def __init__(self):
        self.hashes = []

    def on_checkpoint(self, run, path):
        digest = hashlib.sha256()
        for name in ("model", "optimizer"):
            for key, tensor in sorted(load_file(path / f"{name}.safetensors").items()):
                if key != "calls":  # a buffer, which counts skipped steps too
                    digest.update(tensor.numpy().tobytes())
        self.hashes.append((int(path.name[5:]), digest.hexdigest()))


def test_a_skipped_step_moves_nothing(dataset, tmp_path):
    """Parameters and moments keep their bits; the next update is one of the same age."""
    config = tiny(dataset, skip_nan_batches=3, checkpoint_every=1, schedule="constant")
    recorder = Recorder()
    run = train(config, tmp_path / "run", model=Poisoned.at(0, 1, 12, 13, 14), callbacks=[recorder])
    found = dict(recorder.hashes)
    assert found[0] == found[1] == found[2] != found[3]
    assert found[12] == found[13] == found[14] == found[15] != found[16]
    assert len(set(found.values())) == 31 - 5
    assert run.metrics()["training/skipped"].tolist() == [2, 0, 0, 3, 0, 0, 0, 0]
    assert all(t.isfinite().all() for t in tensors(run).values())


def tensors_at(run, step):
    return load_file(run.folder / f"checkpoints/step-{step:08d}/model.safetensors")


def test_the_moments_age_with_updates_alone(dataset, tmp_path):
    """One update after skipped steps is the first update of the same batch in a fresh optimizer."""
    config = tiny(dataset, skip_nan_batches=5, steps=6, warmup_steps=0, schedule="constant")
    config["training"] |= {"weight_decay": 0.0, "gradient_clip": 0.0, "keep_checkpoints": 9}
    config["training"]["checkpoint_every"] = 1
    config["model"] |= {"dropout": 0.0, "embedding_dropout": 0.0}
    run = train(config, tmp_path / "run", model=Poisoned.at(0, 1, 2, 3, 4))
    before, after = tensors_at(run, 5), tensors_at(run, 6)
    gradients = load_file(run.folder / "checkpoints/step-00000006/optimizer.safetensors")
    rate = run.config.training.learning_rate
    for name, tensor in before.items():
        if name == "calls":
            continue
        gradient = gradients[f"exp_avg.{name}"] / 0.1
        step = rate * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(tensor - after[name], step, atol=2e-6, rtol=1e-3)


def test_too_many_in_a_row_stop_the_run(dataset, tmp_path):
    config = tiny(dataset, skip_nan_batches=2)
    with pytest.raises(dmamba.NotFiniteError, match=r"step 20 .*after 2 before it"):
        train(config, tmp_path / "run", model=Poisoned.at(5, 8, 9, 17, 18, 19))
    run = dmamba.Run(tmp_path / "run")
    assert steps(run) == [0, 10] and run.metrics()["training/skipped"].tolist() == [0, 1, 2, 0]
    state = json.loads((run.latest_checkpoint()[1] / "state.json").read_text())
    assert state["skipped"] == {"total": 3, "in_a_row": 2, "since_row": 2}
    # A run that goes on counts from there: both steps before its checkpoint were skipped.
    model = Poisoned.at(5, 8, 9, 10)
    with pytest.raises(dmamba.NotFiniteError, match="step 11 .*after 2 before it"):
        train(None, run.folder, resume=True, model=model)


def test_a_row_of_skipped_steps_alone(dataset, tmp_path):
    """It has no loss: NaN in metrics.csv, passed over by what reads it."""
    config = tiny(dataset, skip_nan_batches=8, log_every=2)
    run = train(config, tmp_path / "run", model=Poisoned.at(4, 5, 28, 29))
    metrics = run.metrics()
    assert np.flatnonzero(np.isnan(metrics["training/loss"])).tolist() == [2, 14]
    assert metrics["training/skipped"].tolist() == [0, 0, 2] + [0] * 11 + [2]
    with open(run.folder / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert rows[2]["training/loss"] == "nan" and rows[3]["training/skipped"] == "0"
    assert run.summary()["loss"] == pytest.approx(metrics["training/loss"][-2])
    assert dmamba.runs.seeds.late_loss(metrics, 30) == pytest.approx(
        np.nanmean(metrics["training/loss"])
    )


def test_metrics_of_older_runs_are_read(tmp_path):
    text = "step,training/loss,training/grad_norm,training/learning_rate\n4,0.5,1.0,0.001\n"
    (tmp_path / "metrics.csv").write_text(text)
    metrics = dmamba.Run(tmp_path).metrics()
    assert metrics["training/loss"].tolist() == [0.5] and metrics["training/skipped"].tolist() == [
        0
    ]


def test_values_too_large_for_float32(tmp_path):
    """The built-in model on data whose squares overflow: finite, and of no use to it."""
    data = write_dataset(tmp_path / "large.hdf5", metadata={"environment": "Hopper-v4"})
    import h5py

    with h5py.File(data, "r+") as file:
        file["actions"][40] = 3e20  # its square is infinite in float32
    with pytest.raises(dmamba.NotFiniteError, match=re.escape(str(data))):
        train(tiny(data, steps=200), tmp_path / "stopped")
    run = train(tiny(data, steps=200, skip_nan_batches=10), tmp_path / "run")
    assert 0 < run.summary()["skipped_steps"] < 100
    assert all(t.isfinite().all() for t in tensors(run).values())


def test_a_bad_checkpoint_is_not_written(dataset, tmp_path):
    """Parameters may go beyond float32 with gradients that are finite."""
    config = tiny(dataset, learning_rate=1e39, warmup_steps=0, gradient_clip=0.0, steps=1)
    config["training"] |= {"weight_decay": 0.5, "decay": "all"}
    with pytest.raises(dmamba.NotFiniteError, match="parameter '.*' holds NaN or infinity"):
        train(config, tmp_path / "run")
    assert not dmamba.Run(tmp_path / "run").checkpoints()


def test_the_trainer_may_be_saved_where_it_stopped(dataset, tmp_path):
    config = dmamba.configuration.load_config(tiny(dataset, log_every=2))
    stores = dmamba.training.beginning.load_stores(config, progress=False)
    config, parts = dmamba.training.beginning.resolve(config, stores)
    _, trainer, _ = dmamba.training.beginning.make_trainer(
        config, parts, None, None, Poisoned.at(7)
    )
    rows = trainer.run(seconds=100.0)
    assert [row["step"] for row in rows] == [2, 4, 6] and trainer.step == 7
    for _ in range(2):
        with pytest.raises(_C.NotFiniteError, match="step 8 "):
            trainer.run(seconds=100.0)
    trainer.save(str(tmp_path / "step"))
    assert _C.read_checkpoint(str(tmp_path / "step"))["step"] == 7
