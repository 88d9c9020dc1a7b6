"""Results as a notebook shows them: evaluations, runs, sweeps as compact tables.

What is asked for its table must not raise, since a notebook then shows a traceback: what cannot be
read is said in the table's place.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmamba import _C, notebook

if TYPE_CHECKING:
    from dmamba.run import Run


class Evaluation(dict[str, Any]):
    """What an evaluation found: a dict that notebooks and IPython show as a table.

    :func:`dmamba.evaluate` says which keys there are.
    """

    def _repr_html_(self) -> str:
        return evaluation_html(self)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        from dmamba import contexts

        printer.text(contexts.format_any(self))


def evaluation_html(result: dict[str, Any], dataset_mean: float | None = None) -> str:
    """The table of an evaluation, with one context length or with several.

    Args:
        result: What :func:`dmamba.evaluate` returns.
        dataset_mean: Mean raw return of the training set, for a row.
    """
    from dmamba import contexts, describing

    if "context_lengths" in result:
        title, rows = contexts.lengths_table(result)
        return notebook.table([title], rows)
    described = describing.describe_result(result, dataset_mean)
    heading = [*described.heading]
    if "chosen_from" in result:
        heading.append(contexts.format_choice(result))
    return notebook.table(heading, described.rows, described.note)


def run_html(run: Run) -> str:
    """How far a run is, and its last evaluation; of a run on several sets, that of each."""
    return _said(run, lambda: _run_html(run))


def sweep_html(folder: Path) -> str:
    """The table of a sweep."""
    from dmamba import sweep_report
    from dmamba.files import read_json

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
    from dmamba import summary

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
    from dmamba import describing

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
