"""Times of calls that take turns, so that a machine whose speed drifts is fair to all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WARM_UP_CALLS = 3
SLOW_SECONDS = 0.5  # a call that takes longer is warm after one
TURN_SECONDS = 0.05  # quick calls are repeated so long before another's turn
MIN_ROUNDS, MAX_ROUNDS = 3, 200


@dataclass(frozen=True)
class Timed:
    """A call to be timed.

    Attributes:
        call: Does the work.
        units: How much of it: what a time is divided by.
    """

    call: Callable[[], object]
    units: int = 1


def take_turns(
    calls: Mapping[str, Timed], seconds: float, wait: Callable[[], object] | None = None
) -> dict[str, list[float]]:
    """Times calls in rounds in which each has its turn; every second round goes backwards.

    Args:
        calls: By name.
        seconds: How long the rounds last, together; at least three are done.
        wait: Waits until a GPU has done what it was told.

    Returns:
        Seconds a unit, by name: of each round the mean over its turn.
    """
    repeats = {name: _warm_up(timed, wait) for name, timed in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    order, rounds = list(calls), 0
    end = time.perf_counter() + seconds
    while rounds < MIN_ROUNDS or (rounds < MAX_ROUNDS and time.perf_counter() < end):
        for name in order:
            elapsed = _turn(calls[name], repeats[name], wait)
            times[name].append(elapsed / (repeats[name] * calls[name].units))
        order.reverse()
        rounds += 1
    return times


def _turn(timed: Timed, repeats: int, wait: Callable[[], object] | None) -> float:
    if wait is not None:
        wait()
    started = time.perf_counter()
    for _ in range(repeats):
        timed.call()
    if wait is not None:
        wait()
    return time.perf_counter() - started


def _warm_up(timed: Timed, wait: Callable[[], object] | None) -> int:
    """Calls until all is allocated and in the caches; returns how many calls fill a turn."""
    for _ in range(WARM_UP_CALLS):
        elapsed = _turn(timed, 1, wait)
        if elapsed > SLOW_SECONDS:
            break
    return max(1, round(TURN_SECONDS / max(elapsed, 1e-6)))


def spread(values: Sequence[float]) -> dict[str, Any]:
    """``median``, quartiles ``low`` and ``high``, and how many ``rounds``."""
    low, median, high = statistics.quantiles(values, n=4)
    return {"median": median, "low": low, "high": high, "rounds": len(values)}


def ratio(peer: Sequence[float], own: Sequence[float]) -> float:
    """How many times as long the peer takes: the median over the rounds."""
    return statistics.median(a / b for a, b in zip(peer, own, strict=True))
