"""The pictures of a report: scores by setting, learning curves, return against target, time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dmamba.reporting.canvas import (
    COLOURS,
    GREY,
    MARKERS,
    STYLES,
    Canvas,
    Figure,
    errors_of,
    plain,
    scale_axis,
)
from dmamba.reporting.collect import Collection, Point, Record
from dmamba.reporting.statistics import Estimate, estimate, of_runs
from dmamba.reporting.tables import aggregates, point_label, unit_of
from dmamba.scores import format_interval

MAX_LINES = 24  # more points than this in a picture tell nothing apart
_BASIS = {
    "seeds": "95 % bootstrap intervals over seeds",
    "episodes": "95 % bootstrap intervals over the episodes of one seed",
}


@dataclass(frozen=True)
class Axis:
    """How points are told apart: by their place along x, and by line.

    Attributes:
        key: The setting along x: numbers, and the one with most values; None: there is none.
        values: Of the key, ascending.
        lines: What the other settings are, in order.
    """

    key: str | None
    values: list[float]
    lines: list[Point]

    def line_of(self, point: Point) -> Point:
        """The settings of a point other than the key."""
        return tuple(pair for pair in point if pair[0] != self.key)

    def style(self, point: Point, points: list[Point]) -> dict[str, str]:
        """Colour by the key's value where there is one, dashes by the other settings."""
        if self.key is None:
            place, line = points.index(point), 0
        else:
            place = self.values.index(float(dict(point)[self.key]))
            line = self.lines.index(self.line_of(point))
        dash = line if self.key is not None else place // len(COLOURS)
        return {
            "color": COLOURS[place % len(COLOURS)],
            "linestyle": STYLES[dash % len(STYLES)],
            "marker": MARKERS[dash % len(MARKERS)],
        }


def find_axis(collection: Collection) -> Axis:
    """Chooses the key along x."""
    best: str | None = None
    values: list[float] = []
    for key in collection.keys:
        found = {dict(point)[key] for point in collection.points}
        numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in found)
        if numbers and len(found) > max(1, len(values)):
            best, values = key, sorted(map(float, found))
    lines = {tuple(p for p in point if p[0] != best): None for point in collection.points}
    return Axis(best, values, list(lines))


def all_figures(collection: Collection) -> list[Figure]:
    """All that there is something to draw for."""
    axis = find_axis(collection)
    figures = [*_aggregate_figures(collection, axis)]
    for index, task in enumerate(collection.tasks):
        number = f"-{index + 1}" if len(collection.tasks) > 1 else ""
        if len(collection.points) > 1:
            for target in collection.targets(task):
                figures.append(_score_figure(collection, axis, task, target, number))
        figures += _curve_figures(collection, axis, task, number)
        if collection.targets(task):
            figures.append(_target_figure(collection, axis, task, number))
    figures.append(_time_figure(collection))
    return figures


def _score_figure(
    collection: Collection, axis: Axis, task: str, target: float, number: str
) -> Figure:
    found = {}
    for point in collection.points:
        value = of_runs(collection.runs(task, point), target, "last")
        if value is not None:
            found[point] = value
    unit = unit_of(collection, task)
    title = f"{unit} of the last evaluation at target {target:g}: {task}"
    name = f"score{number}-target-{target:g}".replace(".", "-").replace("+", "")
    mean = collection.of_task(task)[0]
    level = float(mean.score(mean.summary["dataset"]["return_mean"]))
    return _by_point(axis, found, unit, title, name, level)


def _aggregate_figures(collection: Collection, axis: Axis) -> list[Figure]:
    by_place: dict[tuple[str, int], dict[Point, Estimate]] = {}
    for unit, point, place, value, _ in aggregates(collection, "last"):
        by_place.setdefault((unit, place), {})[point] = value
    return [
        _by_point(
            axis,
            found,
            f"{unit}",
            f"{unit} over all datasets, last evaluation, target no. {place + 1}",
            f"all-{unit.split()[0].lower()}-target-{place + 1}",
            None,
        )
        for (unit, place), found in by_place.items()
        if len(found) > 1
    ]


