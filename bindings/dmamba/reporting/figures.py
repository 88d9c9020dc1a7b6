"""The pictures of a report: scores by setting, learning curves, return against target, time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dmamba.common.scores import format_interval
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
from dmamba.reporting.tables import aggregates, point_label, point_values, unit_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_LINES = 24  # more points than this in a picture tell nothing apart
_INTERVALS = {
    ("seeds",): "95 % bootstrap intervals over seeds",
    ("episodes",): "95 % bootstrap intervals over the episodes of the one seed",
    ("episodes", "seeds"): "95 % bootstrap intervals over seeds, of one seed over its episodes",
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

    def style(self, point: Point, points: list[Point]) -> dict[str, Any]:
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


def _intervals(found: Iterable[Estimate]) -> str:
    """What the bars of a picture are."""
    return _INTERVALS[tuple(sorted({value.basis for value in found}))]


def _keys(point: Point) -> str:
    return plain(", ".join(key for key, _ in point))


def _within(level: float, values: Iterable[Estimate]) -> bool:
    """Whether a line at that level leaves the values more than a third of the picture."""
    ends = [end for v in values for end in (v.iqm, *(v.iqm_interval or ()))]
    return max(*ends, level) - min(*ends, level) <= 3.0 * (max(ends) - min(ends))


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
    caption = f"{title}. Interquartile mean, {_intervals(found.values())}."
    if level is not None and _within(level, found.values()):
        caption += f" Dashed: the dataset's mean, {level:.1f}."
    elif level is not None:
        caption += f" The dataset's mean, {level:.1f}, lies outside."
        level = None
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
                label=plain(point_values(line)),
            )
        if level is not None:
            axes.axhline(level, color=GREY, linestyle="--", linewidth=1.2)
        scale_axis(axes, axis.values)
        axes.set_xlabel(plain(axis.key))
        axes.set_ylabel(unit)
        if len(axis.lines) > 1:
            canvas.legend(_keys(axis.lines[0]), list(map(point_values, axis.lines)))
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
    _name_rows(axes, list(found))
    axes.set_xlabel(unit)


def _name_rows(axes: Axes, points: list[Point]) -> None:
    axes.set_yticks(range(len(points)), [plain(point_values(point), 30) for point in points])
    axes.set_ylim(max(len(points), 1) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    if points:
        axes.set_title(_keys(points[0]), loc="left", fontsize=10)


def _curve_figures(collection: Collection, axis: Axis, task: str, number: str) -> list[Figure]:
    """The loss, and for each target the score at every evaluation."""

    def loss(run: Record) -> dict[int, float]:
        steps, values = run.metrics["step"], run.metrics["training/loss"]
        known = np.isfinite(values)  # not where all steps of a row were skipped
        return dict(zip(steps[known].tolist(), values[known].tolist(), strict=True))

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
            label = plain(point_values(point))
            middle = values.mean(axis=0)
            axes.plot(steps, middle, **style, markersize=4, label=label)
            if len(values) > 1:
                low, high = values.min(axis=0), values.max(axis=0)
                axes.fill_between(steps, low, high, color=style["color"], alpha=0.12, linewidth=0)
        axes.set_xlabel("training step")
        axes.set_ylabel(unit)
        if len(collection.points) > 1:
            canvas.legend(_keys(next(iter(drawn))), list(map(point_values, drawn)))
        return canvas.finish(
            name, caption[0].upper() + caption[1:], caption + " " + "; ".join(ends)
        )


def _target_figure(collection: Collection, axis: Axis, task: str, number: str) -> Figure:
    found: dict[Point, list[tuple[float, Estimate]]] = {}
    for point in collection.points:
        runs = collection.runs(task, point)
        estimates = {t: of_runs(runs, t, "last", raw=True) for t in collection.targets(task)}
        known = [(target, value) for target, value in estimates.items() if value is not None]
        if known:
            found[point] = known
    level = collection.of_task(task)[0].summary["dataset"]["return_mean"]
    bars = _intervals(value for pairs in found.values() for _, value in pairs)
    caption = (
        f"Return against target, last evaluation: {task}. Mean, "
        f"{bars}. Dotted: return = target; "
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
            if len(found) > MAX_LINES:
                continue
            means = [value.mean for _, value in pairs]
            style = axis.style(point, collection.points)
            errors = errors_of(means, [value.mean_interval for _, value in pairs])
            label = plain(point_values(point)) if len(found) > 1 else None
            axes.errorbar(
                [t for t, _ in pairs], means, yerr=errors, capsize=3, label=label, **style
            )
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
        if 1 < len(found) <= MAX_LINES:
            canvas.legend(_keys(next(iter(found))), list(map(point_values, found)))
        return canvas.finish(f"targets{number}", caption, alt)


def _time_figure(collection: Collection) -> Figure:
    """Milliseconds a training step of every point: a bar for the mean of its runs, and the runs."""
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
            axes.scatter(
                value.values, [place] * value.values.size, s=12, color=COLOURS[1], zorder=3
            )
        _name_rows(axes, list(found))
        axes.set_xlabel("ms a step")
        return canvas.finish("time", caption, alt)
