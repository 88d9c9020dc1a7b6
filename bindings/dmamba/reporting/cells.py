"""Runs and sweeps as a notebook shows them: compact tables.

What is asked for its table must not raise, since a notebook then shows a traceback: what cannot be
read is said in the table's place.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dmamba import _C
from dmamba.common.files import read_json
from dmamba.display import describing, notebook
from dmamba.runs import Run
from dmamba.sweeps import sweep_report
from dmamba.training import summary


def run_html(run: Run) -> str:
    """How far a run is, and its last evaluation; of a run on several sets, that of each."""
    return _said(run, lambda: _run_html(run))


def sweep_html(folder: Path) -> str:
    """The table of a sweep."""

    def build() -> str:
        content = read_json(folder / "sweep.json")
        points = content["points"]
        heading = [f"{content['name']}: {len(points)} points, in {folder}"]
        failed = sweep_report.failure_lines(points)
        return notebook.table(
            [*heading, *failed], sweep_report.table_cells(points), sweep_report.NOTE
        )

    return _said(folder, build)


def _run_html(run: Run) -> str:
    config = run.config
    heading = [f"{config.name}, seed {config.seed}: {run.folder}"]
    if run.finished:
        heading.append(summary.describe_training(run.summary()))
    else:
        steps = run.metrics()["step"]
        at = int(steps[-1]) if steps.size else 0
        heading.append(f"not finished: step {at} of {config.training.steps}")
    parts = run.parts()
    if parts:
        tables = [_last_evaluation(part, [part.folder.name]) for part in parts]
        return notebook.table(heading, []) + "".join(tables)
    return _last_evaluation(run, heading)


def _last_evaluation(run: Run, heading: list[str]) -> str:
    evaluations = run.evaluations()
    if not evaluations:
        return notebook.table([*heading, "no evaluations"], [])
    described = describing.describe_result(evaluations[-1], run.dataset_mean())
    return notebook.table([*heading, *described.heading], described.rows, described.note)


def _said(whose: Any, build: Callable[[], str]) -> str:
    try:
        return build()
    except (_C.Error, OSError, KeyError) as error:
        return notebook.table([f"{whose}", f"{type(error).__name__}: {error}"], [])
