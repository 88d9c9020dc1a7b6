"""The tables of a report, cells as texts for HTML and Markdown alike; and the rows of its CSV."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dmamba import envs
from dmamba.common.scores import format_interval, format_number
from dmamba.reporting.collect import WHICH, Collection, Point, Record
from dmamba.reporting.statistics import Estimate, estimate, of_runs

BIASED = (
    "The evaluation of each run that did best at this target: a maximum over evaluations, so "
    "biased upwards. Published tables often report it; compare like with like."
)
FEW = "Percentile intervals of fewer than about five seeds are too narrow; read them as a range."


@dataclass(frozen=True)
class Table:
    """A table, or where there are no rows nothing.

    Attributes:
        title: Over it.
        columns: Their names.
        rows: Texts, as many a row as there are columns.
        note: Under it.
        folded: Whether a page shows it only when asked to.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""
    folded: bool = False


def format_value(value: Any) -> str:
    """A setting's value: lists in brackets, numbers short."""
    if isinstance(value, tuple):
        return "[" + ", ".join(map(format_value, value)) + "]"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def point_label(point: Point) -> str:
    """``context_length 5, d_model 64``."""
    return ", ".join(f"{key} {format_value(value)}" for key, value in point) or "all runs"


def point_values(point: Point) -> str:
    """``5, 64``: where the keys stand elsewhere."""
    return ", ".join(format_value(value) for _, value in point) or "all runs"


def unit_of(collection: Collection, task: str) -> str:
    """Name of a task's score."""
    return collection.of_task(task)[0].unit


def score_table(collection: Collection, task: str, which: str) -> Table:
    """A row per point and target: the score over its seeds, and the return."""
    unit, rows, bases = unit_of(collection, task), [], set()
    for point in collection.points:
        runs = collection.runs(task, point)
        for target in collection.targets(task):
            found = of_runs(runs, target, which)
            if found is None:
                continue
            bases.add(found.basis)
            evaluated = [run for run in runs if target in run.targets]
            cells = [format_value(value) for _, value in point]
            cells += [f"{target:g}", str(len(evaluated)), *_estimate_cells(found)]
            returns = [run.mean_return(target, which) for run in evaluated]
            rows.append([*cells, format_number(float(np.mean(returns)))])
    name = {"last": "Last evaluation", "best": "Best evaluation (biased upwards)"}[which]
    columns = [*collection.keys, "target", "seeds"]
    columns += [f"{unit}: mean ± error", "95 %", "IQM", "IQM 95 %", "return"]
    notes = [BIASED] if which == "best" else []
    notes += _failures(collection, task, which)
    if "seeds" in bases:
        notes.append(f"Error and intervals are over seeds. {FEW}")
    if "episodes" in bases:
        notes.append(
            "Where there is one seed they are over the episodes of its evaluation: they say "
            "nothing about another seed."
        )
    return Table(f"{name}: {task}", columns, rows, " ".join(notes))


def aggregates(collection: Collection, which: str) -> list[tuple[str, Point, int, Estimate, int]]:
    """Scores over several tasks: (unit, point, place of the target, estimate, tasks).

    Targets are returns of one task, so over tasks they are matched by place: the lowest of each,
    and so on. A point counts where every task of the unit has it; tasks without constants don't.
    """
    found = []
    scored = [t for t in collection.tasks if collection.of_task(t)[0].summary["constants"]]
    for unit in sorted({unit_of(collection, task) for task in scored}):
        tasks = [task for task in scored if unit_of(collection, task) == unit]
        places = min(len(collection.targets(task)) for task in tasks)
        if len(tasks) < 2 or any(len(collection.targets(task)) != places for task in tasks):
            continue
        for point in collection.points:
            for place in range(places):
                strata = []
                for task in tasks:
                    target = collection.targets(task)[place]
                    runs = [r for r in collection.runs(task, point) if target in r.targets]
                    strata.append([r.score(r.mean_return(target, which)) for r in runs])
                if all(strata):
                    value = estimate([np.array(one) for one in strata], "seeds")
                    found.append((unit, point, place, value, len(tasks)))
    return found