def _by_point(
    axis: Axis, found: dict[Point, Estimate], unit: str, title: str, name: str, level: float | None
) -> Figure:
    """IQM with intervals, against the axis's key, or a row per point where there is none."""
    bases = " or ".join(sorted({_BASIS[value.basis] for value in found.values()}))
    caption = f"{title}. Interquartile mean, {bases}."
    if level is not None:
        caption += " Dashed: the dataset's mean return."
    alt = f"{title}: " + "; ".join(
        f"{point_label(point)}: {value.iqm:.1f} {format_interval(value.iqm_interval)}"
        for point, value in found.items()
    )
    rows = len(found)
    with Canvas(None if axis.key else max(2.0, 0.9 + 0.36 * rows)) as canvas:
        axes = canvas.axes
        if axis.key is None:
            _draw_rows(canvas, found, unit)
            if level is not None:
                axes.axvline(level, color=GREY, linestyle="--", linewidth=1.2)
            return canvas.finish(name, caption, alt)
        shift = _shifts(axis)
        for index, line in enumerate(axis.lines):
            points = [point for point in found if axis.line_of(point) == line]
            points.sort(key=lambda point: float(dict(point)[axis.key]))  # type: ignore[index]
            if not points:
                continue
            middle = [found[point].iqm for point in points]
            axes.errorbar(
                shift([float(dict(point)[axis.key]) for point in points], index),
                middle,
                yerr=errors_of(middle, [found[point].iqm_interval for point in points]),
                color=COLOURS[index % len(COLOURS)],
                linestyle=STYLES[index // len(COLOURS) % len(STYLES)],
                marker=MARKERS[index % len(MARKERS)],
                linewidth=1.6,
                capsize=3,
                label=plain(point_label(line)),
            )
        if level is not None:
            axes.axhline(level, color=GREY, linestyle="--", linewidth=1.2)
        scale_axis(axes, axis.values)
        axes.set_xlabel(plain(axis.key))
        axes.set_ylabel(unit)
        if len(axis.lines) > 1:
            canvas.legend(len(axis.lines))
        return canvas.finish(name, caption, alt)


def _shifts(axis: Axis) -> Callable[[list[float], int], list[float]]:
    """Sets the lines a little apart along x, so that their bars don't cover each other."""
    low, high = min(axis.values), max(axis.values)
    far = low > 0 and high / low > 8
    middle = (len(axis.lines) - 1) / 2

    def shift(values: list[float], index: int) -> list[float]:
        part = 0.012 * (index - middle)
        if far:
            return [value * (high / low) ** part for value in values]
        return [value + part * (high - low) for value in values]

    return shift


def _draw_rows(canvas: Canvas, found: dict[Point, Estimate], unit: str) -> None:
    axes = canvas.axes
    for place, value in enumerate(found.values()):
        spread = errors_of([value.iqm], [value.iqm_interval])
        colour = COLOURS[0]
        axes.errorbar(
            [value.iqm], [place], xerr=spread, color=colour, marker="o", capsize=3, linewidth=1.6
        )
        if value.basis == "seeds":
            axes.scatter(value.values, [place] * value.values.size, s=12, color=GREY, zorder=3)
    axes.set_yticks(range(len(found)), [plain(point_label(point), 36) for point in found])
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.set_xlabel(unit)


def _curve_figures(collection: Collection, axis: Axis, task: str, number: str) -> list[Figure]:
    """The loss, and for each target the score at every evaluation."""

    def loss(run: Record) -> dict[int, float]:
        steps, values = run.metrics["step"], run.metrics["training/loss"]
        return dict(zip(steps.tolist(), values.tolist(), strict=True))

    def score_at(target: float) -> Callable[[Record], dict[int, float]]:
        def score(run: Record) -> dict[int, float]:
            return {
                result["checkpoint_step"]: float(run.score(row["return_mean"]))
                for result in run.evaluations
                for row in result["targets"]
                if row["target"] == target
            }

        return score

    figures = []
    if len(collection.points) <= MAX_LINES:
        figure = _curves(collection, axis, task, loss, "training loss", f"loss{number}")
        figures += [figure] if figure else []
        for target in collection.targets(task):
            unit = f"{unit_of(collection, task)} at target {target:g}"
            name = f"curve{number}-target-{target:g}".replace(".", "-").replace("+", "")
            figure = _curves(collection, axis, task, score_at(target), unit, name)
            figures += [figure] if figure else []
    return figures


def _curves(
    collection: Collection,
    axis: Axis,
    task: str,
    read: Callable[[Record], dict[int, float]],
    unit: str,
    name: str,
) -> Figure | None:
    """Means over seeds by training step; None where no run has two steps."""
    drawn: dict[Point, tuple[list[int], np.ndarray]] = {}
    for point in collection.points:
        curves = [curve for curve in map(read, collection.runs(task, point)) if curve]
        steps = sorted(set.intersection(*map(set, curves))) if curves else []
        if len(steps) > 1:
            drawn[point] = steps, np.array([[curve[step] for step in steps] for curve in curves])
    if not drawn:
        return None
    ends = [
        f"{point_label(point)}: {values[:, -1].mean():.3g} at step {steps[-1]}"
        for point, (steps, values) in drawn.items()
    ]
    caption = f"{unit} by training step: {task}. Mean over seeds, the band from lowest to highest."
    with Canvas() as canvas:
        axes = canvas.axes
        for point, (steps, values) in drawn.items():
            style = axis.style(point, collection.points)
            if len(steps) > 12:
                del style["marker"]
            label = plain(point_label(point))
            middle = values.mean(axis=0)
            axes.plot(steps, middle, **style, markersize=4, label=label)
            if len(values) > 1:
                low, high = values.min(axis=0), values.max(axis=0)
                axes.fill_between(steps, low, high, color=style["color"], alpha=0.12, linewidth=0)
        axes.set_xlabel("training step")
        axes.set_ylabel(unit)
        if len(collection.points) > 1:
            canvas.legend(len(drawn))
        return canvas.finish(name, caption[0].upper() + caption[1:], caption + " " + "; ".join(ends))


def _target_figure(collection: Collection, axis: Axis, task: str, number: str) -> Figure:
    found: dict[Point, list[tuple[float, Estimate]]] = {}
    for point in collection.points:
        runs = collection.runs(task, point)
        pairs = [(t, of_runs(runs, t, "last", raw=True)) for t in collection.targets(task)]
        found[point] = [(target, value) for target, value in pairs if value is not None]
    level = collection.of_task(task)[0].summary["dataset"]["return_mean"]
    bases = {value.basis for pairs in found.values() for _, value in pairs}
    caption = (
        f"Return against target, last evaluation: {task}. Mean, "
        f"{' or '.join(_BASIS[basis] for basis in sorted(bases))}. Dotted: return = target; "
        f"dashed: the dataset's mean, {level:.0f}."
    )
    alt = f"Return against target, {task}: " + "; ".join(
        f"{point_label(point)}: "
        + ", ".join(f"{target:g} gave {value.mean:.0f}" for target, value in pairs)
        for point, pairs in found.items()
    )
    with Canvas() as canvas:
        axes = canvas.axes
        for point, pairs in found.items():
            if len(found) > MAX_LINES or not pairs:
                continue
            means = [value.mean for _, value in pairs]
            style = axis.style(point, collection.points)
            errors = errors_of(means, [value.mean_interval for _, value in pairs])
            label = plain(point_label(point)) if len(found) > 1 else None
            axes.errorbar([t for t, _ in pairs], means, yerr=errors, capsize=3, label=label, **style)
        scale_axis(axes, collection.targets(task))
        left, right = axes.get_xlim()
        line = np.linspace(left, right, 100)
        top = max(axes.get_ylim()[1], 1.1 * level)
        axes.plot(line, line, color=GREY, linestyle=":", linewidth=1.4)
        axes.axhline(level, color=GREY, linestyle="--", linewidth=1.2)
        # Targets far above what any policy reaches would press everything else to the floor.
        axes.set_ylim(min(0.0, axes.get_ylim()[0]), min(max(top, right), 2.0 * top))
        axes.set_xlabel("target return")
        axes.set_ylabel("return")
        if len(found) > 1:
            canvas.legend(len(found))
        return canvas.finish(f"targets{number}", caption, alt)


def _time_figure(collection: Collection) -> Figure:
    """Milliseconds a training step of every point: bars of means over all its runs, and the runs."""
    found = {}
    for point in collection.points:
        times = [run.step_ms for run in collection.records if run.point == point]
        known = [time for time in times if time is not None]
        if known:
            found[point] = estimate([np.array(known)], "seeds")
    caption = "Milliseconds a training step. Bars: means over runs; dots: the runs."
    alt = "Milliseconds a training step: " + "; ".join(
        f"{point_label(point)}: {value.mean:.2f}" for point, value in found.items()
    )
    with Canvas(max(1.6, 0.9 + 0.36 * len(found))) as canvas:
        axes = canvas.axes
        for place, value in enumerate(found.values()):
            axes.barh([place], [value.mean], color=COLOURS[0], height=0.62, alpha=0.75)
            axes.scatter(value.values, [place] * value.values.size, s=12, color=COLOURS[1], zorder=3)
        axes.set_yticks(range(len(found)), [plain(point_label(point), 36) for point in found])
        axes.set_ylim(max(len(found), 1) - 0.5, -0.5)
        axes.set_xlabel("ms a step")
        axes.grid(visible=False, axis="y")
        return canvas.finish("time", caption, alt)
