"""A search: Optuna chooses the settings of each trial from what the trials before have brought.

The folder of a search has what a sweep's has, and

    search.journal            the trials, Optuna's journal: a search goes on where it was
    trial-0007-seed0/         a run folder; each trial has one for every seed
    best.yaml                 the best trial's settings, for ``dmamba train``

Trials go in rounds of as many as fit beside each other. A round is chosen, trained, and told to
Optuna in the order of its numbers, so which run ends first does not matter: the trials follow from
the space, the sampler's seed and the number of trials in a round. The sampler is made anew for each
trial, from the seed and the trial's number: a search that was stopped chooses what it would have.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dmamba import _C, engines
from dmamba.common import locks
from dmamba.common.files import write_text
from dmamba.common.signals import Interrupted
from dmamba.configuration import UNSHAPING, changes
from dmamba.engines.runner import STOPPED
from dmamba.runs import Run
from dmamba.runs.seeds import read_run
from dmamba.sweeps import JOURNAL, Sweep, run_all, search_report
from dmamba.sweeps.grid import Point
from dmamba.sweeps.ranges import Range
from dmamba.sweeps.space import TARGETS, Space, make_space
from dmamba.sweeps.sweep_progress import SweepProgress

SAMPLERS = ("tpe", "random", "cmaes", "gp", "qmc", "grid")
MAX_GRID = 100_000  # combinations that the grid sampler writes out
_STUDY = "search"


def search(
    config: str | os.PathLike[str] | _C.Config | dict[str, Any],
    overrides: Iterable[str],
    *,
    trials: int,
    sampler: str = "tpe",
    sampler_seed: int = 0,
    target: float | str = "mean",
    output: str | os.PathLike[str] | None = None,
    jobs: int | None = None,
    progress: bool = True,
    engine: str = engines.HERE,
    engine_options: Mapping[str, Any] | None = None,
) -> Sweep:
    """Trains ``trials`` points of a space, and says which is best.

    Args:
        config: What :func:`dmamba.train` takes.
        overrides: ``key=a..b``, ``key=log:a..b``, ``key=v1,v2``, ``seed=A:B`` and ``key=value``.
        trials: In all, with those that are there already.
        sampler: One of ``SAMPLERS``.
        sampler_seed: At least 0.
        target: The return whose evaluation counts; ``mean`` over the targets, or the ``best``.
        output: The sweep's folder; None: ``runs/sweep-NAME``.
        jobs: Runs at a time; None, on this machine only: see :func:`engines.local.default_jobs`.
        progress: Whether to show anything.
        engine: Where the runs are trained, as for :func:`dmamba.sweep`.
        engine_options: The engine's own.

    Raises:
        ConfigError: A space or an option that cannot be used, a folder of another search, or
            Optuna is not installed.
        DataError: A dataset that cannot be used, or has no episode as long as a context.
        KeyboardInterrupt: Stopped, when all runs have written checkpoints.
    """
    _check_options(trials, sampler, sampler_seed, target)
    optuna = _optuna(sampler)
    space = make_space(config, overrides, target, here=engine == engines.HERE)
    if sampler == "grid":
        trials = min(trials, len(_grid(space, sampler_seed)))
    folder = Path(output) if output else Path("runs") / f"sweep-{space.base.name}"
    device = space.base.training.device
    if jobs is None:
        if engine != engines.HERE:
            raise _C.ConfigError(
                f"a search on engine {engine} needs --jobs N (jobs=): as many runs are chosen at "
                "once as are trained at a time"
            )
        jobs = engines.default_jobs(device)
    chosen = engines.make_engine(engine, engine_options or {}, jobs, device, folder)
    told = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        made_with = {"sampler": sampler, "sampler_seed": sampler_seed, "target": target}
        with locks.sweep(folder):
            study = _open(optuna, space, folder, made_with)
            _refuse_busy(folder)
            with chosen as runner:
                made = _Search(optuna, study, space, folder, sampler, sampler_seed, target)
                failures = made.run(runner, jobs, trials, progress)
            rows = search_report.write(study, space, folder, target, progress)
    finally:
        optuna.logging.set_verbosity(told)
    if runner.received:
        raise Interrupted(runner.received, folder)
    return Sweep(folder, rows, failures)


def objective(record: dict[str, Any], target: float | str) -> float:
    """What a run is worth: the score, or return where there is none, in its last evaluation.

    Args:
        record: From :func:`dmamba.runs.seeds.read_run`.
        target: As for :func:`search`.
    """
    values = {
        key: row["return_mean"] if row["score_mean"] is None else row["score_mean"]
        for key, row in record["last"].items()
    }
    if target == "mean":
        return float(np.mean(list(values.values())))
    return float(max(values.values()) if target == "best" else values[target])


class _Search:
    """One process's part in a search."""

    def __init__(
        self,
        optuna: Any,
        study: Any,
        space: Space,
        folder: Path,
        sampler: str,
        sampler_seed: int,
        target: float | str,
    ) -> None:
        self.optuna, self.study, self.space, self.folder = optuna, study, space, folder
        self.sampler, self.sampler_seed, self.target = sampler, sampler_seed, target
        self.failures: dict[Path, str] = {}

    def run(
        self, runner: engines.Engine, jobs: int, trials: int, progress: bool
    ) -> dict[Path, str]:
        """Rounds until there are so many trials; what went wrong, by run folder."""
        seeds = self.space.seeds
        size = max(1, jobs // len(seeds))
        ended = sum(trial.state.is_finished() for trial in self.study.get_trials(deepcopy=False))
        if progress:
            print(
                f"trials in {self.folder}: {trials}, seeds of each: {len(seeds)}, "
                f"{runner.describe()}, sampler: {self.sampler}"
                + (f"; ended before: {ended}" if ended else ""),
                flush=True,
            )
        total = max(trials, ended) * len(seeds)
        with SweepProgress(total, ended * len(seeds), enabled=progress) as shown:
            while STOPPED not in self.failures.values():
                batch = self._choose(size, trials)
                if not batch:
                    break
                self._train(runner, batch, shown)
        return self.failures

    def _choose(self, size: int, trials: int) -> list[Any]:
        """Running trials, which an earlier process has left, and new ones up to a round's size."""
        running = self.optuna.trial.TrialState.RUNNING
        batch = []
        for frozen in self.study.get_trials(deepcopy=False, states=[running]):
            self._set_sampler(frozen.number)
            batch.append(self.optuna.trial.Trial(self.study, frozen._trial_id))
        enqueued = self.optuna.trial.TrialState.WAITING
        waiting = self.study.get_trials(deepcopy=False, states=[enqueued])
        count = len(self.study.get_trials(deepcopy=False)) - len(waiting)
        while len(batch) < size and count < trials:
            self._set_sampler(count)
            if self.sampler == "grid" and not waiting:
                self.study.enqueue_trial(_grid(self.space, self.sampler_seed)[count])
            waiting = []
            batch.append(self.study.ask())
            count += 1
        for trial in batch:
            self._set_sampler(trial.number)
            self._suggest(trial)
        return batch

    def _suggest(self, trial: Any) -> None:
        """Completes a trial's settings; those that it has stay."""
        for key in self.space.keys:
            found = self.space.ranges.get(key)
            if found is None:
                trial.suggest_categorical(key, self.space.lists[key])
            elif found.whole:
                trial.suggest_int(key, found.low, found.high, log=found.log)
            else:
                trial.suggest_float(key, found.low, found.high, log=found.log)

    def _train(self, runner: engines.Engine, batch: list[Any], shown: SweepProgress) -> None:
        """Trains a round, and tells what came of it in the order of the trials."""
        points: dict[int, Point] = {}
        invalid: dict[int, str] = {}
        known = {
            json.dumps(t.params, sort_keys=True): t
            for t in self.study.get_trials(
                deepcopy=False, states=[self.optuna.trial.TrialState.COMPLETE]
            )[::-1]
        }
        for trial in batch:
            if json.dumps(trial.params, sort_keys=True) in known:
                continue  # its runs would be the same to the bit
            try:
                point = self.space.point(trial.params)
                points[trial.number] = replace(point, label=f"trial-{trial.number:04d}")
            except _C.Error as error:
                invalid[trial.number] = str(error)
        runs = {
            point.folder(self.folder, seed): (point, seed)
            for point in points.values()
            for seed in self.space.seeds
        }
        shown.done += sum(Run(run).complete for run in runs)
        failures = run_all(runner, runs, self.folder, shown)
        self.failures |= failures
        seeds = len(self.space.seeds)
        for trial in batch:
            name, number = f"trial-{trial.number:04d}", trial.number
            if number in points:
                self._tell(trial, points[number], failures)
            elif number in invalid:
                shown.skip(seeds, f"{name}: {invalid[number]}", failed=True)
                self.failures[self.folder / name] = invalid[number]
                self._fail(trial, dict.fromkeys(self.space.seeds, invalid[number]))
            else:
                first = known[json.dumps(trial.params, sort_keys=True)]
                trial.set_user_attr("same_as", first.user_attrs.get("same_as", first.number))
                self.study.tell(trial, first.value)
                shown.skip(seeds, f"{name}: settings of trial {first.number}, not trained again")

    def _tell(self, trial: Any, point: Point, failures: dict[Path, str]) -> None:
        runs = {seed: point.folder(self.folder, seed) for seed in self.space.seeds}
        wrong = {seed: failures[run] for seed, run in runs.items() if run in failures}
        if STOPPED in wrong.values():
            return  # stays running: the next process continues it
        if wrong:
            self._fail(trial, wrong)
            return
        value = float(np.mean([objective(read_run(run), self.target) for run in runs.values()]))
        if math.isfinite(value):
            self.study.tell(trial, value)
        else:
            self._fail(trial, dict.fromkeys(runs, f"the objective is {value}"))

    def _fail(self, trial: Any, failures: dict[int, str]) -> None:
        trial.set_user_attr("failures", {str(seed): text for seed, text in failures.items()})
        self.study.tell(trial, state=self.optuna.trial.TrialState.FAIL)

    def _set_sampler(self, number: int) -> None:
        self.study.sampler = _make_sampler(self.optuna, self.sampler, self.sampler_seed, number)


def _make_sampler(optuna: Any, name: str, seed: int, number: int) -> Any:
    """The sampler for one trial."""
    mixed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0]) % 2**31
    samplers = optuna.samplers
    if name == "tpe":
        return samplers.TPESampler(seed=mixed)
    quiet = {
        "warn_independent_sampling": False,  # of the lists: the documentation says so
        "independent_sampler": samplers.RandomSampler(seed=mixed),
    }
    if name == "cmaes":
        return samplers.CmaEsSampler(seed=mixed, **quiet)
    if name == "gp":
        return samplers.GPSampler(seed=mixed, **quiet)
    if name == "qmc":  # one sequence for all trials
        with warnings.catch_warnings():  # that its interface may change
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return samplers.QMCSampler(
                seed=seed, scramble=True, warn_asynchronous_seeding=False, **quiet
            )
    return samplers.RandomSampler(seed=mixed)