def aggregate_table(collection: Collection, which: str) -> Table:
    """A row per unit, point and place of the target."""
    rows = []
    for unit, point, place, found, tasks in aggregates(collection, which):
        cells = [unit, *(format_value(value) for _, value in point), f"no. {place + 1}"]
        mean = [format_number(found.mean), format_interval(found.mean_interval)]
        middle = [format_number(found.iqm), format_interval(found.iqm_interval)]
        rows.append([*cells, str(tasks), str(found.values.size), *mean, *middle])
    title = {"last": "last evaluation", "best": "best evaluation (biased upwards)"}[which]
    columns = ["score", *collection.keys, "target", "datasets", "runs"]
    columns += ["mean", "95 %", "IQM", "IQM 95 %"]
    note = (
        "Runs of all datasets together; the bootstrap draws each dataset's seeds from its own. "
        "Targets are matched by place, the lowest of each dataset first. " + FEW
    )
    return Table(f"Over all datasets: {title}", columns, rows, note)


def cost_table(collection: Collection) -> Table:
    """A row per task and point: means over seeds of times and memory."""
    rows = []
    for task in collection.tasks:
        for point in collection.points:
            runs = collection.runs(task, point)
            if not runs:
                continue
            times = [run.summary["times"] for run in runs]
            cells = [task, *(format_value(value) for _, value in point), str(len(runs))]
            cells.append(_whole(_mean([run.summary.get("parameters") for run in runs])))
            cells.append(format_number(_mean([run.step_ms for run in runs]), 2))
            for part in ("training", "evaluation", "waiting"):
                cells.append(format_number(_mean([time[f"{part}_seconds"] for time in times])))
            for kind in ("host_bytes", "gpu_bytes"):
                known = [run.memory[kind] for run in runs]
                largest = max((value for value in known if value is not None), default=None)
                cells.append("-" if largest is None else f"{largest / 2**20:.0f}")
            rows.append([*cells, ", ".join(sorted({run.summary["device"] for run in runs}))])
    columns = ["task", *collection.keys, "seeds", "parameters", "ms a step", "training s"]
    columns += ["evaluation s", "waiting s", "peak memory MiB", "peak GPU memory MiB", "device"]
    note = (
        "Means over seeds; memory is the largest of them. Runs of a sweep share the machine, so "
        "their times are longer than those of a run alone. Of a resumed run, times are of the "
        "process that ended it. Memory is the training process's, without evaluation's workers."
    )
    return Table("Time and memory", columns, rows, note)


def constants_table(collection: Collection) -> Table:
    """What each task's score rests on."""
    rows = []
    for task in collection.tasks:
        summary = collection.of_task(task)[0].summary
        constants, dataset = summary["constants"], summary["dataset"]
        mean = format_number(dataset["return_mean"])
        if constants is None:
            rows.append([task, "return", *["-"] * 3, "no reference constants: raw returns", mean])
            continue
        source = constants["source"] + (
            "; borrowed: this is not D4RL's own set" if constants["borrowed"] else ""
        )
        low, high = (f"{constants[key]:g}" for key in ("min", "max"))
        unit = envs.scale_of(summary["environment"]).equation
        rows.append([task, unit, constants["environment"], low, high, source, mean])
    columns = ["task", "score of a return R", "environment", "min or random", "max or human"]
    return Table("Scores", [*columns, "source", "dataset's mean return"], rows)


def unfinished_table(collection: Collection) -> Table:
    """Runs that are not in the other tables, and why."""
    rows = [list(pair) for pair in collection.unfinished]
    return Table("Not finished", ["run", "what is known"], rows, "They are in no other table.")


def origin_table(collection: Collection) -> Table:
    """Devices and versions, and how many runs had them."""
    counts: dict[tuple[str, ...], int] = {}
    names = sorted({name for run in collection.records for name in run.summary["versions"]})
    for run in collection.records:
        versions = [run.summary["versions"].get(name) or "-" for name in names]
        key = (run.summary["device"], run.summary.get("precision", "-"), *versions)
        counts[key] = counts.get(key, 0) + 1
    rows = [[str(count), *key] for key, count in sorted(counts.items())]
    return Table("Devices and versions", ["runs", "device", "precision", *names], rows)


