"""Finished run folders with scores of our choosing, made from one that was trained."""

import json
import shutil

import numpy as np

from dmamba import _C, envs
from dmamba.common import scores
from dmamba.common.files import write_json, write_text
from dmamba.runs import Run
from dmamba.training.summary import best_by_target


def make_run(source, folder, overrides=(), factor=1.0, environment=None):
    """Copies a run; its returns become ``factor`` times (100, 101, 103, ...) + target / 100.

    Earlier evaluations do better by 10, so that last and best differ.
    """
    folder.mkdir(parents=True)
    config = _C.Config.load(str(source.folder / "config.yaml"))
    if environment:
        overrides = [*overrides, f"dataset.environment={environment}"]
    config.override(list(overrides))
    write_text(folder / "config.yaml", config.to_yaml())
    shutil.copy(source.folder / "metrics.csv", folder)
    summary, evaluations = source.summary(), source.evaluations()
    summary["seed"] = config.seed
    if environment:
        summary["environment"] = environment
        summary["constants"] = envs.score_constants(environment)
    (folder / "evaluations").mkdir()
    for place, result in enumerate(evaluations):
        better = 10.0 * (len(evaluations) - 1 - place)
        for row in result["targets"]:
            base = 100.0 + np.cumsum(np.arange(row["episodes"])) + row["target"] / 100 + better
            returns = factor * base
            found = scores.describe(returns)
            row["returns"] = returns.tolist()
            row["return_mean"], row["return_stderr"] = found["mean"], found["stderr"]
            row["return_interval"] = list(found["interval"])
            row["score_mean"] = envs.normalized_score(summary["environment"], found["mean"])
            row["score_interval"] = None
        path = folder / "evaluations" / f"step-{result['checkpoint_step']:08d}.json"
        write_json(path, result)
    summary["last"]["targets"] = evaluations[-1]["targets"]
    summary["best"]["targets"] = best_by_target(evaluations)
    write_json(folder / "summary.json", summary)
    return Run(folder)


def edit_summary(run, change):
    """Applies a function to a run's summary.json."""
    path = run.folder / "summary.json"
    summary = json.loads(path.read_text())
    change(summary)
    write_json(path, summary)
