"""Reads a folder of runs: which there are, in what they differ, what each scored.

A task is an environment with a dataset. A point is what the settings of a group of runs have in
common; the settings that tell points apart are those that differ between runs of one task, so a
recipe that follows from the dataset does not count. The runs of a point and task are its seeds.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dmamba import _C, envs
from dmamba.common.files import read_json
from dmamba.configuration import UNSHAPING, flatten
from dmamba.data.pretraining import FOLDER as SETS
from dmamba.runs import Run
from dmamba.sweeps.grid import folder_name, short_name

MAX_DEPTH = 4  # a folder of sweeps of runs, and one to spare
WHICH = ("last", "best")
_TASK_KEYS = ("dataset.path", "dataset.environment")
_MANY_KEYS = 3  # more of them than this are replaced by the runs' names, where these say as much
_NEEDED = ("seed", "steps", "device", "environment", "dataset", "constants", "times", "versions")

Point = tuple[tuple[str, Any], ...]  # (short name, value) of the settings that differ


@dataclass(frozen=True)
class Record:
    """A finished run.

    Attributes:
        name: Its folder, from the one that is reported on.
        task: Environment and dataset, for people.
        point: See the module's text.
        flat: Its configuration by dotted key.
        summary: summary.json.
        metrics: metrics.csv by column.
        evaluations: In order of step.
    """

    name: str
    task: str
    point: Point
    flat: dict[str, Any]
    summary: dict[str, Any]
    metrics: dict[str, np.ndarray]
    evaluations: list[dict[str, Any]]

    @property
    def seed(self) -> int:
        """Of the training."""
        return int(self.summary["seed"])

    @property
    def step_ms(self) -> float | None:
        """Milliseconds a training step, of the process that ended the run."""
        times = self.summary["times"]
        steps = self.summary["steps"] - times["first_step"]
        return 1e3 * times["training_seconds"] / steps if steps else None

    @property
    def memory(self) -> dict[str, int | None]:
        """``host_bytes`` and ``gpu_bytes``; None in runs of versions that didn't record it."""
        return self.summary.get("memory") or {"host_bytes": None, "gpu_bytes": None}

    @property
    def targets(self) -> list[float]:
        """Of the last evaluation, ascending."""
        last = self.summary["last"]
        return sorted(row["target"] for row in last["targets"]) if last else []

    def result(self, target: float, which: str) -> dict[str, Any]:
        """What the last or the best evaluation found for one of the targets, and its step."""
        part = self.summary[which]
        row = next(row for row in part["targets"] if row["target"] == target)
        return {"step": part.get("step"), **row}

    def mean_return(self, target: float, which: str) -> float:
        """Mean raw return of that evaluation's episodes."""
        return float(self.result(target, which)["return_mean"])

    def episodes(self, target: float, which: str) -> np.ndarray:
        """(episodes,) raw returns of that evaluation."""
        found = self.result(target, which)
        for evaluation in self.evaluations:
            if evaluation["checkpoint_step"] == found["step"]:
                for row in evaluation["targets"]:
                    if row["target"] == target:
                        return np.array(row["returns"], dtype=np.float64)
        return np.array([found["return_mean"]])

    def score(self, returns: Any) -> Any:
        """The normalised score of raw returns; of a task without constants the returns."""
        constants = self.summary["constants"]
        if constants is None:
            return returns
        return 100.0 * (returns - constants["min"]) / (constants["max"] - constants["min"])

    @property
    def unit(self) -> str:
        """What :meth:`score` gives, for people."""
        if self.summary["constants"] is None:
            return "return"
        return envs.scale_of(self.summary["environment"]).label


@dataclass(frozen=True)
class Collection:
    """All runs of a folder.

    Attributes:
        folder: As given.
        records: Of the finished runs, by name.
        unfinished: (run, what is known of it) of the others.
        settings: Values all finished runs have in common, by dotted key, without the seed.
    """

    folder: Path
    records: list[Record]
    unfinished: list[tuple[str, str]]
    settings: dict[str, Any]

    @cached_property
    def tasks(self) -> list[str]:
        """In order of name."""
        return sorted({record.task for record in self.records})

    @cached_property
    def points(self) -> list[Point]:
        """In order of their values."""
        found = {record.point: None for record in self.records}
        return sorted(found, key=lambda point: [_order(value) for _, value in point])

    @property
    def keys(self) -> list[str]:
        """Short names of the settings that tell points apart."""
        return [key for key, _ in self.points[0]]

    def runs(self, task: str, point: Point) -> list[Record]:
        """The seeds of a point."""
        found = [r for r in self.records if (r.task, r.point) == (task, point)]
        return sorted(found, key=lambda record: (record.seed, record.name))

    def of_task(self, task: str) -> list[Record]:
        """All runs of a task."""
        return [record for record in self.records if record.task == task]

    def targets(self, task: str) -> list[float]:
        """Of any run of a task, ascending."""
        return sorted({target for record in self.of_task(task) for target in record.targets})


