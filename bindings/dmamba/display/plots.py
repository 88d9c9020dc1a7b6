"""Pictures of a run, of a sweep, of datasets.

Of a run its loss and its return against target, of a sweep return against a key, of datasets the
histograms of returns and lengths.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dmamba import _C, envs
from dmamba.common.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from dmamba.display.pictures import Picture
    from dmamba.runs import Run

FORMATS = ("png", "pdf", "svg")
_BLUE, _ORANGE, _GREY = "#2b6cb0", "#dd6b20", "#718096"


def plot_run(run: Run, dataset_mean: float | None = None, path: Path | None = None) -> Path:
    """Draws a run into a PNG.

    Args:
        run: As for :func:`draw_run`.
        dataset_mean: Likewise.
        path: The file; None: ``plots/training.png`` in the run's folder.

    Returns:
        The file's path.
    """
    return _save(draw_run(run, dataset_mean), run.plot_path if path is None else path)


def draw_run(run: Run, dataset_mean: float | None = None) -> Picture:
    """Draws a run: its loss, and return against target in its last evaluation.

    Args:
        run: With its metrics, and its evaluations if there are any.
        dataset_mean: Mean raw return of the training set's episodes, for a line.
    """
    from dmamba.display.pictures import Picture  # matplotlib is slow to import

    evaluations = run.evaluations()
    figure = Picture(11.0 if evaluations else 6.0, 4.2)
    panels: list[Axes] = list(figure.subplots(1, 2 if evaluations else 1, squeeze=False)[0])
    figure.suptitle(f"{run.config.name}, seed {run.config.seed}")
    _draw_loss(panels[0], run.metrics())
    if evaluations:
        _draw_targets(panels[1], evaluations, dataset_mean)
    return figure


def plot_sweep(
    name: str, key: str, points: list[dict[str, Any]], dataset_mean: float | None, path: Path
) -> Path:
    """Draws a sweep into a PNG; arguments as of :func:`draw_sweep`, and the file.

    Returns:
        The file's path.
    """
    return _save(draw_sweep(name, key, points, dataset_mean), path)


def draw_sweep(
    name: str, key: str, points: list[dict[str, Any]], dataset_mean: float | None
) -> Picture:
    """Draws the last evaluations' mean return over seeds against a key's values.

    Args:
        name: Of the sweep, for the title.
        key: With numbers for values.
        points: At least one, with finished runs, as :func:`dmamba.sweeps.sweep_report.collect`
            gives.
        dataset_mean: Mean raw return of the training set's episodes, for a line.
    """
    from dmamba.display.pictures import Picture

    figure = Picture(7.0, 4.6)
    axes: Axes = figure.subplots()
    count = max(len(point["seeds"]) for point in points)
    title = f"mean of {count} seeds" if count > 1 else "one seed, its episodes'"
    axes.set_title(f"{name}: {title} ± standard error", fontsize=10)
    points = sorted(points, key=lambda point: point["settings"][key])
    for target in sorted({row["target"] for point in points for row in point["targets"]}):
        found = [
            (point["settings"][key], row["last"])
            for point in points
            for row in point["targets"]
            if row["target"] == target
        ]
        axes.errorbar(
            [value for value, _ in found],
            [last["return_mean"] for _, last in found],
            yerr=[last["return_stderr"] or 0.0 for _, last in found],
            marker="o",
            linewidth=1.2,
            capsize=4,
            label=f"target {target:g}",
        )
    if dataset_mean is not None:
        label = _name_mean(points[0]["environment"], dataset_mean)
        axes.axhline(dataset_mean, color=_GREY, linestyle="--", linewidth=1.2, label=label)
    values = sorted({float(point["settings"][key]) for point in points})
    _scale_values(axes, np.array(values))
    axes.set_xticks(values, [f"{value:g}" for value in values])
    axes.minorticks_off()
    axes.set_xlabel(key)
    axes.set_ylabel(f"return in {points[0]['environment']}")
    _score_axis(axes, points[0]["environment"])
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def check_format(path: Path) -> str:
    """The format that a picture's file name asks for, one of ``FORMATS``.

    Raises:
        ConfigError: Another one.
    """
    suffix = path.suffix.removeprefix(".").lower()
    if suffix not in FORMATS:
        raise _C.ConfigError(
            f"{path}: a picture's name must end with one of {', '.join(f'.{f}' for f in FORMATS)}"
        )
    return suffix


def plot_datasets(results: list[dict[str, Any]], path: Path) -> Path:
    """Draws the histograms of returns and of lengths into a picture, a row for each dataset.

    Args:
        results: What ``dmamba.data.info`` gives, at least one.
        path: The file; ``.png``, ``.pdf`` or ``.svg``.

    Returns:
        The file's path.

    Raises:
        ConfigError: Another ending.
    """
    from matplotlib.figure import Figure

    form = check_format(path)
    figure = Figure(figsize=(10.0, 3.4 * len(results)), dpi=120, layout="constrained")
    rows = figure.subplots(len(results), 2, squeeze=False)
    for (returns, lengths), result in zip(rows, results, strict=True):
        whose = "games" if "game" in result else "episodes"
        title = result["metadata"].get("dataset_id", Path(result["path"]).name)
        lengths.set_title(title, fontsize=10, loc="right")
        clipped = "clipped return" if "game" in result else "return"
        environment = f" in {result['environment']}" if result["environment"] else ""
        _draw_histogram(returns, result, "return", f"{clipped}{environment}", whose)
        _draw_histogram(lengths, result, "length", "length (steps)", whose)
        if result["constants"] is not None:
            borrowed = " (borrowed constants)" if result["constants"]["borrowed"] else ""
            _score_axis(returns, result["environment"], "x", borrowed)
    return _save(figure, path, form)


def _draw_histogram(
    axes: Axes, result: dict[str, Any], measure: str, label: str, whose: str
) -> None:
    from matplotlib.ticker import MaxNLocator

    found, mean = result["histograms"][measure], result[f"{measure}_mean"]
    edges = np.array(found["edges"], dtype=float)
    if measure == "length":  # whole numbers lie in the middle of their bars
        edges -= 0.5
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.bar(edges[:-1], found["counts"], np.diff(edges), align="edge", color=_BLUE)
    if len(edges) == 2:  # one bar would fill the panel
        axes.set_xlim(edges[0] - 5 * np.ptp(edges), edges[1] + 5 * np.ptp(edges))
    axes.axvline(mean, color=_ORANGE, linewidth=1.2, label=f"mean {mean:.4g}")
    axes.set_xlabel(label)
    axes.set_ylabel(f"{whose} ({result['episodes']:,} in all)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _save(figure: Figure, path: Path, form: str = "png") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        figure.savefig(temporary, format=form)
    return path


def _draw_loss(axes: Axes, metrics: dict[str, np.ndarray]) -> None:
    steps, loss = metrics["step"], metrics["training/loss"]
    axes.plot(steps, loss, color=_BLUE, linewidth=1.2, marker="." if len(steps) < 20 else None)
    axes.set_xlabel("training step")
    axes.set_ylabel("loss (mean since the last row)")
    finite = loss[np.isfinite(loss)]
    if finite.size and finite.min() > 0 and finite.max() / finite.min() > 30:
        axes.set_yscale("log")
    axes.grid(alpha=0.3, which="both")


def _draw_targets(
    axes: Axes, evaluations: list[dict[str, Any]], dataset_mean: float | None
) -> None:
    last = evaluations[-1]
    rows = sorted(last["targets"], key=lambda row: row["target"])
    targets = np.array([row["target"] for row in rows])
    means = np.array([row["return_mean"] for row in rows])
    intervals = [row["return_interval"] or (row["return_mean"],) * 2 for row in rows]
    low, high = np.array(intervals, dtype=float).T
    # BCa may leave the mean just outside the interval of a few episodes.
    errors = np.maximum(0.0, [means - low, high - means])
    label = f"step {last['checkpoint_step']}, {100 * last['confidence']:g} % interval"
    axes.errorbar(
        targets,
        means,
        yerr=errors,
        color=_BLUE,
        marker="o",
        linestyle="none",
        capsize=4,
        label=label,
    )
    for result in evaluations[:-1]:
        earlier = result["targets"]
        axes.scatter(
            [row["target"] for row in earlier],
            [row["return_mean"] for row in earlier],
            s=14,
            color=_BLUE,
            alpha=0.25,
            label="earlier evaluations" if result is evaluations[0] else None,
        )
    levels = [0.0, *low, *high]
    levels += [row["return_mean"] for result in evaluations for row in result["targets"]]
    if dataset_mean is not None:
        levels.append(dataset_mean)
        label = _name_mean(last["environment"], dataset_mean)
        axes.axhline(dataset_mean, color=_ORANGE, linewidth=1.2, label=label)
    _scale_values(axes, targets)
    bottom, top = min(levels), max(levels)
    margin = 0.1 * (top - bottom) or 1.0
    axes.set_ylim(bottom - (margin if bottom < 0 else 0.0), top + margin)
    left, right = axes.get_xlim()
    line = np.linspace(left, right, 200)
    if left <= axes.get_ylim()[1] and right >= axes.get_ylim()[0]:  # it passes through the picture
        axes.plot(line, line, color=_GREY, linestyle="--", linewidth=1.0, label="return = target")
    axes.set_xlim(left, right)
    axes.set_xlabel("target return")
    axes.set_ylabel(f"return in {last['environment']}, {last['policy']} policy")
    _score_axis(axes, last["environment"])
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _scale_values(axes: Axes, values: np.ndarray) -> None:
    """Far values (the paper asks for up to 20 times the best return) need a logarithmic axis."""
    if values.min() > 0 and values.max() / values.min() > 8:
        axes.set_xscale("log")
        axes.set_xlim(values.min() / 1.3, values.max() * 1.3)
    else:
        margin = 0.15 * float(np.ptp(values)) or 0.1 * abs(float(values[0])) or 1.0
        axes.set_xlim(values.min() - margin, values.max() + margin)


def _name_mean(environment: str, dataset_mean: float) -> str:
    """A game's recordings hold clipped rewards."""
    clipped = " (clipped)" if envs.is_game(environment) else ""
    return f"dataset mean{clipped} {dataset_mean:.0f}"


def _score_axis(axes: Axes, environment: str, along: str = "y", note: str = "") -> None:
    constants = envs.score_constants(environment)
    if constants is None:
        return
    low, span = constants["min"], (constants["max"] - constants["min"]) / 100.0
    functions = (
        lambda returns: (returns - low) / span,
        lambda score: score * span + low,
    )
    label = envs.scale_of(environment).axis + note
    if along == "x":
        axes.secondary_xaxis("top", functions=functions).set_xlabel(label, fontsize=8)
    else:
        axes.secondary_yaxis("right", functions=functions).set_ylabel(label)