def _grid(space: Space, seed: int) -> list[dict[str, Any]]:
    """All combinations of the lists and whole numbers, in a random order."""
    values: list[list[Any]] = []
    for key in space.keys:
        found: Range | None = space.ranges.get(key)
        if found is None:
            values.append(list(space.lists[key]))
            continue
        if not found.whole:
            raise _C.ConfigError(
                f"sampler grid: {key} is a range of fractions; give a list, or another sampler"
            )
        values.append(list(range(int(found.low), int(found.high) + 1)))
    count = math.prod(map(len, values))
    if count > MAX_GRID:
        raise _C.ConfigError(
            f"sampler grid: the space has {count} points, more than {MAX_GRID}; choose random"
        )
    points = [dict(zip(space.keys, one, strict=True)) for one in itertools.product(*values)]
    return [points[index] for index in np.random.default_rng(seed).permutation(count)]


def _check_options(trials: int, sampler: str, sampler_seed: int, target: float | str) -> None:
    if trials < 1:
        raise _C.ConfigError(f"trials must be at least 1, got {trials}")
    if sampler not in SAMPLERS:
        raise _C.ConfigError(f"sampler must be one of {', '.join(SAMPLERS)}, got {sampler!r}")
    if sampler_seed < 0:
        raise _C.ConfigError(f"sampler_seed must be at least 0, got {sampler_seed}")
    if isinstance(target, str) and target not in TARGETS:
        raise _C.ConfigError(
            f"target must be a return or one of {', '.join(TARGETS)}, got {target!r}"
        )


