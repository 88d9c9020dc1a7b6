"""What test_ranks.py has two processes do: torchrun ... rank_scenarios.py FOLDER

FOLDER holds arguments.json; rank R writes rank-R.json, and rank 0 runs into folders of its own.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from conftest import write_dataset
from own_models import Net, Wrapped

import dmamba
from dmamba import _C

RANK = int(os.environ["RANK"])


def failure_of(work):
    """Type and message of what a function raises."""
    try:
        work()
    except dmamba.Error as error:
        return [type(error).__name__, str(error)]
    return ["", ""]


def train(config, folder, **options):
    return dmamba.train(config, output=folder, progress=False, evaluate=False, **options)


def changed(config, section, **values):
    return config | {section: config[section] | values}


def errors(config, root):
    """Each is raised on both ranks, and leaves no folder behind."""
    other = write_dataset(root / f"other-{RANK}.hdf5", lengths=(30, 12, 45, 7, 22))
    rate = [1e-3, 2e-3][RANK]
    cases = {
        "indivisible": changed(config, "training", batch_size=7),
        "too many ranks": changed(config, "training", batch_size=1),
        "configuration": changed(config, "training", learning_rate=rate),
        "data": config if RANK == 0 else changed(config, "dataset", path=str(other)),
        "one rank": config if RANK == 0 else changed(config, "dataset", path="/nowhere.hdf5"),
        "no GPU": changed(config, "training", device="cuda"),
        "buffers": config,
    }
    found = {
        name: failure_of(
            lambda case=case, name=name: train(
                case, root / name, model=Net if name == "buffers" else None
            )
        )
        for name, case in cases.items()
    }
    assert not any((root / name).exists() for name in cases)
    return found


class Fails(dmamba.Callback):
    def on_log(self, run, row):
        if row["step"] >= 5:
            raise RuntimeError("the disk is full")


def fail_in_a_callback(config, folder):
    try:
        train(config, folder, callbacks=[Fails()])
    except RuntimeError as error:
        return [type(error).__name__, str(error)]
    return ["", ""]


def parameters_after(steps, core, config, store, freeze=False):
    """Parameters that a trainer of this rank ends with, as bytes, and its losses."""
    torch.manual_seed(5)
    model = dmamba.nn.DMamba(store.state_dim, store.act_dim, config=config.model)
    trainer = _C.Trainer(config, store, model.cpp_module, core)
    trainer.synchronize()
    rows = trainer.run(1e9, steps)
    if freeze:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("blocks.0" not in name)
        rows += trainer.run(1e9, steps)
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        rows += trainer.run(1e9, steps)
    digest = np.concatenate([p.detach().numpy().ravel() for p in model.parameters()])
    trainer.release()
    return [digest.tobytes().hex(), [row["training/loss"] for row in rows]]


class BadOnOneRank(Wrapped):
    """Its ninth and tenth batch are infinite on rank 1 alone."""

    made = None  # the last one

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.batches = 0
        BadOnOneRank.made = self

    def forward(self, *inputs):
        self.batches += self.training
        bad = RANK == 1 and self.training and self.batches in (9, 10)
        return super().forward(*inputs) * (float("inf") if bad else 1.0)


def not_finite(config, root):
    """What the ranks say that stop, and what those come to that go on."""
    stopped = failure_of(lambda: train(config, root / "stopped", model=BadOnOneRank))
    leave = changed(config, "training", skip_nan_batches=2)
    run = train(leave, root / "passed over", model=BadOnOneRank)
    found = hashlib.sha256()
    for parameter in BadOnOneRank.made.parameters():
        found.update(parameter.detach().numpy().tobytes())
    return {"stopped": stopped, "step": run.latest_checkpoint()[0], "digest": found.hexdigest()}


def trainers(config):
    """Trainers over groups of our own: buckets of all sizes, parameters that are frozen."""
    loaded = dmamba.configuration.load_config(config)
    store = dmamba.data.load(loaded.dataset.path, progress=False)
    resolved = dmamba.data.resolve(loaded, store)
    group = dist.new_group(backend="gloo")
    found = {}
    for size in (1, 3000, 1 << 30):
        core = _C.Ranks(group, bucket_bytes=size)
        assert (core.rank, core.world, core.bucket_bytes) == (RANK, 2, size)
        found[f"{size}"] = parameters_after(5, core, resolved, store)
    found["frozen"] = parameters_after(4, _C.Ranks(group, 3000), resolved, store, freeze=True)
    found["alone"] = parameters_after(4, None, resolved, store, freeze=True)
    return found


def main():
    root = Path(sys.argv[1])
    arguments = json.loads((root / "arguments.json").read_text())
    config = arguments["config"]
    results = {}
    run = train(config, root / "whole")
    results["step"] = run.latest_checkpoint()[0]
    train(config, root / "again")
    train(arguments["games"], root / "games")
    train(config, root / "own", model=Wrapped)
    results["not finite"] = not_finite(config, root)
    results["errors"] = errors(config, root)
    results["callback"] = fail_in_a_callback(config, root / "callback")
    assert not dist.is_initialized()
    dist.init_process_group("gloo")
    results["trainers"] = trainers(config)
    train(config, root / "in a group of the caller's")
    assert dist.is_initialized()
    (root / f"rank-{RANK}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


main()
