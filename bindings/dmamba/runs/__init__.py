"""A run folder: everything one training leaves behind, and the only code that writes there.

    config.yaml              the resolved configuration
    metrics.csv              a row per log interval; no wall times, so a resumed run has equal bytes
    evaluation.csv           one row per evaluation and target, from evaluations/step-00003000.json
    evaluations/failed-step-00003000.json    why there is none of that step
    checkpoints/step-00003000/   model, optimizer, state.json (without it, not complete)
    transfer.json            of a run with transfer.init_from: which parameters were taken
    contexts.csv             of a run that chooses K: a row per decision and length it was told of
    snapshots/step-00003000/     a checkpoint whose evaluation is still to come; without optimizer
    events.out.tfevents.*    TensorBoard
    plots/, summary.json     at the end
    sets/NAME/               of a run on several sets: the evaluations and the summary of each
    .lock                    held by the process that trains here

Files are replaced, never rewritten in place; metrics.csv grows by whole lines.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dmamba import _C, envs
from dmamba.common import locks
from dmamba.common.files import read_json, remove_abandoned, replacing, write_json, write_text
from dmamba.display.describing import Evaluation
from dmamba.nn import pretrained
from dmamba.runs.metrics import COUNTS, METRICS, read_rows, row_cells
from dmamba.runs.run_tables import csv_text, evaluations_text

if TYPE_CHECKING:
    from dmamba.display.pictures import Picture

_CHECKPOINT = re.compile(r"step-(\d{8,})")
_UNFINISHED = re.compile(r"\.step-\d+\.(tmp|old)")  # of a checkpoint that was being written
_EVALUATION = re.compile(r"step-(\d{8,})\.json")
_FAILED_EVALUATION = re.compile(r"failed-step-(\d{8,})\.json")


class Run:
    """A run folder, to read from; the training alone writes to it.

    Args:
        folder: The run's folder. Nothing is read until it is asked for.

    Example:
        >>> run = dmamba.train("hopper-sample")
        >>> run.folder, run.latest_checkpoint(), run.metrics()["training/loss"][-1]
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    def _repr_html_(self) -> str:
        from dmamba.reporting import cells  # which reads runs

        return cells.run_html(self)

    def plot(self) -> Picture:
        """Draws loss, and return against target: a matplotlib figure, which a notebook shows."""
        from dmamba.display import plots  # which draws runs

        return plots.draw_run(self, None if self.parts() else self.dataset_mean())

    @property
    def config(self) -> _C.Config:
        """The resolved configuration."""
        path = self.folder / "config.yaml"
        if not path.is_file():
            raise _C.CheckpointError(f"{self.folder}: not a run folder, it has no config.yaml")
        return _C.Config.load(str(path))

    @property
    def finished(self) -> bool:
        """Whether training and evaluation have come to their end."""
        return (self.folder / "summary.json").is_file()

    @property
    def complete(self) -> bool:
        """Whether it has finished, and the evaluation of its last step, if any, has a result."""
        if not self.finished:
            return False
        summary = self.summary()
        return not (summary.get("failed_evaluations") and summary["last"] is None)

    @property
    def plot_path(self) -> Path:
        """Where the training's plot is, once it has ended."""
        return self.folder / "plots" / "training.png"

    def checkpoints(self) -> list[tuple[int, Path]]:
        """Complete checkpoints as (step, folder), oldest first."""
        return _complete_steps(self.folder / "checkpoints")

    def snapshots(self) -> list[tuple[int, Path]]:
        """Checkpoints that wait for their evaluation as (step, folder), oldest first."""
        return _complete_steps(self.folder / "snapshots")

    def latest_checkpoint(self) -> tuple[int, Path] | None:
        """The complete checkpoint with the highest step."""
        found = self.checkpoints()
        return found[-1] if found else None

    def metrics(self) -> dict[str, np.ndarray]:
        """metrics.csv by column: ``step`` and ``training/skipped`` (int64), the others float64.

        Loss and norm are NaN where all steps of a row were skipped.
        """
        rows = read_rows(self.folder / "metrics.csv")
        return {
            name: np.array([row[name] for row in rows], np.int64 if name in COUNTS else float)
            for name in METRICS
        }

    def parts(self) -> list[Run]:
        """Of a run on several sets, what belongs to each; else empty."""
        root = self.folder / "sets"
        return [Run(path) for path in sorted(root.iterdir())] if root.is_dir() else []

    def evaluations(self) -> list[dict[str, Any]]:
        """The evaluations made during the training, in order of step.

        Each is what :func:`dmamba.evaluate` returns, with lists in place of arrays and tuples.
        """
        return [Evaluation(found) for found in self._read_evaluations(_EVALUATION)]

    def failed_evaluations(self) -> list[dict[str, Any]]:
        """Evaluations that have come to no result, in order of step.

        Each is a dict with ``checkpoint_step``, ``environment`` and ``error``.
        """
        return self._read_evaluations(_FAILED_EVALUATION)

    def _read_evaluations(self, names: re.Pattern[str]) -> list[dict[str, Any]]:
        root = self.folder / "evaluations"
        found = []
        for path in root.iterdir() if root.is_dir() else ():
            match = names.fullmatch(path.name)
            if match:
                found.append((int(match[1]), read_json(path)))
        return [result for _, result in sorted(found, key=lambda item: item[0])]

    def summary(self) -> dict[str, Any]:
        """summary.json; written when a training ends."""
        path = self.folder / "summary.json"
        if not path.is_file():
            raise _C.CheckpointError(f"{self.folder}: no summary.json, the training has not ended")
        return read_json(path)

    def dataset_mean(self) -> float | None:
        """Mean raw return of the training set, from summary.json; None while there is none."""
        if not self.finished:
            return None
        return float(self.summary()["dataset"]["return_mean"])


