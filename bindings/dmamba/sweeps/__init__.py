"""A sweep: a training for every point of a grid and every seed, and one table of what came of them.

The folder of a sweep has

    run.yaml                         the settings that all runs share
    context_length=5-seed0/          a run folder, as that of any training; .log: its output
    sweep.json, sweep.csv, sweep.md  a row per grid point, with means over the seeds
    plots/score-against-KEY.png      where one key is swept, with numbers for values
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmamba import _C, engines
from dmamba.common import locks
from dmamba.common.files import read_json, write_text
from dmamba.common.scores import format_number, format_table
from dmamba.common.signals import Interrupted
from dmamba.configuration import UNSHAPING, changes
from dmamba.display import plots
from dmamba.envs import is_game
from dmamba.runs import Run
from dmamba.sweeps import sweep_report
from dmamba.sweeps.grid import Grid, Point, make_grid
from dmamba.sweeps.sweep_progress import SweepProgress

if TYPE_CHECKING:
    from dmamba.display.pictures import Picture

JOURNAL = "search.journal"  # in the folder of a search


@dataclass(frozen=True)
class Sweep:
    """The result of a sweep.

    Attributes:
        folder: Where runs, tables and plot lie.
        rows: A flat dict per grid point, the lines of sweep.csv: the swept settings; ``seeds``,
            how many have finished, and ``failed_seeds``; for each target T ``last_return_T``,
            ``last_return_stderr_T``, ``last_score_T``, ``last_score_low_T``, ``last_score_high_T``
            (95 % interval over seeds), and the same of the ``best`` evaluation; ``loss``,
            ``training_seconds``, ``evaluation_seconds``: means over seeds.
        failures: What went wrong, by run folder; empty where all runs have finished.
    """

    folder: Path
    rows: list[dict[str, Any]]
    failures: dict[Path, str]

    def _repr_html_(self) -> str:
        from dmamba.reporting import cells  # which reads sweeps

        return cells.sweep_html(self.folder)

    def plot(self) -> Picture:
        """Draws return and score against the swept key: a matplotlib figure, shown by notebooks.

        Raises:
            ConfigError: Not one key with numbers for values, or no run has finished.
        """
        content = read_json(self.folder / "sweep.json")
        points = content["points"]
        key = sweep_report.plotted_key(points)
        if key is None:
            raise _C.ConfigError(
                f"{self.folder}: a plot needs finished runs and one swept key with numbers for "
                "values; dmamba.report() draws any sweep"
            )
        finished = [point for point in points if point["targets"]]
        return plots.draw_sweep(content["name"], key, finished, content["dataset_mean"])


def sweep(
    config: str | os.PathLike[str] | _C.Config | dict[str, Any],
    overrides: Iterable[str] = (),
    *,
    output: str | os.PathLike[str] | None = None,
    jobs: int | None = None,
    progress: bool = True,
    engine: str = engines.HERE,
    engine_options: Mapping[str, Any] | None = None,
    trials: int | None = None,
    sampler: str = "tpe",
    sampler_seed: int = 0,
    target: float | str = "mean",
) -> Sweep:
    """Trains and evaluates every point of a grid, each in a process of its own.

    With ``trials`` it is a search: Optuna chooses so many points of a space of ranges and lists.

    All points are checked before the first run starts. Runs that have finished are kept, stopped
    ones continue: the same call goes on where it was. A run that fails does not end the others.

    Args:
        config: What :func:`dmamba.train` takes.
        overrides: ``key=value`` for all runs; ``key=v1,v2`` and ``key=A:B`` (A to B - 1) span the
            grid. ``K`` stands for ``model.context_length``.
        output: The sweep's folder; None: ``runs/sweep-NAME``.
        jobs: Runs at a time; None: on this machine 4 on a GPU, half the usable cores on a CPU, and
            elsewhere as many as there is room for.
        progress: Whether to show how far the runs are, a line per run, and the table.
        engine: Where the runs are trained: ``local``, ``ray`` or ``slurm``.
        engine_options: The engine's own options, such as ``{"partition": "gpu", "time": 60}``; see
            :mod:`dmamba.engines`.
        trials: How many settings a search tries; None: the grid. ``key=a..b`` and ``key=log:a..b``
            are a search's ranges.
        sampler: Of a search: ``tpe``, ``random``, ``cmaes``, ``gp``, ``qmc`` or ``grid``.
        sampler_seed: Of a search.
        target: What a search makes large: the score at this target return, the ``mean`` over the
            targets, or the ``best``.

    Returns:
        A row for each point (of a search, each trial, best first), and what has failed.

    Raises:
        ConfigError: A grid that cannot be used, or a folder with runs of other settings.
        DataError: A dataset that cannot be used, or has no episode as long as the context.
        KeyboardInterrupt: Stopped by SIGINT or SIGTERM, when all runs have written checkpoints and
            the tables are there.

    Example:
        >>> result = dmamba.sweep("hopper-sample", ["K=5,10,20", "seed=0:3"])
        >>> [(row["context_length"], row["last_score_2095"]) for row in result.rows]
    """
    engines.check_name(engine)
    if trials is not None:
        from dmamba.sweeps.search import search

        return search(
            config,
            overrides,
            trials=trials,
            sampler=sampler,
            sampler_seed=sampler_seed,
            target=target,
            output=output,
            jobs=jobs,
            progress=progress,
            engine=engine,
            engine_options=engine_options,
        )
    grid = make_grid(config, overrides, here=engine == engines.HERE)
    folder = Path(output) if output else Path("runs") / f"sweep-{grid.base.name}"
    runs = {
        point.folder(folder, seed): (point, seed) for point in grid.points for seed in grid.seeds
    }
    device = grid.base.training.device
    chosen = engines.make_engine(engine, engine_options or {}, jobs, device, folder)
    with locks.sweep(folder):
        _refuse_other_settings(runs)
        if (folder / JOURNAL).is_file():
            raise _C.ConfigError(
                f"{folder} holds a search: continue it with --trials (trials=), or choose another "
                "folder with --output (output=)"
            )
        kept = sum(Run(run).complete for run in runs)
        with chosen as runner:
            write_text(folder / "run.yaml", grid.base.to_yaml())
            if progress:
                print(
                    f"runs in {folder}: {len(runs)}, {runner.describe()}"
                    + (f"; finished before: {kept}" if kept else ""),
                    flush=True,
                )
            with SweepProgress(len(runs), kept, enabled=progress) as shown:
                failures = run_all(runner, runs, folder, shown)
        points = sweep_report.collect(grid, folder, failures)
        plot = sweep_report.write(grid, folder, points)
    if progress:
        _print_result(grid, folder, points, plot)
    if runner.received:
        raise Interrupted(runner.received, folder)
    return Sweep(folder, sweep_report.flat_rows(points), failures)


def run_all(
    runner: engines.Engine, runs: dict[Path, tuple[Point, int]], folder: Path, shown: SweepProgress
) -> dict[Path, str]:
    """Brings every run to its end.

    Args:
        runner: Entered.
        runs: Point and seed of each run folder.
        folder: The sweep's, with run.yaml.
        shown: Entered.

    Returns:
        What went wrong, by run folder.
    """
    waiting = [run for run in runs if not Run(run).complete]
    tasks = []
    for run in waiting:
        point, seed = runs[run]
        overrides = (*point.overrides, f"seed={seed}")
        config = (folder / "run.yaml").absolute()
        tasks.append(engines.Training(config, overrides, run.absolute()))

    def on_end(index: int, failure: str) -> None:
        run = waiting[index]
        point, seed = runs[run]
        shown.ended(run, f"{point.label} seed {seed}: {failure or _outcome(run)}", failure)

    shown.watch(waiting)
    failures = runner.run_all(tasks, on_end)
    return {run: failure for run, failure in zip(waiting, failures, strict=True) if failure}


def _outcome(folder: Path) -> str:
    """A finished run in a line: its last evaluation, loss and times."""
    summary = Run(folder).summary()
    times = summary["times"]
    targets = [
        f"{row['target']:g} -> {row['return_mean']:.0f}"
        + ("" if row["score_mean"] is None else f" (score {row['score_mean']:.1f})")
        for row in summary["last"]["targets"]
    ]
    seconds = times["training_seconds"] + times["evaluation_seconds"]
    return f"{', '.join(targets)}, loss {format_number(summary['loss'], 4)}, {seconds:.0f} s"


def _refuse_other_settings(runs: dict[Path, tuple[Point, int]]) -> None:
    for folder, (point, seed) in runs.items():
        if (folder / "config.yaml").is_file():
            changed = changes(Run(folder).config, point.configs[seed], UNSHAPING)
            if changed:
                raise _C.ConfigError(
                    f"{folder} was made with other settings: {changed}. Remove it, or choose "
                    "another folder with --output (output=)"
                )


def _print_result(
    grid: Grid, folder: Path, points: list[dict[str, Any]], plot: Path | None
) -> None:
    failed = sweep_report.failure_lines(points)
    lines = ["", format_table(sweep_report.table_cells(points)), "", sweep_report.NOTE]
    if grid.dataset_mean is not None:
        clipped = ", of clipped rewards" if is_game(grid.base.dataset.environment) else ""
        lines.append(f"dataset mean return  {grid.dataset_mean:.1f}{clipped}")
    lines += [*failed, f"tables  {folder / 'sweep.md'}, .csv, .json"]
    if plot is not None:
        lines.append(f"plot    {plot}")
    lines.append(
        f"for one page with all tables and plots: dmamba report {shlex.quote(str(folder))}"
    )
    if failed:
        runs = len(grid.points) * len(grid.seeds)
        lines.append(f"not finished: {len(failed)} of {runs}; the same command continues them")
    print("\n".join(lines), flush=True)
