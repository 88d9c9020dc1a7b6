"""What came of a sweep: a row per grid point with the means over its seeds, as files and a plot."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from dmamba.common.files import write_json, write_text
from dmamba.common.scores import format_interval, format_markdown, format_number
from dmamba.display import plots
from dmamba.runs.seeds import read_finished, summarize
from dmamba.sweeps.grid import Grid, short_name, text_of

NOTE = (
    "Means over seeds of the normalised score (of the return where there is none) in the last "
    "evaluation, with Student's 95 % interval over seeds, or ± the standard error of the episodes "
    "where there is one seed. best: of the seeds' best evaluations for that target, a maximum and "
    "so biased upwards."
)


def collect(grid: Grid, folder: Path, failures: dict[Path, str]) -> list[dict[str, Any]]:
    """What :func:`dmamba.runs.seeds.summarize` says of each point's finished runs.

    Args:
        grid: The sweep's.
        folder: The sweep's.
        failures: By run folder, of this process's runs.

    Returns:
        A dict per point, with ``settings`` by short name, ``environment`` and ``failures`` by seed.
    """
    points = []
    for point in grid.points:
        runs = {seed: point.folder(folder, seed) for seed in grid.seeds}
        records = read_finished(runs)
        points.append(
            {
                "settings": {short_name(k, grid.base): v for k, v in point.settings.items()},
                "environment": point.configs[grid.seeds[0]].dataset.environment,
                "failures": {
                    seed: failures.get(run, "not finished")
                    for seed, run in runs.items()
                    if seed not in records
                },
                **summarize(point.label, records, grid.seeds),
            }
        )
    return points


def flat_rows(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A flat dict per point, all with the same keys; None where there is no value.

    Keys: the swept settings; ``seeds`` (how many have finished), ``failed_seeds``; for each target
    T and each of ``last`` and ``best`` evaluation ``last_return_T``, ``last_return_stderr_T``,
    ``last_score_T``, ``last_score_low_T`` and ``last_score_high_T`` (Student's 95 % interval over
    seeds); ``loss``, ``training_seconds``, ``evaluation_seconds``: means over seeds.
    """
    rows = []
    for point in points:
        row = {**point["settings"], "seeds": len(point["seeds"])}
        row["failed_seeds"] = " ".join(map(str, point["failures"]))
        for target in point["targets"]:
            for which in ("last", "best"):
                found, name = target[which], f"{target['target']:g}"
                low, high = found["score_interval"] or (None, None)
                row[f"{which}_return_{name}"] = found["return_mean"]
                row[f"{which}_return_stderr_{name}"] = found["return_stderr"]
                row[f"{which}_score_{name}"] = found["score_mean"]
                row[f"{which}_score_low_{name}"] = low
                row[f"{which}_score_high_{name}"] = high
        for key in ("loss", "training_seconds", "evaluation_seconds"):
            row[key] = point.get(key)
        rows.append(row)
    columns = dict.fromkeys(key for row in sorted(rows, key=len, reverse=True) for key in row)
    return [{key: row.get(key) for key in columns} for row in rows]


def table_cells(points: list[dict[str, Any]]) -> list[list[str]]:
    """The table for people, header first: a row per point, two columns per target."""
    targets = list(dict.fromkeys(t["target"] for point in points for t in point["targets"]))
    header = [*points[0]["settings"], "seeds"]
    header += [f"{which} {target:g}" for target in targets for which in ("last", "best")]
    rows = [[*header, "loss", "training s", "evaluation s"]]
    for point in points:
        found = {target["target"]: target for target in point["targets"]}
        cells = [*map(text_of, point["settings"].values()), str(len(point["seeds"]))]
        for target in targets:
            for which in ("last", "best"):
                one = found[target][which] if target in found else None
                cells.append(_mean_cell(one))
        cells.append(format_number(point.get("loss"), 4))
        cells += [
            format_number(point.get(f"{part}_seconds")) for part in ("training", "evaluation")
        ]
        rows.append(cells)
    return rows


def failure_lines(points: list[dict[str, Any]]) -> list[str]:
    """One line per run that has not finished."""
    return [
        f"{point['experiment']} seed {seed}: {failure}"
        for point in points
        for seed, failure in point["failures"].items()
    ]


def write(grid: Grid, folder: Path, points: list[dict[str, Any]]) -> Path | None:
    """Writes sweep.json, sweep.csv, sweep.md, and the plot where there is something to draw.

    Returns:
        The plot's path: of a sweep over one key with numbers for values, beside the seed.
    """
    content = {"name": grid.base.name, "seeds": grid.seeds, "dataset_mean": grid.dataset_mean}
    notes = [NOTE, *failure_lines(points)]
    write_tables(folder, content, points, flat_rows(points), table_cells(points), notes)
    key = plotted_key(points)
    if key is None:
        return None
    finished = [point for point in points if point["targets"]]
    path = folder / "plots" / f"score-against-{key}.png"
    return plots.plot_sweep(grid.base.name, key, finished, grid.dataset_mean, path)


def plotted_key(points: list[dict[str, Any]]) -> str | None:
    """The key that a sweep is drawn against: the only one beside the seed, with numbers for values.

    Args:
        points: As :func:`collect` gives them, or as they stand in sweep.json.

    Returns:
        Its short name; None where there is no such key, or no run that has finished.
    """
    keys = list(points[0]["settings"])
    if len(keys) != 1 or not any(point["targets"] for point in points):
        return None
    numbers = all(isinstance(point["settings"][keys[0]], (int, float)) for point in points)
    return keys[0] if numbers else None


def write_tables(
    folder: Path,
    content: dict[str, Any],
    points: list[dict[str, Any]],
    rows: list[dict[str, Any]],
    cells: list[list[str]],
    notes: list[str],
) -> None:
    """Writes sweep.json, sweep.csv and sweep.md.

    Args:
        folder: The sweep's.
        content: Of sweep.json, beside the points; with ``name``.
        points: As :func:`collect` gives them.
        rows: From :func:`flat_rows`.
        cells: From :func:`table_cells`.
        notes: Below the table: an explanation, then a line of a list each.
    """
    write_json(folder / "sweep.json", {**content, "points": points})
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / "sweep.csv", text.getvalue())
    parts = [f"# {content['name']}", format_markdown(cells), notes[0]]
    parts += [f"- {line}" for line in notes[1:]]
    write_text(folder / "sweep.md", "\n\n".join(parts) + "\n")


def _mean_cell(found: dict[str, Any] | None) -> str:
    if found is None:
        return "-"
    unit = "return" if found["score_mean"] is None else "score"
    text, stderr = format_number(found[f"{unit}_mean"]), found[f"{unit}_stderr"]
    if unit == "score" and found["score_interval"] is not None:
        return f"{text} {format_interval(found['score_interval'])}"
    return text if stderr is None else f"{text} ± {stderr:.1f}"
