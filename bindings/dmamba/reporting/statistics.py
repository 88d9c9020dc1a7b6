"""Means and interquartile means of a few runs, with bootstrap intervals stratified by task.

The interquartile mean (IQM) is the mean of the middle half of all values: n values of m tasks are
pooled, a quarter is cut off at each end. The interval is the percentile bootstrap's, where every
resample draws each task's runs anew from that task's runs (R. Agarwal and others, "Deep
Reinforcement Learning at the Edge of the Statistical Precipice", NeurIPS 2021, sections 4.1, 4.3).

Not by the library of that paper, rliable 1.2.0: it needs the same number of runs of every task, so
a failed seed would cost the others theirs; it brings arch, statsmodels, pandas and seaborn, 200 MB
for the dozen lines below; and with pandas 3.1 it cannot be imported (arch 7.2.0 fails). The tests
compare with its numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dmamba.common.scores import Interval, standard_error
from dmamba.reporting.collect import Record

CONFIDENCE = 0.95
# A few values have few different means, and the ends of an interval jump from one to the next: of
# five runs 10,000 resamples sometimes found the neighbour of the exact end, 50,000 did not. Many
# values have no such jumps, and need more memory.
MAX_RESAMPLES, MIN_RESAMPLES, MAX_DRAWN = 50_000, 10_000, 2_500_000


@dataclass(frozen=True)
class Estimate:
    """What some runs say of a score or a return.

    Attributes:
        values: (n,) of the runs, or of the episodes of a single run.
        basis: ``seeds`` or ``episodes``: what the intervals and the error are over.
        mean: Of the values.
        stderr: Standard error of the mean; None of a single value, and over tasks.
        mean_interval: 95 %, percentile bootstrap; None of a single value.
        iqm: Interquartile mean of the values.
        iqm_interval: As ``mean_interval``.
    """

    values: np.ndarray
    basis: str
    mean: float
    stderr: float | None
    mean_interval: Interval | None
    iqm: float
    iqm_interval: Interval | None


def iqm(values: np.ndarray) -> np.ndarray:
    """Interquartile mean over the last axis: (..., n) to (...)."""
    from scipy.stats import trim_mean  # slow to import

    return trim_mean(values, 0.25, axis=-1)


def stratified_interval(
    strata: Sequence[np.ndarray],
    statistic: Callable[[np.ndarray], np.ndarray],
    seed: int = 0,
    resamples: int | None = None,
) -> Interval | None:
    """Percentile bootstrap interval of a statistic of all values, 95 %.

    Args:
        strata: Per task (n,) values of its runs; n may differ.
        statistic: From (resamples, n of all tasks) to (resamples,).
        seed: Of the resampling: the same values give the same interval.
        resamples: Bootstrap samples; None: 50,000 of up to 50 values, then fewer, at least 10,000.

    Returns:
        (low, high); None where no task has two values, so that nothing varies.
    """
    if all(len(values) < 2 for values in strata):
        return None
    if resamples is None:
        fitting = MAX_DRAWN // sum(map(len, strata))
        resamples = max(MIN_RESAMPLES, min(MAX_RESAMPLES, fitting))
    rng = np.random.default_rng(seed)
    drawn = [values[rng.integers(len(values), size=(resamples, len(values)))] for values in strata]
    found = statistic(np.concatenate(drawn, axis=1))
    tail = 50.0 * (1.0 - CONFIDENCE)
    low, high = np.percentile(found, [tail, 100.0 - tail])
    return float(low), float(high)


def estimate(strata: Sequence[np.ndarray], basis: str) -> Estimate:
    """Mean and interquartile mean of all values, with intervals.

    Args:
        strata: Per task (n,) values, n >= 1.
        basis: Of what they are: ``seeds`` or ``episodes``.
    """
    strata = [np.asarray(values, dtype=np.float64) for values in strata]
    values = np.concatenate(strata)
    return Estimate(
        values=values,
        basis=basis,
        mean=float(values.mean()),
        stderr=standard_error(values) if len(strata) == 1 else None,
        mean_interval=stratified_interval(strata, lambda drawn: drawn.mean(axis=-1)),
        iqm=float(iqm(values)),
        iqm_interval=stratified_interval(strata, iqm),
    )


def of_runs(
    runs: Sequence[Record], target: float, which: str, *, raw: bool = False
) -> Estimate | None:
    """The score of a point's runs at one target: over its seeds, or of one seed's episodes.

    Args:
        runs: Of one task and point.
        target: Target return.
        which: ``last`` or ``best`` evaluation.
        raw: The return in place of the score.

    Returns:
        None where no run was evaluated at that target.
    """
    runs = [run for run in runs if target in run.targets]
    if not runs:
        return None
    if len(runs) == 1:
        values, basis = runs[0].episodes(target, which), "episodes"
    else:
        values, basis = np.array([run.mean_return(target, which) for run in runs]), "seeds"
    return estimate([values if raw else runs[0].score(values)], basis)
