"""What came of the runs of an experiment: means over its seeds, beside references if any."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dmamba import envs
from dmamba.common import scores
from dmamba.common.files import read_json
from dmamba.runs import Run

LOSS_STEPS = 1000  # the loss in the table is the mean over the last so many steps


def read_run(folder: Path) -> dict[str, Any]:
    """The record of a finished run.

    Returns:
        ``last`` and ``best``, each {target: {return_mean, return_stderr, score_mean}}; ``loss``,
        ``steps``, ``environment_steps`` of all its evaluations, ``times`` and ``environment``.
    """
    run = Run(folder)
    summary = run.summary()
    evaluations = run.evaluations()
    return {
        "environment": summary["environment"],
        "device": summary["device"],
        "steps": summary["steps"],
        "loss": late_loss(run.metrics(), summary["steps"]),
        "last": _by_target(summary["last"]["targets"]),
        "best": _by_target(summary["best"]["targets"]),
        "environment_steps": sum(map(_environment_steps, evaluations)),
        "times": summary["times"],
    }


def read_finished(runs: dict[int, Path]) -> dict[int, dict[str, Any]]:
    """What :func:`read_run` says of those runs, by seed, that have finished."""
    return {seed: read_run(run) for seed, run in runs.items() if Run(run).complete}


def late_loss(metrics: dict[str, np.ndarray], steps: int) -> float | None:
    """Mean over the last steps' rows, at least the last one; None where there is no finite one."""
    if not metrics["step"].size:
        return None
    late = metrics["step"] > min(steps - LOSS_STEPS, metrics["step"][-1] - 1)
    losses = metrics["training/loss"][late]
    finite = losses[np.isfinite(losses)]  # not where all steps of a row were skipped
    return float(finite.mean()) if finite.size else None


def read_evaluation(path: Path) -> dict[str, Any]:
    """The record of a checkpoint that was evaluated once more: a run's, without a training."""
    result = read_json(path, "Remove the file and give the command again, which evaluates again")
    rows = _by_target(result["targets"])
    times = {"first_step": 0, "training_seconds": 0.0, "waiting_seconds": 0.0}
    return {
        "environment": result["environment"],
        "device": result["device"],
        "steps": 0,
        "loss": None,
        "last": rows,
        "best": rows,
        "environment_steps": _environment_steps(result),
        "times": {**times, "evaluation_seconds": result["time_seconds"]},
    }


def summarize(
    name: str,
    records: dict[int, dict[str, Any]],
    wanted: list[int],
    references: Sequence[dict[str, Any]] = (),
    reference_loss: float | None = None,
    author: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Statistics of one experiment over its seeds.

    Args:
        name: Of the experiment.
        records: By seed, from :func:`read_run` or :func:`read_evaluation`; those that are finished.
        wanted: All its seeds.
        references: Each ``target`` (a return, or ``best``: the target that did best), ``which``
            (``last`` or ``best`` evaluation), ``return`` or ``score``, ``stderr`` in the same unit,
            ``source``.
        reference_loss: Training loss of the reference over the last steps.
        author: ``step_ms``, ``action_ms``, ``environment_ms`` of the author's program.
    """
    runs = list(records.values())
    result: dict[str, Any] = {
        "experiment": name,
        "seeds": sorted(records),
        "missing_seeds": sorted(set(wanted) - set(records)),
        "targets": [],
        "reference_loss": reference_loss,
    }
    if not runs:
        return result
    known = {reference["target"]: reference for reference in references}
    for target in [*runs[0]["last"], "best"]:
        if target != "best" or target in known:
            result["targets"].append(_target(runs, target, known.get(target)))
    losses = [run["loss"] for run in runs if run["loss"] is not None]
    result["loss"] = float(np.mean(losses)) if losses else None
    result["device"] = runs[0]["device"]
    for part in ("training", "evaluation", "waiting"):
        result[f"{part}_seconds"] = _mean(run["times"][f"{part}_seconds"] for run in runs)
    # Times are of the process that ended a run: of a resumed one, not of all its steps.
    result["resumed"] = any(run["times"]["first_step"] for run in runs)
    if author is not None:
        step_ms = author["action_ms"] + author["environment_ms"]
        training = _mean(run["steps"] * author["step_ms"] / 1e3 for run in runs)
        evaluation = _mean(run["environment_steps"] * step_ms / 1e3 for run in runs)
        result["author_seconds"] = {"training": training, "evaluation": evaluation}
    return result


def _target(
    runs: list[dict[str, Any]], target: float | str, reference: dict[str, Any] | None
) -> dict[str, Any]:
    """Means over seeds of one target, and how they compare with its reference."""
    environment = runs[0]["environment"]
    constants = envs.score_constants(environment)
    scale = None if constants is None else 100.0 / (constants["max"] - constants["min"])
    row: dict[str, Any] = {"target": target}
    for which in ("last", "best"):
        chosen = [_choose(run[which], target) for run in runs]
        returns = np.array([one["return_mean"] for one in chosen])
        described = scores.describe(returns)
        # A single seed has no spread: what is left is the error of its episodes.
        stderr = described["stderr"] if len(runs) > 1 else chosen[0]["return_stderr"]
        row[which] = {
            "returns": returns.tolist(),
            "return_mean": described["mean"],
            "return_stderr": stderr,
            "score_mean": envs.normalized_score(environment, described["mean"]),
            "score_stderr": None if stderr is None or scale is None else scale * stderr,
            "score_interval": _score_interval(environment, scores.student_interval(returns)),
        }
    if reference is not None:
        mine = row[reference.get("which", "last")]
        unit = "score" if "score" in reference else "return"
        mean, stderr, value = mine[f"{unit}_mean"], mine[f"{unit}_stderr"] or 0.0, reference[unit]
        row["reference"] = reference
        row["not_below"] = scores.not_below(mean, stderr, value, reference["stderr"])
    return row


def _by_target(rows: list[dict[str, Any]]) -> dict[float, dict[str, Any]]:
    keys = ("return_mean", "return_stderr", "score_mean")
    return {row["target"]: {key: row[key] for key in keys} for row in rows}


def _environment_steps(result: dict[str, Any]) -> int:
    return sum(sum(row["lengths"]) for row in result["targets"])


def _choose(by_target: dict[float, dict[str, Any]], target: float | str) -> dict[str, Any]:
    if target == "best":
        return max(by_target.values(), key=lambda row: row["return_mean"])
    return by_target[target]  # type: ignore[index]


def _score_interval(environment: str, interval: scores.Interval | None) -> scores.Interval | None:
    if interval is None:
        return None
    scored = envs.normalized_score(environment, np.array(interval))
    return None if scored is None else (float(scored[0]), float(scored[1]))


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))