def settings_table(collection: Collection) -> Table:
    """What all runs have in common."""
    rows = [[key, format_value(_tuple(value))] for key, value in collection.settings.items()]
    return Table("Settings of all runs", ["key", "value"], rows, folded=True)


def all_tables(collection: Collection) -> list[Table]:
    """All that have rows, in the order of a report."""
    tables = [unfinished_table(collection)]
    for which in WHICH:
        tables.append(aggregate_table(collection, which))
        tables += [score_table(collection, task, which) for task in collection.tasks]
    tables += [constants_table(collection), cost_table(collection)]
    tables += [origin_table(collection), settings_table(collection)]
    return [table for table in tables if table.rows]


def csv_rows(collection: Collection) -> list[dict[str, Any]]:
    """A flat dict per run, target and evaluation (last, best), all with the same keys.

    A run that was not evaluated has one row, without target. None where there is no value.
    """
    rows = []
    for record in collection.records:
        pairs: list[tuple[Any, Any]] = [(t, which) for t in record.targets for which in WHICH]
        rows += [_csv_row(record, *pair) for pair in pairs or [(None, None)]]
    return rows


def _csv_row(record: Record, target: float | None, which: str | None) -> dict[str, Any]:
    summary, times = record.summary, record.summary["times"]
    found = {} if target is None or which is None else record.result(target, which)
    low, high = found.get("return_interval") or (None, None)
    constants = summary["constants"] or {}
    score = found.get("score_mean")
    score_low, score_high = found.get("score_interval") or (None, None)
    return {
        "run": record.name,
        "task": record.task,
        "environment": summary["environment"],
        "dataset": summary["dataset"]["path"],
        **{f"setting:{key}": format_value(value) for key, value in record.point},
        "seed": record.seed,
        "target": target,
        "which": which,
        "step": found.get("step"),
        "episodes": found.get("episodes"),
        "failed": found.get("failed"),  # None in runs of versions that did not say
        "return_mean": found.get("return_mean"),
        "return_stderr": found.get("return_stderr"),
        "return_low": low,
        "return_high": high,
        "score_mean": score,
        "score_low": score_low,
        "score_high": score_high,
        "score_name": record.unit if constants else None,
        "constants_environment": constants.get("environment"),
        "constants_min": constants.get("min"),
        "constants_max": constants.get("max"),
        "dataset_return_mean": summary["dataset"]["return_mean"],
        "loss": summary["loss"],
        "steps": summary["steps"],
        "first_step": times["first_step"],
        "parameters": summary.get("parameters"),
        "ms_per_step": record.step_ms,
        **{key: times[key] for key in times if key.endswith("_seconds")},
        "peak_host_bytes": record.memory["host_bytes"],
        "peak_gpu_bytes": record.memory["gpu_bytes"],
        "device": summary["device"],
        "precision": summary.get("precision"),
        **{f"version:{name}": value for name, value in summary["versions"].items()},
    }


def _failures(collection: Collection, task: str, which: str) -> list[str]:
    """A sentence on the episodes whose environment failed, and which runs they are of."""
    counts = {}
    for record in collection.of_task(task):
        found = [record.result(target, which) for target in record.targets]
        if failed := sum(row.get("failed") or 0 for row in found):
            counts[record.name] = f"{failed} of {sum(row['episodes'] for row in found)}"
    if not counts:
        return []
    listed = ", ".join(f"{name} {count}" for name, count in list(counts.items())[:5])
    more = f", and {len(counts) - 5} more runs" if len(counts) > 5 else ""
    return [f"Episodes that failed, which the means leave out: {listed}{more}."]


def _estimate_cells(found: Estimate) -> list[str]:
    mean = format_number(found.mean)
    if found.stderr is not None:
        mean += f" ± {found.stderr:.1f}"
    intervals = format_interval(found.mean_interval), format_interval(found.iqm_interval)
    return [mean, intervals[0], format_number(found.iqm), intervals[1]]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _whole(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _tuple(value: Any) -> Any:
    return tuple(map(_tuple, value)) if isinstance(value, list) else value