def _optuna(sampler: str) -> Any:
    try:
        import optuna
        from optuna.storages import journal  # noqa: F401

        if sampler == "cmaes":
            import cmaes  # noqa: F401
    except ModuleNotFoundError as error:
        raise _C.ConfigError(
            f"a search needs {error.name}, which is not installed: pip install 'dmamba[sweep]'"
        ) from None
    return optuna


def _refuse_busy(folder: Path) -> None:
    """Refuses runs that a killed search has left training: their trials would count as failed."""
    for path in folder.glob("trial-*/.lock"):
        try:
            os.close(locks.take(path))
        except locks.BusyError as busy:
            raise _C.Error(
                f"{path.parent}: {busy.holder} is training in this folder; wait for it, or stop "
                "it, and then continue the search"
            ) from None


def _open(optuna: Any, space: Space, folder: Path, made_with: dict[str, Any]) -> Any:
    """The folder's study, begun or continued.

    Raises:
        ConfigError: The folder has another sweep, or another search.
    """
    path, settings = folder / JOURNAL, folder / "run.yaml"
    searched = {key: space.written[key] for key in space.keys}
    wanted = {**made_with, "space": searched, "seeds": space.seeds}
    advice = "Remove the folder, or choose another with --output (output=)"
    if settings.is_file():
        if not path.is_file():
            raise _C.ConfigError(f"{folder} holds a sweep over a grid. {advice}")
        changed = changes(_C.Config.load(str(settings)), space.base, UNSHAPING)
        if changed:
            raise _C.ConfigError(f"{folder} was made with other settings: {changed}. {advice}")
    folder.mkdir(parents=True, exist_ok=True)
    backend = optuna.storages.journal.JournalFileBackend(str(path))
    study = optuna.create_study(
        storage=optuna.storages.JournalStorage(backend),
        study_name=_STUDY,
        direction="maximize",
        load_if_exists=True,
        sampler=optuna.samplers.RandomSampler(),
    )
    before = study.user_attrs.get("made_with")
    if before is None:
        study.set_user_attr("made_with", wanted)
    elif before != json.loads(json.dumps(wanted)):
        changed = "; ".join(
            f"{key} was {before[key]!r}, now {wanted[key]!r}"
            for key in wanted
            if before[key] != json.loads(json.dumps(wanted[key]))
        )
        raise _C.ConfigError(f"{folder} was searched otherwise: {changed}. {advice}")
    write_text(settings, space.base.to_yaml())
    return study
