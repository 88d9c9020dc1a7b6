"""The tables of a run folder, metrics.csv and evaluation.csv, as text."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from dmamba import _C, envs

METRICS = ("step", "training/loss", "training/grad_norm", "training/learning_rate")
_EVALUATION_COLUMNS = (  # and the score, its low and its high, under their names; failed, error
    "step",
    "policy",
    "target",
    "episodes",
    "return_mean",
    "return_std",
    "return_low",
    "return_high",
    "length_mean",
)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a metrics.csv; a last line without its end, cut off by a kill, does not count."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    lines = text[: text.rfind("\n") + 1].splitlines()
    if not lines:
        return []
    if tuple(lines[0].split(",")) != METRICS:
        raise _C.DataError(f"{path}: the header is {lines[0]!r}, expected {','.join(METRICS)!r}")
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        cells = line.split(",")
        try:
            if len(cells) != len(METRICS):
                raise ValueError(f"{len(cells)} cells")
            values = [int(cells[0]), *map(float, cells[1:])]
        except ValueError as error:
            raise _C.DataError(
                f"{path}:{number}: not a row of metrics: {line!r} ({error})"
            ) from None
        rows.append(dict(zip(METRICS, values, strict=True)))
    return rows


def metrics_cells(row: dict[str, Any]) -> list[str]:
    return [str(row["step"]), *(repr(float(row[name])) for name in METRICS[1:])]


def _evaluation_cells(result: dict[str, Any], target: dict[str, Any]) -> list[str]:
    low, high = target["return_interval"] or (None, None)
    score_low, score_high = target["score_interval"] or (None, None)
    cells = [
        result["checkpoint_step"],
        result["policy"],
        target["target"],
        target["episodes"],
        target["return_mean"],
        target["return_std"],
        low,
        high,
        target["length_mean"],
        target["score_mean"],
        score_low,
        score_high,
        target.get("failed", 0),
        None,
    ]
    return ["" if cell is None else str(cell) for cell in cells]


def evaluations_text(
    evaluations: list[dict[str, Any]], failed: list[dict[str, Any]], environment: str
) -> str:
    """The content of evaluation.csv.

    Args:
        evaluations: Of a run.
        failed: Its evaluations that have come to no result.
        environment: gymnasium id.
    """
    score = envs.scale_of(environment).key
    columns = (*_EVALUATION_COLUMNS, score, f"{score}_low", f"{score}_high", "failed", "error")
    rows = [_evaluation_cells(result, row) for result in evaluations for row in result["targets"]]
    for one in failed:
        rows.append([str(one["checkpoint_step"]), *[""] * (len(columns) - 2), one["error"]])
    rows.sort(key=lambda cells: int(cells[0]))
    return csv_text(columns, [columns, *rows])


def csv_text(columns: tuple[str, ...], rows: list[Any]) -> str:
    assert all(len(row) == len(columns) for row in rows)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
