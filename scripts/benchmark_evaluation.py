#!/usr/bin/env python3
"""Times the environments of an evaluation: workers, gymnasium's SyncVectorEnv, envpool.

    python scripts/benchmark_evaluation.py [--environment Hopper-v4] [--slots 500] [--workers 1 16]

envpool (pip install 'dmamba[fast]') with as many threads as there are workers, if it is installed.
Prints environment steps per second, and what the hand-over costs: the time of a step in which every
worker has one slot to step, of an environment that does nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable

import gymnasium
import numpy as np

from dmamba.benchmarking import processor
from dmamba.envs import vector
from dmamba.envs.host import usable_cores

HANDOVERS = 1000


class Nothing(gymnasium.Env):
    """Has Hopper's sizes, and does nothing."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (11,), np.float64)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (3,), np.float32)
    state = np.zeros(11)

    def reset(self, *, seed=None, options=None):
        """Starts nothing."""
        return self.state, {}

    def step(self, action):
        """Does nothing."""
        return self.state, 0.0, False, False, {}


def seconds(run: Callable[[], object]) -> float:
    """Seconds that one call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def describe(name: str, times: list[float], slots: int) -> str:
    """Environment steps per second, with quartiles over rounds."""
    low, middle, high = (slots / q for q in reversed(statistics.quantiles(times, n=4)))
    return f"{name:<16} {middle:9.0f} ({low:.0f} to {high:.0f}) environment steps/s"


def time_gymnasium(environment: str, slots: int, actions: np.ndarray, rounds: int) -> str:
    """The peer: all environments in this process, by gymnasium's own class."""
    disabled = gymnasium.vector.AutoresetMode.DISABLED
    batch = gymnasium.vector.SyncVectorEnv(
        [lambda: vector.make(environment)] * slots, autoreset_mode=disabled
    )
    batch.reset(seed=0)
    times = [seconds(lambda: batch.step(actions)) for _ in range(rounds)]
    batch.close()
    return describe("SyncVectorEnv", times, slots)


def time_workers(environment: str, slots: int, workers: int, actions: np.ndarray, rounds: int):
    """The line of a number of workers."""
    start = time.perf_counter()
    with vector.Environments(environment, slots, workers=workers) as environments:
        everywhere = np.ones(slots, dtype=bool)
        environments.reset(everywhere, np.arange(slots))
        ready = time.perf_counter() - start
        times = [seconds(lambda: environments.step(actions, everywhere)) for _ in range(rounds)]
    line = describe(f"{workers} workers", times, slots)
    return f"{line}, start {ready:.1f} s, hand-over {time_handover(slots, workers):.0f} us"


def time_envpool(environment: str, slots: int, threads: int, actions: np.ndarray, rounds: int):
    """The line of envpool with a number of threads."""
    from dmamba.envs.pool import Environments

    start = time.perf_counter()
    with Environments(environment, slots, np.arange(slots), threads=threads) as environments:
        everywhere = np.ones(slots, dtype=bool)
        environments.reset(everywhere, np.arange(slots))
        ready = time.perf_counter() - start
        times = [seconds(lambda: environments.step(actions, everywhere)) for _ in range(rounds)]
    return f"{describe(f'envpool, {threads}', times, slots)}, start {ready:.1f} s"


def time_handover(slots: int, workers: int) -> float:
    """Microseconds of a step in which every worker has one slot to step, and nothing to do."""
    with vector.Environments("Nothing-v0", slots, workers=workers) as environments:
        environments.reset(np.ones(slots, dtype=bool), np.arange(slots))
        few = np.isin(np.arange(slots), np.linspace(0, slots, workers + 1).astype(int)[:-1])
        actions = np.zeros((slots, 3), dtype=np.float32)
        times = [seconds(lambda: environments.step(actions, few)) for _ in range(HANDOVERS)]
    return 1e6 * statistics.median(times)


def main() -> None:
    """Prints a line for gymnasium's class, and for each number of workers and of threads."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--environment", default="Hopper-v4")
    parser.add_argument("--slots", type=int, default=500)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, usable_cores()])
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    gymnasium.register("Nothing-v0", entry_point=Nothing, max_episode_steps=10**9)
    print(f"{processor()}, {usable_cores()} cores; {options.environment}, {options.slots} slots")
    act_dim = vector.dimensions(options.environment)[1]
    actions = np.zeros((options.slots, act_dim), dtype=np.float32)
    arguments = options.environment, options.slots
    print(time_gymnasium(*arguments, actions, options.rounds), flush=True)
    for workers in options.workers:
        print(time_workers(*arguments, workers, actions, options.rounds), flush=True)
    if importlib.util.find_spec("envpool"):
        for threads in options.workers:
            print(time_envpool(*arguments, threads, actions, options.rounds), flush=True)


if __name__ == "__main__":
    main()
