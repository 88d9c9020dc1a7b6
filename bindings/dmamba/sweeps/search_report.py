"""What came of a search: its trials, best first, what mattered, and the best settings to train."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from dmamba.common.files import write_text
from dmamba.common.scores import format_number, format_table
from dmamba.configuration import load_config
from dmamba.runs.seeds import read_finished, summarize
from dmamba.sweeps import sweep_report
from dmamba.sweeps.space import Space

MIN_TRIALS = 10  # complete ones with unlike settings, below which importances mean nothing


def write(
    study: Any, space: Space, folder: Path, target: float | str, progress: bool
) -> list[dict[str, Any]]:
    """Writes sweep.json, sweep.csv, sweep.md and best.yaml, and prints the table.

    Args:
        study: Optuna's.
        space: What was searched.
        folder: The sweep's.
        target: What the objective was taken at.
        progress: Whether to print.

    Returns:
        The rows of sweep.csv: ``trial``, ``state``, ``objective``, then those of
        :func:`dmamba.sweeps.sweep_report.flat_rows`. Empty where no trial has begun.
    """
    trials = sorted(study.get_trials(deepcopy=False), key=_place)
    points = [_point(trial, space, folder) for trial in trials if trial.params]
    if not points:
        return []
    best = next((trial for trial in trials if trial.value is not None), None)
    weights = importances(study)
    notes = [f"objective: {_meaning(target)}, mean over seeds. {sweep_report.NOTE}"]
    if best is not None:
        config = load_config(space.base, space.point(best.params).overrides)
        config.seed = space.seeds[0]
        write_text(folder / "best.yaml", config.to_yaml())
        notes.append(f"best: trial {best.number}, {format_number(best.value, 2)}; best.yaml")
    if weights is not None:
        shown = ", ".join(f"{name} {weight:.2f}" for name, weight in weights.items())
        notes.append(f"importance (PED-ANOVA): {shown}")
    else:
        notes.append(f"importance: not said below {MIN_TRIALS} trials of unlike settings and ends")
    content = {
        "name": space.base.name,
        "seeds": space.seeds,
        "dataset_mean": space.dataset_mean,
        "search": study.user_attrs["made_with"],
        "best_trial": None if best is None else best.number,
        "importances": weights,
    }
    shown_points = [{**point, "settings": _short(point["settings"])} for point in points]
    cells = sweep_report.table_cells(shown_points)
    failed = sweep_report.failure_lines(points)
    rows = sweep_report.flat_rows(points)
    sweep_report.write_tables(folder, content, points, rows, cells, [*notes, *failed])
    if progress:
        lines = ["", format_table(cells), "", *notes, *failed]
        lines.append(f"tables  {folder / 'sweep.md'}, .csv, .json")
        print("\n".join(lines), flush=True)
    return rows


def importances(study: Any) -> dict[str, float] | None:
    """Shares of the searched keys in what makes a trial good, by PED-ANOVA; the largest first.

    Source: Watanabe et al., "PED-ANOVA: Efficiently Quantifying Hyperparameter Importance in
    Arbitrary Subspaces", 2023, as Optuna has it.

    Returns:
        None where there are too few trials, or they do not tell.
    """
    import optuna

    complete = [trial for trial in study.get_trials(deepcopy=False) if trial.value is not None]
    if sum("same_as" not in trial.user_attrs for trial in complete) < MIN_TRIALS:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that all values are equal: the sum is 0 then
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        found = evaluator.evaluate(study)
    total = sum(found.values())
    if not total > 0.0:
        return None
    ordered = sorted(found.items(), key=lambda item: -item[1])
    return {key: float(value / total) for key, value in ordered}


def _place(trial: Any) -> tuple[bool, float, int]:
    """Best first; those without a value last; then by number."""
    return trial.value is None, -(trial.value or 0.0), trial.number


def _point(trial: Any, space: Space, folder: Path) -> dict[str, Any]:
    """A trial in the form of a sweep's point."""
    label = f"trial-{trial.number:04d}"
    owner = trial.user_attrs.get("same_as", trial.number)
    runs = {seed: folder / f"trial-{owner:04d}-seed{seed}" for seed in space.seeds}
    records = read_finished(runs)
    told = {int(seed): text for seed, text in trial.user_attrs.get("failures", {}).items()}
    missing = {seed: "not finished" for seed in space.seeds if seed not in records}
    state = trial.state.name.lower()
    if owner != trial.number:
        state = f"as {owner}"
    chosen = {key: trial.params[key] for key in space.keys if key in trial.params}
    complete = len(chosen) == len(space.keys)
    return {
        "settings": {
            "trial": trial.number,
            "state": state,
            "objective": trial.value,
            **(space.settings(chosen) if complete else {}),
        },
        "failures": missing | told,
        **summarize(label, records, space.seeds),
    }


def _meaning(target: float | str) -> str:
    where = f"at target {target:g}" if isinstance(target, float) else f"{target} of the targets"
    return f"normalised score (return where there is none) of the last evaluation, {where}"


def _short(settings: dict[str, Any]) -> dict[str, Any]:
    """Numbers for people; the files have all digits."""
    return {
        key: f"{value:.4g}" if isinstance(value, float) else "-" if value is None else value
        for key, value in settings.items()
    }
