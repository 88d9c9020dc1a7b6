"""What a training ends with: its summary as a dict, and the text for the terminal."""

from __future__ import annotations

import importlib.metadata
import platform
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dmamba import _C, _build_info, data, envs
from dmamba.common import scores
from dmamba.data.pretraining import Part
from dmamba.display import describing
from dmamba.runs import Run, RunWriter

BEST_NOTE = (
    "best is the highest mean over the evaluations of this training, for each target on its own: "
    "a maximum, so it is biased upwards. Published tables often report it; compare like with like."
)


def versions() -> dict[str, str | None]:
    """Versions of what a result depends on; None for what is not installed."""

    def installed(package: str) -> str | None:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return None

    return {
        "dmamba": _build_info.version,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "gymnasium": installed("gymnasium"),
        "mujoco": installed("mujoco"),
        "ale-py": installed("ale-py"),
        "compiler": _build_info.compiler,
    }


def peak_memory(device: str) -> dict[str, int | None]:
    """The most memory that this process has held, in bytes.

    Args:
        device: Where it trained, as torch names it.

    Returns:
        ``host_bytes``: resident, since the process started, so of all trainings in it; None where
        the system doesn't say. ``gpu_bytes``: of tensors by torch's allocator; None on the CPU.
    """
    # Not getrusage's ru_maxrss: a process inherits that from the one that started it.
    status = Path("/proc/self/status")
    found = (
        re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.M) if status.is_file() else None
    )
    return {
        "host_bytes": None if found is None else 1024 * int(found[1]),
        "gpu_bytes": None if device == "cpu" else torch.cuda.max_memory_allocated(device),
    }


def _last_finite(values: np.ndarray) -> float | None:
    """Of losses, which are NaN where all steps of a row were skipped; None if there is none."""
    finite = values[np.isfinite(values)]
    return float(finite[-1]) if finite.size else None


def summarize_run(
    run: Run,
    store: _C.TrajectoryStore | _C.FrameStore,
    times: dict[str, Any],
    device: str,
    metrics: dict[str, np.ndarray],
    parameters: int,
    memory: dict[str, int | None],
) -> dict[str, Any]:
    """The content of summary.json.

    Args:
        run: With its evaluations.
        store: The training set.
        times: Of the process that ended the training, and the step it began with.
        device: Name of the device that this process trained on.
        metrics: The training's, which of several sets is that of all of them.
        parameters: How many the model has.
        memory: From :func:`peak_memory`.
    """
    config = run.config
    evaluations, failed = run.evaluations(), run.failed_evaluations()
    environment = config.dataset.environment
    dataset = data.describe(store, environment)
    summary: dict[str, Any] = {
        "name": config.name,
        "seed": config.seed,
        "steps": config.training.steps,
        "device": device,
        "precision": config.training.precision,
        "parameters": parameters,
        "memory": memory,
        "loss": _last_finite(metrics["training/loss"]),
        "skipped_steps": int(metrics["training/skipped"].sum()),
        "environment": environment,
        "dataset": {
            key: dataset[key]
            for key in (
                "path",
                "episodes",
                "transitions",
                "return_mean",
                "return_max",
                "score_mean",
            )
        },
        "constants": envs.score_constants(environment, config.dataset.path),
        "evaluations": len(evaluations),
        "failed_evaluations": failed,
        "last": None,
        "best": None,
        "times": times,
        "versions": versions(),
    }
    if evaluations:
        last = evaluations[-1]
        if not failed or failed[-1]["checkpoint_step"] < last["checkpoint_step"]:
            summary["last"] = {"step": last["checkpoint_step"], "targets": last["targets"]}
        summary["best"] = {"note": BEST_NOTE, "targets": best_by_target(evaluations)}
    return summary


