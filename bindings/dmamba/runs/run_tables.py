"""The table evaluation.csv of a run folder, and tables as text."""

from __future__ import annotations

import csv
import io
from typing import Any

from dmamba import envs

_EVALUATION_COLUMNS = (  # then the score, its low, its high under their names, and three more
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
        result.get("engine", "workers"),  # results of older versions have neither
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
    columns = (
        *_EVALUATION_COLUMNS,
        *(score, f"{score}_low", f"{score}_high", "engine", "failed", "error"),
    )
    rows = [_evaluation_cells(result, row) for result in evaluations for row in result["targets"]]
    for one in failed:
        rows.append([str(one["checkpoint_step"]), *[""] * (len(columns) - 2), one["error"]])
    rows.sort(key=lambda cells: int(cells[0]))
    return csv_text(columns, [columns, *rows])


def csv_text(columns: tuple[str, ...], rows: list[Any]) -> str:
    """Rows of as many cells as there are columns, as CSV."""
    assert all(len(row) == len(columns) for row in rows)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
