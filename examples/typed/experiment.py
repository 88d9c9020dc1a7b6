"""An experiment with every type written down: it passes ``mypy --strict`` as it is.

    pip install mypy && mypy --strict experiment.py
    python experiment.py OUTPUT [STEPS]

It trains on episodes of its own making, asks the policy for returns, sweeps over K, and trains a
model of the library in a loop of its own.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import dmamba
from dmamba import Callback, nn, ops

Episode = dict[str, npt.NDArray[np.float32] | bool]


class Losses(Callback):
    """Keeps the losses that were logged."""

    def __init__(self) -> None:
        self.by_step: dict[int, float] = {}

    def on_log(self, run: dmamba.Run, row: dict[str, Any]) -> None:
        """Takes a row of metrics.csv."""
        self.by_step[int(row["step"])] = float(row["training/loss"])

    def on_checkpoint(self, run: dmamba.Run, path: Path) -> None:
        """Says where it is."""
        print(f"{run.folder.name}: {path.name}")


def make_episodes(count: int, length: int, seed: int = 0) -> list[Episode]:
    """Random walks that end after ``length`` steps."""
    rng = np.random.default_rng(seed)
    episodes: list[Episode] = []
    for _ in range(count):
        actions = rng.uniform(-1.0, 1.0, (length, 3)).astype(np.float32)
        states = rng.normal(size=(length, 11)).astype(np.float32)
        rewards = actions.sum(axis=1)
        episodes.append(
            {"observations": states, "actions": actions, "rewards": rewards, "terminated": False}
        )
    return episodes


def config(steps: int) -> dict[str, Any]:
    """A small recipe."""
    return {
        "name": "typed",
        "model": {"d_model": 16, "n_layer": 1, "context_length": 5},
        "training": {"steps": steps, "batch_size": 8, "warmup_steps": 2, "device": "cpu"},
        "evaluation": {"episodes": 2, "targets": [100.0]},
    }


def train_and_evaluate(store: dmamba.data.TrajectoryStore, output: Path, steps: int) -> float:
    """The mean return of a policy that was trained on the store."""
    losses = Losses()
    run: dmamba.Run = dmamba.train(
        config(steps),
        ["seed=1"],
        dataset=store,
        output=output / "run",
        callbacks=[losses],
        progress=False,
        evaluate=False,
    )
    trained: dmamba.Config = run.config
    print(f"{trained.name}: d_model {trained.model.d_model}, losses {losses.by_step}")
    try:
        result = dmamba.evaluate(run, targets=[50.0], policy="recurrent", progress=False)
    except dmamba.Error as error:  # without gymnasium
        print(error)
        return float("nan")
    return float(result["targets"][0]["return_mean"])


def sweep(dataset: Path, output: Path, steps: int) -> list[str]:
    """Every point of a grid over K, and a report on them."""
    settings = config(steps) | {"dataset": {"path": str(dataset)}}
    found: dmamba.Sweep = dmamba.sweep(
        settings, ["K=2,4"], output=output / "sweep", jobs=1, progress=False
    )
    for row in found.rows:
        print(row["context_length"], row["loss"])
    page: dmamba.Report = dmamba.report(found.folder)
    return [table.title for table in page.tables]


def own_loop(store: dmamba.data.TrajectoryStore, steps: int) -> Tensor:
    """The loss after some steps of a loop of one's own."""
    segments = dmamba.data.SegmentDataset(store, context_length=5)
    loader = DataLoader(segments, batch_size=8, shuffle=True)
    model = nn.DMamba(store.state_dim, store.act_dim, d_model=16, n_layer=1, context_length=5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loss = torch.zeros(())
    for _, batch in zip(range(steps), loader, strict=False):
        names = ("states", "actions", "returns_to_go", "timesteps", "mask")
        predicted: Tensor = model(*(batch[name] for name in names))
        loss = ((predicted - batch["actions"]) ** 2)[batch["mask"]].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.detach()


def scan(length: int) -> Tensor:
    """The operator alone, and its last state."""
    u = torch.randn(1, length, 8)
    A = -torch.rand(8, 4)
    B, C = torch.randn(1, length, 4), torch.randn(1, length, 4)
    alone: Tensor = ops.selective_scan(u, u.abs(), A, B, C)
    y, state = ops.selective_scan(u, u.abs(), A, B, C, return_last_state=True)
    print(tuple(state.shape), float((y - alone).abs().max()))
    return y


def main(words: list[str]) -> int:
    """Runs all of it."""
    output, steps = Path(words[0]), int(words[1]) if len(words) > 1 else 20
    output.mkdir(parents=True, exist_ok=True)
    file = output / "walks.hdf5"
    store = dmamba.data.from_episodes(make_episodes(6, 20), environment="Hopper-v4", save=file)
    print(f"{store.num_episodes} episodes, returns {store.episode_returns.round(1).tolist()}")
    print("return", train_and_evaluate(store, output, steps))
    print("tables", sweep(file, output, steps))
    print("loss", float(own_loop(store, steps)))
    print("scan", tuple(scan(7).shape))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
