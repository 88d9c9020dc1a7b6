"""Interquartile means and bootstrap intervals against rliable's, and against all resamples."""

import itertools

import numpy as np
import pytest

from dmamba.reporting.statistics import estimate, iqm, stratified_interval

SCORES = np.array(
    [
        [41.2, 63.0, 88.1],
        [55.7, 71.4, 90.3],
        [48.9, 20.5, 87.2],
        [60.3, 66.6, 91.9],
        [12.4, 69.8, 85.0],
    ]
)


# rliable 1.2.0 (arch 7.2.0, pandas 2.3.3), get_interval_estimates with 50,000 resamples:
# runs, tasks, IQM, its interval, mean, its interval. Two seeds of its differed by up to 0.6.
@pytest.mark.parametrize(
    "runs, tasks, middle, middle_interval, mean, mean_interval",
    [
        (5, 3, 67.54444444, (57.2, 70.956), 63.48666667, (55.23, 70.16)),
        (5, 1, 48.6, (22.0, 58.767), 43.7, (27.0, 56.18)),
        (3, 3, 65.24, (51.8, 71.42), 62.92222222, (53.0, 70.1)),
    ],
)
def test_as_rliable(runs, tasks, middle, middle_interval, mean, mean_interval):
    found = estimate(list(SCORES[:runs, :tasks].T), "seeds")
    assert found.iqm == pytest.approx(middle) and found.mean == pytest.approx(mean)
    assert found.iqm_interval == pytest.approx(middle_interval, abs=0.6)
    assert found.mean_interval == pytest.approx(mean_interval, abs=0.3)
    assert (found.stderr is None) == (tasks > 1)


def test_as_all_resamples():
    """Unequal strata: 2 and 3 values have 2^2 3^3 = 108 resamples, all as likely."""
    strata = [np.array([1.0, 5.0]), np.array([10.0, 20.0, 60.0])]
    every = [
        np.mean([*first, *second])
        for first in itertools.product(strata[0], repeat=2)
        for second in itertools.product(strata[1], repeat=3)
    ]
    assert len(every) == 108
    found = stratified_interval(strata, lambda drawn: drawn.mean(axis=-1), resamples=200_000)
    ordered = np.sort(every)
    assert found == pytest.approx((ordered[int(0.025 * 108)], ordered[int(0.975 * 108)]), abs=1e-9)
    # Tasks are not mixed: the pooled bootstrap would draw nothing but 1 five times.
    assert found[0] >= (1 + 1 + 30) / 5


def test_few_values():
    assert float(iqm(np.array([0.0, 1.0, 2.0, 100.0]))) == 1.5
    alone = estimate([np.array([3.0])], "seeds")
    assert (alone.mean, alone.iqm, alone.stderr) == (3.0, 3.0, None)
    assert alone.mean_interval is None and alone.iqm_interval is None
    same = estimate([np.array([2.0, 2.0])], "episodes")
    assert same.mean_interval == (2.0, 2.0) and same.stderr == 0.0
    ragged = estimate([np.array([1.0]), np.array([2.0, 4.0])], "seeds")
    assert ragged.mean_interval == (5 / 3, 3.0)
    first, second = (estimate([SCORES[:, 0]], "seeds") for _ in range(2))
    assert first.iqm_interval == second.iqm_interval
