#!/usr/bin/env python3
"""Strikes the environments of evaluations at random, and compares what is left with a clean run.

    python tests/reliability/environments.py [--repetitions 20] [--seed 0]

Prints a line for each kind of fault: how often it struck, and how often all went as it should.
"""

from __future__ import annotations

import argparse
import collections
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "python"))
from faulty import DEADLY, HANGING, KINDS, Faulty

from dmamba import _C, evaluation, nn
from dmamba.envs.jobs import episode_seed
from dmamba.evaluation import suites

ID = "Faulty-v0"
FAULTS = {**KINDS, **DEADLY, **HANGING}
EPISODES = 60
TARGETS = [1.0, 30.0]
TIMEOUT = 5.0  # far above what a step takes on a machine that others use, too
OUTSIDE = "a worker killed from outside"


def make_model() -> tuple[nn.DMamba, dict[str, Any]]:
    """A model with random parameters, and what it needs to act."""
    torch.manual_seed(0)
    config = _C.ModelConfig()
    config.d_model, config.n_layer, config.context_length = 32, 2, 5
    info = {"step": 0, "state_mean": [0.0] * 2, "state_std": [1.0] * 2, "rtg_scale": 10.0}
    return nn.DMamba(2, 1, config=config), {**info, "context_length": 0}


class Killing(suites.VectorSuite):
    """Kills a random worker now and then."""

    random = np.random.default_rng(0)
    share = 0.0
    killed = 0

    def environments(self, slots: int, workers: int, *seeds: Any, **options: Any) -> Any:
        """A batch whose workers do not live for ever."""
        batch = super().environments(slots, workers, *seeds, **options)
        step = batch.step

        def strike(*arguments: Any) -> Any:
            if Killing.random.random() < Killing.share:
                worker = Killing.random.choice(batch._engine._workers)
                os.kill(worker.process.pid, signal.SIGKILL)
                Killing.killed += 1
            return step(*arguments)

        batch.step = strike
        return batch


def play(model: Any, faults: list[tuple[int, str]], seed: int, workers: int) -> Any:
    """An evaluation in an environment with these faults."""
    gymnasium.registry.pop(ID, None)
    gymnasium.register(ID, Faulty, max_episode_steps=50, kwargs={"faults": faults})
    return evaluation.evaluate_model(
        *model,
        environment=ID,
        targets=TARGETS,
        episodes=EPISODES,
        seed=seed,
        num_envs=16,
        workers=workers,
        timeout=TIMEOUT,
        max_failed=0.5,
        progress=False,
    )


def compare(clean: Any, struck: Any, kinds: dict[int, str]) -> list[str]:
    """What is not as it should be."""
    wrong = []
    for whole, row in zip(clean["targets"], struck["targets"], strict=True):
        if row["failed_episodes"] != sorted(kinds):
            wrong.append(f"failed {row['failed_episodes']}, struck {sorted(kinds)}")
        elif not np.array_equal(row["returns"], np.delete(whole["returns"], sorted(kinds))):
            wrong.append("other episodes have other returns")
        elif row["return_mean"] != row["returns"].mean() or not np.isfinite(row["return_mean"]):
            wrong.append("the mean is not that of the others")
    for one in struck["failures"]:
        if FAULTS[kinds.get(one["episode"], "raises")] not in one["what"]:
            wrong.append(f"episode {one['episode']} was struck otherwise: {one['what']}")
    return wrong


def children() -> set[str]:
    """Ids of this process's children."""
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def main() -> int:
    """Repeats, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    suites.VectorSuite = Killing  # type: ignore[misc]
    warnings.simplefilter("ignore")
    random = np.random.default_rng(options.seed)
    Killing.random = np.random.default_rng([options.seed, 1])
    model, before = make_model(), children()
    struck: collections.Counter[str] = collections.Counter()
    failures = 0
    for repetition in range(options.repetitions):
        count = int(random.integers(1, 12))
        episodes = random.choice(EPISODES, count, replace=False).tolist()
        kinds = dict(zip(episodes, random.choice(list(FAULTS), count).tolist(), strict=True))
        seed, workers = int(random.integers(1 << 31)), int(random.integers(2, 5))
        Killing.share, Killing.killed = 0.0, 0
        clean = play(model, [], seed, workers)
        Killing.share = float(random.choice([0.0, 0.02]))
        faults = [(episode_seed(seed, episode), kind) for episode, kind in kinds.items()]
        wrong = compare(clean, play(model, faults, seed, workers), kinds)
        if children() != before:
            wrong.append(f"processes are left: {children() - before}")
        struck.update(
            {kind: list(kinds.values()).count(kind) * len(TARGETS) for kind in kinds.values()}
        )
        struck[OUTSIDE] += Killing.killed
        failures += bool(wrong)
        for what in wrong:
            print(f"repetition {repetition}, seed {options.seed}: {what}", flush=True)
    for kind, times in sorted(struck.items()):
        print(f"{times:6d}  {kind}")
    print(
        f"{sum(struck.values())} faults in {options.repetitions} evaluations of "
        f"{EPISODES * len(TARGETS)} episodes; {failures} evaluations were not as they should be"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
