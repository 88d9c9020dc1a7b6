"""Training: the loop around the C++ trainer that saves, evaluates, reports and can be interrupted.

The trainer works in bursts of a fraction of a second. Between two bursts Python draws the progress,
runs callbacks, and sees signals. Bursts end exactly on the steps where a checkpoint or an
evaluation is due, so neither depends on the machine's speed.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from dmamba import _C, data, episodes, evaluation, nn, plots, replays, suites, summary
from dmamba.beside import Evaluator
from dmamba.callbacks import Callback
from dmamba.progress import bar
from dmamba.run import Run, RunWriter
from dmamba.signals import NotedSignals

CONFIG_FOLDER = Path(__file__).parent / "configs" / "experiment"
BURST_SECONDS = 0.2
EVALUATE = ("auto", "between", "beside")  # where evaluations take place

# What may change when a run is continued: nothing that has shaped the steps already done.
# The device is the machine's matter: the run goes on elsewhere, to the same bits only on the same
# device.
UNSHAPING = (
    "training.checkpoint_every",
    "training.keep_checkpoints",
    "training.device",
    "training.graph",
    "training.data",
    "dataset.cache",
)
RESUMABLE = (*UNSHAPING, "evaluation.")


class Interrupted(KeyboardInterrupt):
    """A run was stopped by a signal, and can be resumed.

    Attributes:
        signum: The signal's number.
        folder: The run's folder.
    """

    def __init__(self, signum: int, folder: Path) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum
        self.folder = folder


def load_config(
    config: str | os.PathLike[str] | _C.Config | dict[str, Any],
    overrides: Iterable[str] | None = None,
) -> _C.Config:
    """A configuration from its name, file, dict, or object, with overrides applied.

    Args:
        config: A recipe that comes with the package (``hopper-sample``), the path of a YAML file,
            a dict of sections, or a Config, which is copied.
        overrides: ``key=value`` texts, as on the command line.

    Raises:
        ConfigError: Unknown name, key, type or value.
    """
    if isinstance(config, _C.Config):
        loaded = config.copy()
    elif isinstance(config, dict):
        # JSON is YAML, so a dict goes through the same strict reader as a file.
        loaded = _C.Config.parse(json.dumps(config, allow_nan=False), "<dict>")
    else:
        path = _config_path(os.fspath(config))
        loaded = _C.Config.load(str(path))
        if loaded.name == "run":  # the default; a run in runs/run-seed0 says nothing
            loaded.name = path.stem
    loaded.override(list(overrides or ()))
    return loaded


def train(
    config: str | os.PathLike[str] | _C.Config | dict[str, Any] | None,
    overrides: Iterable[str] | None = None,
    *,
    dataset: _C.TrajectoryStore | _C.FrameStore | None = None,
    output: str | os.PathLike[str] | None = None,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
    evaluate: bool | str = True,
) -> Run:
    """Trains a model, and evaluates it as its configuration says.

    Args:
        config: What :func:`load_config` takes. None only with ``resume`` and ``output``.
        overrides: ``key=value`` texts.
        dataset: A store to train on in place of the file that ``dataset.path`` names, such as
            :func:`dmamba.data.from_episodes` makes.
        output: The run's folder; None: ``runs/NAME-seedSEED``.
        resume: Continue the run in the folder; it ends with the same bits as one that was never
            stopped (on the same device). Only the device, graph, data, checkpoint and evaluation
            settings may differ from those it began with.
        callbacks: Hooks; see :class:`dmamba.callbacks.Callback`.
        progress: Whether to show bars and print the result.
        evaluate: ``between`` stops the training for every evaluation; ``beside`` evaluates in a
            process of its own while the training goes on, with the same numbers; ``auto`` or True
            chooses: ``beside`` on a GPU where there are evaluations before the end. False: none.

    Returns:
        The finished run.

    Raises:
        ConfigError: A configuration that cannot be used, or that differs from the resumed run's.
        DataError: A dataset that cannot be used, or does not fit the environment.
        CheckpointError: Nothing to resume, or a damaged checkpoint.
        Error: The folder is in use or holds another run.
        KeyboardInterrupt: Stopped by SIGINT or SIGTERM, after writing a checkpoint.

    Example:
        >>> run = dmamba.train("hopper-sample", overrides=["training.steps=1000", "seed=1"])
        >>> run.summary()["last"]["targets"][0]["return_mean"]
    """
    if isinstance(evaluate, str) and evaluate not in EVALUATE:
        raise _C.ConfigError(f"evaluate must be one of {', '.join(EVALUATE)}, got {evaluate!r}")
    loaded, folder = _plan(config, list(overrides or ()), output, resume)
    store = dataset
    if store is None:
        store = data.load_configured(loaded.dataset, progress=progress)
    else:
        loaded.dataset.path = episodes.config_path(store)
    resolved = data.resolve(loaded, store)
    if evaluate:
        check_environment(resolved, store)
    if resume:
        _check_unchanged(Run(folder).config, resolved, folder)
    model, trainer = _make_trainer(resolved, store)  # what cannot train leaves no folder behind
    with RunWriter(folder, resume=resume) as writer:
        session = _Session(resolved, store, writer, tuple(callbacks), progress, evaluate)
        session.prepare(model, trainer)
        session.execute()
    return writer.run


def _make_trainer(
    config: _C.Config, store: _C.TrajectoryStore | _C.FrameStore
) -> tuple[nn.DMamba | nn.AtariDMamba, _C.Trainer]:
    """A model as the seed makes it, and its trainer at step 0."""
    model: nn.DMamba | nn.AtariDMamba
    with torch.random.fork_rng(devices=[]):  # the caller's generator is left as it was
        torch.manual_seed(config.seed)
        if isinstance(store, _C.FrameStore):
            actions = replays.num_actions(store, config.dataset.environment)
            model = nn.AtariDMamba(actions, config=config.model)
        else:
            model = nn.DMamba(store.state_dim, store.act_dim, config=config.model)
    return model, _C.Trainer(config, store, model.cpp_module)


class _Session:
    """One process's share of a run: from where it starts or continues to its end."""

    def __init__(
        self,
        config: _C.Config,
        store: _C.TrajectoryStore | _C.FrameStore,
        writer: RunWriter,
        callbacks: tuple[Callback, ...],
        progress: bool,
        evaluate: bool | str,
    ) -> None:
        self.config = config
        self.store = store
        self.writer = writer
        self.run = writer.run
        self.callbacks = callbacks
        self.progress = progress
        self.evaluate = evaluate
        self.seconds = {"training": 0.0, "evaluation": 0.0, "waiting": 0.0}

    def prepare(self, model: nn.DMamba | nn.AtariDMamba, trainer: _C.Trainer) -> None:
        """Loads the latest checkpoint if there is one, and opens the logs."""
        self.model = model
        self.trainer = trainer
        latest = self.run.latest_checkpoint()
        if latest is not None:
            self.trainer.load(str(latest[1]))
        self.first_step = self.trainer.step
        self.saved_step = self.first_step
        self.evaluated = {r["checkpoint_step"] for r in self.run.evaluations()}
        self.evaluated = {step for step in self.evaluated if step <= self.first_step}
        self.writer.start(self.config, self.first_step)
        every, steps = self.config.evaluation.every, self.config.training.steps
        pays = trainer.device != "cpu" and 0 < every < steps
        self.beside = self.evaluate == "beside" or (self.evaluate in (True, "auto") and pays)
        self.evaluator = Evaluator(trainer.device, self._evaluation_settings())

    def execute(self) -> None:
        """Trains to the end, or until a signal; then says what came of it."""
        if self.progress:
            device = self.trainer.device
            name = f" ({evaluation.device_name(device)})" if device != "cpu" else ""
            print(
                f"{self.config.name}: training on {device}{name}, {self.config.training.precision}",
                flush=True,
            )
        with _Signals(self.run.folder) as signals:
            self._call("on_start")
            try:
                if self.evaluate:
                    self._make_up(signals)
                self._loop(signals)
            except Interrupted as stop:
                self._save()
                if self.progress:
                    print(
                        f"\n{stop} at step {self.trainer.step} of {self.config.training.steps}; "
                        f"continue with: dmamba train --resume {self.run.folder}",
                        flush=True,
                    )
                raise
            finally:
                self.evaluator.close()
        self.writer.write_summary(self._summary())
        plots.plot_run(self.run, float(self.store.episode_returns.mean()))
        self._call("on_end")
        if self.progress:
            print(summary.format_run(self.run), flush=True)

    def _loop(self, signals: _Signals) -> None:
        steps = self.config.training.steps
        shown = bar(steps, "training", "step", initial=self.first_step, enabled=self.progress)
        with shown:
            while self.trainer.step < steps:
                self._save_and_evaluate(signals)  # a run that continues may owe an evaluation
                signals.check()
                self._burst(shown)
                signals.check()  # first: a signal to all processes ends the evaluation's, too
                self._collect()
        self._save_and_evaluate(signals)
        self._await_evaluations(signals)

    def _save_and_evaluate(self, signals: _Signals) -> None:
        """What is due at this step. Saving comes first: a kill in an evaluation costs no steps."""
        step = self.trainer.step
        evaluates = self._evaluation_due(step)
        if evaluates or self._due(step, self.config.training.checkpoint_every):
            self._save()
        if evaluates:
            self._evaluate(signals)

    def _burst(self, shown: Any) -> None:
        started, before = time.perf_counter(), self.trainer.step
        rows = self.trainer.run(seconds=BURST_SECONDS, max_steps=self._next_stop() - before)
        elapsed = time.perf_counter() - started
        self.seconds["training"] += elapsed
        done = self.trainer.step - before
        for row in rows:
            self.writer.add_row(row, done / elapsed)
            self._call("on_log", row)
        if rows:
            row = rows[-1]
            shown.set_postfix_str(
                f"loss {row['training/loss']:.4f}, lr {row['training/learning_rate']:.1e}",
                refresh=False,
            )
        shown.update(done)

    def _next_stop(self) -> int:
        """The next step at which something other than training is due."""
        step, steps = self.trainer.step, self.config.training.steps
        stops = [steps]
        for every in (self.config.training.checkpoint_every, self.config.evaluation.every):
            if every > 0:
                stops.append((step // every + 1) * every)
        return min(stops)

    def _due(self, step: int, every: int) -> bool:
        return step == self.config.training.steps or (every > 0 and step > 0 and step % every == 0)

    def _evaluation_due(self, step: int) -> bool:
        due = self._due(step, self.config.evaluation.every)
        return bool(self.evaluate) and due and step not in self.evaluated

    def _save(self) -> None:
        if self.saved_step == self.trainer.step:
            return
        path = self.writer.save_checkpoint(self.trainer, self.config.training.keep_checkpoints)
        self.saved_step = self.trainer.step
        self._call("on_checkpoint", path)

    def _evaluate(self, signals: _Signals) -> None:
        """Evaluates the model as it is, just saved: now, or from a snapshot beside the training."""
        if self.beside:
            latest = self.run.latest_checkpoint()
            assert latest is not None and latest[0] == self.trainer.step
            self._submit(self.trainer.step, self.writer.snapshot(latest[1]))
            return
        info = {
            "step": self.trainer.step,
            "state_mean": self.trainer.state_mean,
            "state_std": self.trainer.state_std,
            "rtg_scale": self.config.dataset.rtg_scale,
        }
        self._evaluate_now(self.model, info, signals)

    def _make_up(self, signals: _Signals) -> None:
        """Evaluations that an earlier process of this run left undone."""
        for step, snapshot in self.run.snapshots():
            if self.beside:
                self._submit(step, snapshot)
            else:
                self._evaluate_now(*nn.load(snapshot, self.trainer.device), signals)

    def _submit(self, step: int, snapshot: Path) -> None:
        self.evaluator.submit(snapshot)
        self.evaluated.add(step)

    def _evaluate_now(self, model: nn.DMamba, info: dict[str, Any], signals: _Signals) -> None:
        result = evaluation.evaluate_model(
            model,
            info,
            **self._evaluation_settings(),
            progress=self.progress,
            check=signals.check,
        )
        self._record(result)

    def _evaluation_settings(self) -> dict[str, Any]:
        settings = self.config.evaluation
        return {
            "environment": self.config.dataset.environment,
            "targets": settings.targets,
            "episodes": settings.episodes,
            "policy": settings.policy,
            "seed": settings.seed,
            "confidence": settings.confidence,
            "temperature": settings.temperature,
            "rtg_rewards": settings.rtg_rewards,
            "sticky_actions": settings.sticky_actions,
            "max_episode_length": self.config.dataset.max_episode_length,
            "dataset": self.config.dataset.path,
        }

    def _collect(self, wait_seconds: float = 0.0) -> None:
        try:
            for result in self.evaluator.results(wait_seconds):
                self._record(result)
        except _C.Error:
            self._save()  # the steps since the last checkpoint are good
            raise

    def _await_evaluations(self, signals: _Signals) -> None:
        started, total = time.perf_counter(), self.evaluator.pending
        with bar(total, "evaluating", "evaluation", enabled=self.progress and total > 0) as shown:
            while self.evaluator.pending:
                signals.check()
                self._collect(BURST_SECONDS)
                shown.update(total - self.evaluator.pending - shown.n)
        self.seconds["waiting"] += time.perf_counter() - started

    def _record(self, result: dict[str, Any]) -> None:
        self.seconds["evaluation"] += result["time_seconds"]
        self.evaluated.add(result["checkpoint_step"])
        self.writer.add_evaluation(result)
        self._call("on_evaluation", result)

    def _summary(self) -> dict[str, Any]:
        return summary.summarize_run(
            self.run,
            self.store,
            {
                "first_step": self.first_step,
                "training_seconds": self.seconds["training"],
                "evaluation_seconds": self.seconds["evaluation"],
                "waiting_seconds": self.seconds["waiting"],
                "evaluated": "beside" if self.beside else "between",
            },
            evaluation.device_name(self.trainer.device),
            sum(parameter.numel() for parameter in self.model.parameters()),
            summary.peak_memory(self.trainer.device),
        )

    def _call(self, hook: str, *arguments: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, hook)(self.run, *arguments)


class _Signals(NotedSignals):
    """While it is entered, SIGINT and SIGTERM are noted, and raised where the loop can stop."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def check(self) -> None:
        """Raises Interrupted if a signal has come."""
        if self.received:
            raise Interrupted(self.received, self.folder)


def _config_path(name: str) -> Path:
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if path.name == name and not path.suffix:
        packaged = CONFIG_FOLDER / f"{name}.yaml"
        if packaged.is_file():
            return packaged
        known = ", ".join(recipes())
        raise _C.ConfigError(f"no configuration named {name!r}; there are {known}, or give a file")
    raise _C.ConfigError(f"{name}: no such configuration file")


def recipes() -> list[str]:
    """Names of the configurations that come with the package."""
    return sorted(path.stem for path in CONFIG_FOLDER.glob("*.yaml") if path.stem[0] != "_")


def _plan(
    config: str | os.PathLike[str] | _C.Config | dict[str, Any] | None,
    overrides: list[str],
    output: str | os.PathLike[str] | None,
    resume: bool,
) -> tuple[_C.Config, Path]:
    """The configuration to train with, and the folder."""
    if config is not None:
        loaded = load_config(config, overrides)
        folder = Path(output) if output else Path("runs") / f"{loaded.name}-seed{loaded.seed}"
        return loaded, folder
    if not (resume and output):
        raise _C.ConfigError("no configuration given: name one, or the run folder to resume")
    folder = Path(output)
    return load_config(Run(folder).config, overrides), folder


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of a nested dict, such as a configuration's, by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def changes(saved: _C.Config, wanted: _C.Config, allowed: tuple[str, ...]) -> str:
    """What differs, as text; keys that begin with one of ``allowed`` do not count."""
    before, now = flatten(saved.to_dict()), flatten(wanted.to_dict())
    return "; ".join(
        f"{key} was {before[key]!r}, now {now[key]!r}"
        for key in now
        if now[key] != before[key] and not key.startswith(allowed)
    )


def _check_unchanged(saved: _C.Config, wanted: _C.Config, folder: Path) -> None:
    changed = changes(saved, wanted, RESUMABLE)
    if changed:
        raise _C.ConfigError(
            f"{folder}: a resumed run keeps its configuration, but {changed}. "
            "Leave that out, or start a new run in another folder"
        )


def check_environment(config: _C.Config, store: _C.TrajectoryStore | _C.FrameStore) -> None:
    """Finds out before the training, not after it, that the evaluation cannot work."""
    environment = config.dataset.environment
    if not environment:
        raise _C.ConfigError(
            f"{store.name}: neither file nor configuration names an environment; set "
            "dataset.environment=ID, or train without evaluation (evaluate=False, --no-evaluate)"
        )
    suites.check_store(environment, store, config.dataset.max_episode_length)