def evaluation_scalars(environment: str, row: dict[str, Any]) -> dict[str, float]:
    """What a dashboard shows of one target of an evaluation, by name."""
    key = f"evaluation/target_{row['target']:g}"
    scalars = {
        f"{key}_return_mean": row["return_mean"],
        f"{key}_length_mean": row["length_mean"],
    }
    if row.get("failed"):
        scalars[f"{key}_failed"] = row["failed"]
    if row["score_mean"] is not None:
        scalars[f"{key}_{envs.scale_of(environment).key}"] = row["score_mean"]
    return scalars


def _complete_steps(root: Path) -> list[tuple[int, Path]]:
    if not root.is_dir():
        return []
    before: set[Path] | None = None
    while True:
        there = {path for path in root.iterdir() if _CHECKPOINT.fullmatch(path.name)}
        found = [path for path in there if (path / "state.json").is_file()]
        # A training may have put a newer one in the place of what was listed: look again.
        if found or there == before:
            return sorted((int(path.name.removeprefix("step-")), path) for path in found)
        before = there


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint's folder is named after."""
    return int(checkpoint.name.removeprefix("step-"))


def locate_checkpoint(folder: Path) -> tuple[Path | None, Path]:
    """(run folder, checkpoint folder) of a run's folder or of one checkpoint.

    The run folder is None for a checkpoint that lies outside a run, as a pretrained folder does.

    Raises:
        CheckpointError: Neither of the two, or a run without a complete checkpoint.
    """
    pretrained.check_folder(folder)
    if pretrained.is_folder(folder):
        return None, folder
    if (folder / "state.json").is_file():
        run_folder = folder.absolute().parent.parent
        return (run_folder if (run_folder / "config.yaml").is_file() else None), folder
    if not (folder / "config.yaml").is_file():
        raise _C.CheckpointError(
            f"{folder}: neither a run folder (no config.yaml) nor a checkpoint (no state.json) nor "
            "a pretrained model (no config.json)"
        )
    latest = Run(folder).latest_checkpoint()
    if latest is None:
        raise _C.CheckpointError(
            f"{folder}: no complete checkpoint in {folder / 'checkpoints'}; "
            "train it first, or continue it with --resume"
        )
    return folder, latest[1]


