"""Statistics of a handful of episodes or seeds: mean, spread, intervals of the mean."""

from __future__ import annotations

from typing import Any

import numpy as np

from dmamba.common import terminal

Interval = tuple[float, float]


def mean_interval(
    values: np.ndarray, confidence: float = 0.95, seed: int = 0, resamples: int = 9999
) -> Interval | None:
    """Bias-corrected and accelerated bootstrap interval of the mean (Efron, 1987).

    Args:
        values: (n,) independent observations.
        confidence: Coverage, between 0 and 1.
        seed: Of the resampling: the same values give the same interval.
        resamples: Bootstrap samples.

    Returns:
        (low, high); None for a single value, which says nothing about its spread.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.size < 2:
        return None
    if np.ptp(values) == 0.0:  # BCa divides by the spread
        return float(values[0]), float(values[0])
    from scipy.stats import bootstrap  # slow to import, and only evaluation needs it

    result = bootstrap(
        (values,),
        np.mean,
        n_resamples=resamples,
        batch=1000,
        vectorized=True,
        confidence_level=confidence,
        method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(result.low), float(result.high)


def standard_error(values: np.ndarray) -> float | None:
    """Of the mean of (n,) values; None for a single one."""
    values = np.asarray(values, dtype=np.float64)
    return None if values.size < 2 else float(values.std(ddof=1) / np.sqrt(values.size))


def describe(values: np.ndarray, confidence: float = 0.95, seed: int = 0) -> dict[str, Any]:
    """Mean, standard deviation, standard error and interval of (n,) values.

    The deviation is the sample's (n - 1); with one value it and the error are None.
    """
    values = np.asarray(values, dtype=np.float64)
    return {
        "mean": float(values.mean()),
        "std": float(values.std(ddof=1)) if values.size > 1 else None,
        "stderr": standard_error(values),
        "interval": mean_interval(values, confidence, seed),
    }


def student_interval(values: np.ndarray, confidence: float = 0.95) -> Interval | None:
    """Student's interval of the mean, for values too few to resample, such as those of seeds.

    Args:
        values: (n,) independent observations, about normal.
        confidence: Coverage, between 0 and 1.

    Returns:
        (low, high); None for a single value.
    """
    values = np.asarray(values, dtype=np.float64)
    mean, error = float(values.mean()), standard_error(values)
    if error is None:
        return None
    from scipy.stats import t  # slow to import

    half = float(t.ppf(0.5 + confidence / 2, values.size - 1)) * error
    return mean - half, mean + half


def not_below(mean: float, stderr: float, reference: float, reference_stderr: float) -> bool:
    """Whether a mean is no more than two combined standard errors below a reference."""
    return mean >= reference - 2.0 * float(np.hypot(stderr, reference_stderr))


def format_table(rows: list[list[str]], indent: str = "  ") -> str:
    """Aligns a header and rows of cells: the first column to the left, the others to the right.

    What is wider than the terminal becomes several tables one below the other, each with the first
    column.
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    room = [len(indent) + widths[0], *(2 + width for width in widths[1:])]
    tables = []
    for columns in terminal.column_groups(room, terminal.width()):
        lines = []
        for row in rows:
            cells = [row[0].ljust(widths[0]), *(row[i].rjust(widths[i]) for i in columns[1:])]
            lines.append((indent + "  ".join(cells)).rstrip())
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def format_interval(interval: Interval | None, digits: int = 1) -> str:
    """``[low, high]``, or a dash where there is none."""
    if interval is None:
        return "-"
    return f"[{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"


def format_markdown(rows: list[list[str]]) -> str:
    """A header and rows of cells as a Markdown table."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    return "\n".join(lines)


def format_number(value: float | str | None, digits: int = 1) -> str:
    """A number, or a name in its place; a dash where there is neither."""
    if value is None or isinstance(value, str):
        return value or "-"
    return f"{value:.{digits}f}"