def write_summaries(
    writer: RunWriter,
    writers: list[RunWriter],
    parts: list[Part],
    parameters: list[int],
    times: dict[str, Any],
    device: str,
    memory: dict[str, int | None],
) -> None:
    """Writes a run's summary.json and plot; of several sets also a summary for each.

    Args:
        writer: Of the run.
        writers: Of its parts; the same one where there is one set.
        parts: What it trained on.
        parameters: How many the model of each part has.
        times: As for :func:`summarize_run`.
        device: Likewise.
        memory: Likewise.
    """
    metrics = writer.run.metrics()
    summaries = {}
    for part, own, count in zip(parts, writers, parameters, strict=True):
        summaries[part.name] = summarize_run(
            own.run, part.store, times, device, metrics, count, memory
        )
    if len(parts) == 1:
        writer.write_plot(float(parts[0].store.episode_returns.mean()))
        writer.write_summary(summaries[parts[0].name])
        return
    for part, own in zip(parts, writers, strict=True):
        own.write_summary(summaries[part.name])
    writer.write_plot(None)
    writer.write_summary(join_summaries(writer.run.config.name, summaries))


def join_summaries(name: str, sets: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The content of summary.json of a run on several sets.

    Args:
        name: Of the run.
        sets: By set, what :func:`summarize_run` gives.
    """
    shared = ("seed", "steps", "device", "precision", "memory", "loss", "times", "versions")
    of_sets = (
        *("parameters", "environment", "dataset", "constants"),
        *("evaluations", "failed_evaluations", "last", "best"),
    )
    first = next(iter(sets.values()))
    return {
        "name": name,
        **{key: first[key] for key in shared},
        "sets": {set: {key: own[key] for key in of_sets} for set, own in sets.items()},
    }


def best_by_target(evaluations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each target the evaluation with the highest mean return, and its step."""
    best: dict[float, dict[str, Any]] = {}
    for result in evaluations:
        for row in result["targets"]:
            known = best.get(row["target"])
            if known is None or row["return_mean"] > known["return_mean"]:
                kept = {key: row[key] for key in row if key not in ("returns", "lengths")}
                best[row["target"]] = {"step": result["checkpoint_step"], **kept}
    return [best[target] for target in sorted(best)]


def format_run(run: Run) -> str:
    """The closing text of a training: last and best evaluation, run folder and plot."""
    summary = run.summary()
    evaluations = run.evaluations()
    lines = ["", *describe_failed(run.failed_evaluations())]
    if evaluations:
        lines += [describing.format_result(evaluations[-1], summary["dataset"]["return_mean"]), ""]
    if len(evaluations) > 1:
        lines += [_format_best(summary), ""]
    lines += [describe_training(summary), f"run folder  {run.folder}"]
    if run.plot_path.is_file():  # that of several sets is the whole run's
        lines.append(f"plot        {run.plot_path}")
    return "\n".join(lines)


def describe_failed(failed: list[dict[str, Any]]) -> list[str]:
    """Lines on evaluations that have come to nothing, of :meth:`Run.failed_evaluations`."""
    return [
        f"step {one['checkpoint_step']} could not be evaluated: {one['error']}" for one in failed
    ]


def describe_training(summary: dict[str, Any]) -> str:
    """A line of summary.json: steps, device, loss, times."""
    times = summary["times"]
    since = f" from step {times['first_step']}" if times["first_step"] else ""
    loss = "-" if summary["loss"] is None else f"{summary['loss']:.4f}"
    beside = f" beside it, waited {times['waiting_seconds']:.0f} s"
    return (
        f"trained {summary['steps']} steps{since} on {summary['device']}, loss {loss}; training "
        f"{times['training_seconds']:.0f} s, evaluation {times['evaluation_seconds']:.0f} s"
        + (beside if times["evaluated"] == "beside" else "")
    )


def _format_best(summary: dict[str, Any]) -> str:
    scored = summary["constants"] is not None
    label = envs.scale_of(summary["environment"]).label
    rows = [["target", "at step", "return", *([label] if scored else [])]]
    for row in summary["best"]["targets"]:
        cells = [f"{row['target']:g}", f"{row['step']}", f"{row['return_mean']:.1f}"]
        rows.append([*cells, *([f"{row['score_mean']:.1f}"] if scored else [])])
    title = f"best of {summary['evaluations']} evaluations, per target (a maximum: biased upwards)"
    return title + "\n" + scores.format_table(rows)