class RunWriter:
    """The one process that may write to a run folder; a context manager that holds its lock."""

    def __init__(self, folder: Path, *, resume: bool) -> None:
        """Takes the folder.

        Raises:
            Error: A new run in a folder that is not empty, or another process trains here.
            CheckpointError: Nothing to resume.
        """
        self.run = Run(folder)
        self.folder = folder
        self._events: Any = None
        self._parts: list[RunWriter] = []
        if resume and not (folder / "config.yaml").is_file():
            raise _C.CheckpointError(f"{folder}: nothing to resume, it has no config.yaml")
        with self._writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(folder)
        try:
            remove_abandoned(folder, of_all=True)
            if not resume:
                self._refuse_used_folder()
        except BaseException:
            os.close(self._lock)
            raise

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        for part in self._parts:
            part.__exit__(*exception)
        try:
            if self._events is not None:
                with self._writing(self.folder):
                    self._events.close()
        except _C.Error:
            if exception[0] is None:  # else it is the same disk's, in all likelihood
                raise
        finally:
            os.close(self._lock)  # closing releases the lock

    @contextlib.contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        """Says of what cannot be written within how to go on.

        Args:
            path: What is written, or its folder.

        Raises:
            Error: In place of what the operating system has raised.
        """
        try:
            yield
        except OSError as error:
            named = error.__cause__ if isinstance(error.__cause__, OSError) else error
            reason = f"{error.filename or path}: {named.strerror or named}"
            raise _C.Error(f"{reason}; {self._way_on()}") from error

    def _way_on(self) -> str:
        latest = self.run.latest_checkpoint()
        again = f"continue from step {latest[0] if latest else 0} with --resume {self.folder}"
        begun = (self.folder / "config.yaml").is_file()
        return f"make room or mend what is wrong, then {again if begun else 'start it again'}"

    def start(self, config: _C.Config, step: int) -> None:
        """Writes the configuration, forgets what lies past ``step``, and opens the logs.

        Args:
            config: Resolved.
            step: Steps done: 0, or the step of the checkpoint that the run continues from.
        """
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        with self._writing(self.folder):
            write_text(self.folder / "config.yaml", config.to_yaml())
            for name in ("checkpoints", "evaluations", "plots"):
                (self.folder / name).mkdir(exist_ok=True)
                remove_abandoned(self.folder / name, of_all=True)
            self._forget(config, step)
            self._write_evaluation_csv()
            self._events = SummaryWriter(str(self.folder), purge_step=step + 1 if step else None)

    def _forget(self, config: _C.Config, step: int) -> None:
        """Removes what lies past a step, and what was half written or half removed."""
        kept = [row for row in read_rows(self.folder / "metrics.csv") if row["step"] <= step]
        write_text(self.folder / "metrics.csv", csv_text(METRICS, [METRICS, *map(row_cells, kept)]))
        for path in self._paths("evaluations"):
            match = _EVALUATION.fullmatch(path.name) or _FAILED_EVALUATION.fullmatch(path.name)
            if match and int(match[1]) > step:
                path.unlink()
        evaluated = {result["checkpoint_step"] for result in self.run.evaluations()}
        for snapshot_step, path in self.run.snapshots():
            if snapshot_step > step or snapshot_step in evaluated:
                shutil.rmtree(path)
        for path in [*self._paths("checkpoints"), *self._paths("snapshots")]:
            incomplete = _CHECKPOINT.fullmatch(path.name) and not (path / "state.json").is_file()
            if incomplete or _UNFINISHED.fullmatch(path.name):
                shutil.rmtree(path)
        self._keep_latest(config.training.keep_checkpoints)

    def _paths(self, name: str) -> list[Path]:
        folder = self.folder / name
        return list(folder.iterdir()) if folder.is_dir() else []

    def _keep_latest(self, keep: int) -> None:
        for _, old in self.run.checkpoints()[:-keep]:
            (old / "state.json").unlink()  # first, so that half a checkpoint never looks complete
            shutil.rmtree(old)

    def part(self, name: str, config: _C.Config, step: int) -> RunWriter:
        """The writer of one set's results; this one itself where there is only one.

        Args:
            name: Of the set, or empty.
            config: Of the set alone, resolved.
            step: As for :meth:`start`.
        """
        if not name:
            return self
        folder = self.folder / "sets" / name
        writer = RunWriter(folder, resume=(folder / "config.yaml").is_file())
        self._parts.append(writer)
        writer.start(config, step)
        return writer

    def add_row(self, row: dict[str, Any], steps_per_s: float) -> None:
        """Appends a row to metrics.csv, and to TensorBoard together with the speed."""
        path = self.folder / "metrics.csv"
        with self._writing(path), open(path, "a", encoding="utf-8", newline="") as file:
            file.write(csv_text(METRICS, [row_cells(row)]))
        with self._writing(self.folder / "events.out.tfevents"):
            for name in METRICS[1:]:
                self._events.add_scalar(name, row[name], row["step"])
            self._events.add_scalar("time/steps_per_s", steps_per_s, row["step"])

    def add_evaluation(self, result: dict[str, Any]) -> None:
        """Keeps an evaluation: JSON in full, a CSV row per target, TensorBoard."""
        step = result["checkpoint_step"]
        with self._writing(self.folder):
            write_json(self.folder / "evaluations" / f"step-{step:08d}.json", result)
            self._failed_path(step).unlink(missing_ok=True)
            self._write_evaluation_csv()
        with self._writing(self.folder / "events.out.tfevents"):
            for row in result["targets"]:
                for key, value in evaluation_scalars(result["environment"], row).items():
                    self._events.add_scalar(key, value, step)
            self._events.flush()
        shutil.rmtree(self.folder / "snapshots" / f"step-{step:08d}", ignore_errors=True)

    def add_failed_evaluation(self, step: int, environment: str, error: str) -> None:
        """Keeps why there is no evaluation of a step; one that succeeds later replaces it."""
        failed = {"checkpoint_step": step, "environment": environment, "error": error}
        write_json(self._failed_path(step), failed)
        self._write_evaluation_csv()
        shutil.rmtree(self.folder / "snapshots" / f"step-{step:08d}", ignore_errors=True)

    def _failed_path(self, step: int) -> Path:
        return self.folder / "evaluations" / f"failed-step-{step:08d}.json"

    def snapshot(self, checkpoint: Path) -> Path:
        """Keeps a checkpoint's parameters, however soon it is removed, until its evaluation."""
        path = self.folder / "snapshots" / checkpoint.name
        with self._writing(path):
            path.mkdir(parents=True, exist_ok=True)
            for name in ("model.safetensors", "state.json"):  # the latter last: it completes it
                (path / name).unlink(missing_ok=True)
                try:
                    os.link(checkpoint / name, path / name)
                except OSError:  # a file system without links
                    with replacing(path / name) as temporary:
                        shutil.copyfile(checkpoint / name, temporary)
        return path

    def save_checkpoint(self, trainer: Any, keep: int) -> Path:
        """Writes ``checkpoints/step-...`` and removes all but the ``keep`` latest."""
        metrics = self.folder / "metrics.csv"
        # Rows up to this step must survive a power cut that the checkpoint survives.
        with self._writing(metrics), open(metrics, "rb") as file:
            os.fsync(file.fileno())
        with self._writing(self.folder / "events.out.tfevents"):
            self._events.flush()
        path = self.folder / "checkpoints" / f"step-{trainer.step:08d}"
        try:
            trainer.save(str(path))
        except _C.NotFiniteError:  # is nothing that the folder could mend
            raise
        except _C.Error as error:  # which names the file
            raise _C.Error(f"{error}; {self._way_on()}") from error
        with self._writing(path):
            self._keep_latest(keep)
        return path

    def write_transfer(self, began: dict[str, Any]) -> None:
        """Writes transfer.json: what :func:`dmamba.training.transfer.begin` returned."""
        with self._writing(self.folder):
            write_json(self.folder / "transfer.json", began)

    def write_contexts(self, decisions: list[dict[str, Any]]) -> None:
        """Writes contexts.csv: what :class:`dmamba.training.choosing.Choice` has decided so far."""
        rows = [
            (
                d["step"],
                length,
                signal if signal == "" else repr(signal),
                " ".join(map(str, d["drawn"])),
                d["best"],
            )
            for d in decisions
            for length, signal in (d["signals"] or {"": ""}).items()
        ]
        columns = ("step", "context_length", "signal", "drawn_next", "best")
        with self._writing(self.folder):
            write_text(self.folder / "contexts.csv", csv_text(columns, [columns, *rows]))

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Writes summary.json, the last file of a run: with it the run counts as finished."""
        with self._writing(self.folder):
            write_json(self.folder / "summary.json", summary)

    def write_plot(self, dataset_mean: float | None) -> None:
        """Writes plots/training.png; arguments as of :func:`dmamba.display.plots.draw_run`."""
        from dmamba.display import plots

        with self._writing(self.folder):
            plots.plot_run(self.run, dataset_mean)

    def _write_evaluation_csv(self) -> None:
        text = evaluations_text(
            self.run.evaluations(),
            self.run.failed_evaluations(),
            self.run.config.dataset.environment,
        )
        write_text(self.folder / "evaluation.csv", text)

    def _refuse_used_folder(self) -> None:
        if all(path.name == ".lock" for path in self.folder.iterdir()):
            return
        latest = self.run.latest_checkpoint()
        if (self.folder / "config.yaml").is_file():
            state = f"a run, at step {latest[0]}" if latest else "a run without a checkpoint"
            advice = "continue it with --resume, or choose another folder with --output"
        else:
            state, advice = "other files", "choose another folder with --output"
        raise _C.Error(f"{self.folder}: the folder holds {state}; {advice}")


def _lock(folder: Path) -> int:
    try:
        return locks.take(folder / ".lock")
    except locks.BusyError as busy:
        raise _C.Error(
            f"{folder}: {busy.holder} is training in this folder; wait for it, stop it, or choose "
            "another folder with --output"
        ) from None
