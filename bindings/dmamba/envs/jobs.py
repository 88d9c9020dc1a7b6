"""The episodes that are to be played, each with its target and its seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Job:
    """One episode to play: which target, which number, its seed."""

    target_index: int
    target: float
    episode: int
    seed: int

    def __str__(self) -> str:
        return f"episode {self.episode}, target {self.target:g}, seed {self.seed}"


def episode_seed(seed: int, episode: int) -> int:
    """The environment's seed for one episode, 31 bits."""
    state = np.random.SeedSequence([seed, episode]).generate_state(1)
    return int(state[0] >> 1)


def make_jobs(
    targets: Sequence[float], episodes: int, seed: int, first_episode: int = 0
) -> list[Job]:
    """All episodes of an evaluation, the targets taking turns.

    Args:
        targets: Raw returns to ask for.
        episodes: Per target; they are numbered from 0.
        seed: Of the environments.
        first_episode: Number that the seed of episode 0 is made from: evaluations of disjoint
            ranges see different episodes.
    """
    seeds = [episode_seed(seed, first_episode + episode) for episode in range(episodes)]
    return [
        Job(index, float(target), episode, seeds[episode])
        for episode in range(episodes)
        for index, target in enumerate(targets)
    ]