def collect(folder: Path) -> Collection:
    """Reads all runs in a folder and in folders below it.

    Args:
        folder: Of a run, of a sweep, of runs, or of sweeps.

    Raises:
        DataError: No such folder, no finished run, or a damaged file; the message says what to do.
    """
    if not folder.is_dir():
        raise _C.DataError(f"{folder}: no such folder; give that of a sweep or of a run")
    runs, sweeps = _find(folder)
    finished = [run for run in runs if run.finished]
    unfinished = {_name(run.folder, folder): _progress(run) for run in runs if run not in finished}
    done = {run.folder for run in finished}
    for sweep in sweeps:
        for path, failure in _failures(sweep):
            if path not in done:
                unfinished[_name(path, folder)] = failure
    if not finished:
        raise _C.DataError(
            f"{folder}: no finished run in it ({len(unfinished)} unfinished); a finished one has a "
            "summary.json. Give the folder of a sweep or of runs, or continue them with "
            "dmamba sweep or dmamba train --resume RUN"
        )
    configs = [run.config for run in finished]
    summaries = [_summary(run) for run in finished]
    flats = [flatten(config.to_dict()) for config in configs]
    tasks = _task_names(flats, summaries)
    keys = _differing(flats, tasks)
    shorts = {key: short_name(key, configs[0]) for key in keys}
    records = [
        Record(
            name=_name(run.folder, folder),
            task=task,
            point=tuple((shorts[key], _frozen(flat[key])) for key in keys),
            flat=flat,
            summary=summary,
            metrics=run.metrics(),
            evaluations=run.evaluations(),
        )
        for run, task, flat, summary in zip(finished, tasks, flats, summaries, strict=True)
    ]
    common = {k: v for k, v in flats[0].items() if all(f[k] == v for f in flats) and k != "seed"}
    return Collection(folder, records, sorted(unfinished.items()), common)


def _find(folder: Path) -> tuple[list[Run], list[Path]]:
    """Run folders and sweep.json files, in order of name; runs are not searched for others.

    A run on several sets stands for its parts, which are run folders themselves.
    """
    runs, sweeps = [], []
    for path in _walk(folder, 0):
        if (path / "config.yaml").is_file() and not (path / SETS).is_dir():
            runs.append(Run(path))
        if (path / "sweep.json").is_file():
            sweeps.append(path / "sweep.json")
    return runs, sweeps


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    yield folder
    if (folder / "config.yaml").is_file():
        yield from sorted((folder / SETS).glob("*/"))
        return
    if depth == MAX_DEPTH:
        return
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
            yield from _walk(Path(entry.path), depth + 1)


def _failures(sweep: Path) -> Iterator[tuple[Path, str]]:
    content = read_json(sweep)
    for point in content.get("points", []):
        for seed, failure in point["failures"].items():
            yield sweep.parent / folder_name(point["experiment"], seed), failure


def _progress(run: Run) -> str:
    latest = run.latest_checkpoint()
    return f"not finished, at step {latest[0]}" if latest else "not finished, no checkpoint"


def _summary(run: Run) -> dict[str, Any]:
    summary = run.summary()
    missing = [key for key in _NEEDED if key not in summary]
    if missing:
        raise _C.DataError(
            f"{run.folder / 'summary.json'}: has no {', '.join(missing)}: damaged, or written by "
            f"another version. Remove the file and continue with dmamba train --resume {run.folder}"
        )
    return summary


def _name(run: Path, folder: Path) -> str:
    return folder.resolve().name if run == folder else str(run.relative_to(folder))


def _task_names(flats: list[dict[str, Any]], summaries: list[dict[str, Any]]) -> list[str]:
    """``Hopper-v4, hopper-medium``; with the whole path where two datasets share a name."""
    pairs = [
        (summary["environment"] or "no environment", flat["dataset.path"])
        for flat, summary in zip(flats, summaries, strict=True)
    ]
    stems = {path: Path(path).name.removesuffix(".hdf5") for _, path in pairs}
    shared = len(set(stems.values())) < len(stems)
    return [f"{environment}, {path if shared else stems[path]}" for environment, path in pairs]


def _differing(flats: list[dict[str, Any]], tasks: list[str]) -> list[str]:
    """Keys whose values differ between runs of one task."""
    left = ("seed", *_TASK_KEYS)
    keys = [
        key
        for key in flats[0]
        if key not in left
        and not key.startswith(UNSHAPING)
        and any(
            len({_frozen(f[key]) for f, t in zip(flats, tasks, strict=True) if t == task}) > 1
            for task in set(tasks)
        )
    ]
    others = [key for key in keys if key != "name"]
    if "name" not in keys or not others:
        return keys
    points = {tuple(_frozen(flat[key]) for key in others) for flat in flats}
    named = {(flat["name"], *(_frozen(flat[key]) for key in others)) for flat in flats}
    names = {flat["name"] for flat in flats}
    return (
        ["name"]
        if len(others) > _MANY_KEYS and len(names) == len(named)
        else (keys if len(named) > len(points) else others)
    )


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _order(value: Any) -> tuple[int, Any]:
    """Numbers by size, then everything else by its text."""
    number = isinstance(value, (int, float))
    return (0, float(value)) if number else (1, str(value))
