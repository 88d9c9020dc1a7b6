"""Episodes that fail: what is known of them, how many are too many, how a result says so.

An episode fails where its environment raises, hangs, answers what it cannot mean (NaN, another
shape), or ends the process that steps it. It costs that episode alone: the others keep the returns
that they would have had, and the means are over those. A failure that comes with what the policy
did, such as a fall that crashes the simulator, still shifts a mean; so failures are told wherever
a mean is, and too many of them are an error.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dmamba import _C
from dmamba.envs.jobs import Job

_LONGEST = 2000  # characters of an environment's own words


@dataclass(frozen=True)
class Failure:
    """What became of one slot of a batch of environments.

    Attributes:
        what: To follow a subject: ``raised ValueError: ...``.
        again: The slot's episode is lost, but by no fault of its own: the process that stepped it
            died of something else. Played again from its start it is what it would have been.
        unexplained: Of those: the process died while it was in no environment.
    """

    what: str
    again: bool = False
    unexplained: bool = False


@dataclass(frozen=True)
class Guard:
    """How a batch of environments is looked after.

    Attributes:
        timeout: Seconds that one make, reset or step may take in a worker process, which is killed
            and replaced then; 0: no limit.
        check: Called now and then while workers are waited for; may raise to stop.
        isolated: Whether one worker is a process of its own, too, so that what ends it does not end
            this one.
    """

    timeout: float = 0.0
    check: Callable[[], None] = lambda: None
    isolated: bool = False


@dataclass(frozen=True)
class FailedEpisode:
    """A failed episode of an evaluation; ``what`` is a sentence about it."""

    target: float
    episode: int
    seed: int
    step: int
    what: str

    def __str__(self) -> str:
        return (
            f"{self.what}, at step {self.step} of episode {self.episode}, target {self.target:g}, "
            f"seed {self.seed}"
        )


class Tally:
    """Counts the failed episodes of an evaluation.

    Args:
        environment: gymnasium id.
        targets: Raw returns.
        episodes: Per target.
        max_failed: The share of a target's episodes that may fail.

    Attributes:
        failed: In the order in which they failed.
    """

    def __init__(
        self, environment: str, targets: Sequence[float], episodes: int, max_failed: float
    ) -> None:
        self.failed: list[FailedEpisode] = []
        self._environment, self._episodes, self._max_failed = environment, episodes, max_failed
        self._counts = [0] * len(targets)

    def add(self, job: Job, what: str, step: int) -> None:
        """Notes a failed episode.

        Raises:
            Error: Too many of its target have failed.
        """
        self.failed.append(FailedEpisode(job.target, job.episode, job.seed, step, what[:_LONGEST]))
        self._counts[job.target_index] += 1
        count = self._counts[job.target_index]
        allowed = min(math.floor(self._max_failed * self._episodes + 1e-9), self._episodes - 1)
        if count > allowed:
            first = next(failed for failed in self.failed if failed.target == job.target)
            raise _C.Error(
                f"evaluation in {self._environment}: {count} of {self._episodes} episodes for "
                f"target {job.target:g} failed, of which at most {allowed} may "
                f"(evaluation.max_failed {self._max_failed:g}); the first: {first}"
            )

    def of_target(self, target: float) -> list[int]:
        """Numbers of a target's failed episodes, ascending."""
        return sorted(failed.episode for failed in self.failed if failed.target == target)

    def warn(self) -> None:
        """Warns of what has failed, if anything has."""
        line = describe({"failures": self.describe(), "targets": self._counts}, self._episodes)
        if line:
            warnings.warn(f"evaluation in {self._environment}: {line}", stacklevel=3)

    def describe(self) -> list[dict[str, Any]]:
        """For a result: by target and number."""
        ordered = sorted(self.failed, key=lambda failed: (failed.target, failed.episode))
        return [{**asdict(failed), "text": str(failed)} for failed in ordered]


def describe(result: dict[str, Any], episodes: int) -> str:
    """A line on an evaluation's failed episodes; empty where there are none.

    Args:
        result: Of an evaluation.
        episodes: Per target.
    """
    failures = result.get("failures")
    if not failures:  # or of a version that had none
        return ""
    return (
        f"{len(failures)} of {episodes * len(result['targets'])} episodes failed, the means are of "
        f"the others; the first: {failures[0]['text']}"
    )


def format_count(row: dict[str, Any]) -> str:
    """``3 of 100`` for a row of a result, empty where no episode of its target failed."""
    return f"{row['failed']} of {row['episodes']}" if row.get("failed") else ""


def finite_slots(states: np.ndarray, rewards: np.ndarray | None = None) -> np.ndarray:
    """(num_envs,) bool: where an answer has neither NaN nor infinity, as float32 has it.

    Args:
        states: (num_envs, ...), of any kind; pictures are whole numbers.
        rewards: (num_envs,).
    """
    good: np.ndarray = np.ones(len(states), dtype=bool)
    if np.issubdtype(states.dtype, np.floating):
        with np.errstate(over="ignore"):
            good &= (
                np.isfinite(states.astype(np.float32, copy=False))
                .reshape(len(states), -1)
                .all(axis=1)
            )
    return good if rewards is None else good & np.isfinite(rewards)
