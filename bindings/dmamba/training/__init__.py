"""Training: the loop around the C++ trainer that saves, evaluates, reports and can be interrupted.

The trainer works in bursts of a fraction of a second. Between two bursts Python draws the progress,
runs callbacks, and sees signals. Bursts end exactly on the steps where a checkpoint or an
evaluation is due, so neither depends on the machine's speed.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from dmamba import _C, evaluation, nn
from dmamba.common.ranks import BURST_SECONDS, Team, join
from dmamba.common.signals import Interrupted, StopSignals
from dmamba.configuration import load_config
from dmamba.data.pretraining import Part
from dmamba.display.progress import bar, note
from dmamba.nn.external import ExternalModel, Factory, Model
from dmamba.runs import Run, RunWriter, step_of
from dmamba.training import beginning, choosing, summary, transfer
from dmamba.training.beside import Evaluator, explain
from dmamba.training.callbacks import Callback

EVALUATE = ("auto", "between", "beside")  # where evaluations take place


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
    model: torch.nn.Module | Factory | None = None,
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
        callbacks: Hooks; see :class:`dmamba.training.callbacks.Callback`.
        progress: Whether to show bars and print the result.
        evaluate: ``between`` stops the training for every evaluation; ``beside`` evaluates in a
            process of its own while the training goes on, with the same numbers; ``auto`` or True
            chooses: ``beside`` on a GPU where there are evaluations before the end. False: none.
        model: In place of the built-in one, a module of your own, or a callable
            ``(state_dim, act_dim, config) -> module`` (``config`` is the section ``model``), which
            is called with torch's generator at ``seed``. Its ``forward(states, actions,
            returns_to_go, timesteps, mask)`` has the arguments of :meth:`dmamba.nn.DMamba.forward`
            and returns actions (batch, K, act_dim). A module begins with the parameters that it
            has, and is trained in place. See docs/own-model.md.

    Returns:
        The finished run.

    Raises:
        ConfigError: A configuration that cannot be used, or that differs from the resumed run's.
        DataError: A dataset that cannot be used, or does not fit the environment.
        CheckpointError: Nothing to resume, or a damaged checkpoint.
        Error: The folder is in use or holds another run.
        NotFiniteError: The loss or a gradient is not finite, more often than
            ``training.skip_nan_batches`` allows; checkpoints are as they were.
        KeyboardInterrupt: Stopped by SIGINT or SIGTERM, after writing a checkpoint.

    Example:
        >>> run = dmamba.train("hopper-sample", overrides=["training.steps=1000", "seed=1"])
        >>> run.summary()["last"]["targets"][0]["return_mean"]
    """
    if isinstance(evaluate, str) and evaluate not in EVALUATE:
        raise _C.ConfigError(f"evaluate must be one of {', '.join(EVALUATE)}, got {evaluate!r}")
    with join() as team:
        loaded, folder = team.together(lambda: _plan(config, list(overrides or ()), output, resume))
        if team.world > 1:
            beginning.check_one_process(loaded)
        if dataset is None:
            shown = progress and team.leads
            stores = team.in_turn(lambda: beginning.load_stores(loaded, progress=shown))
        else:
            stores = beginning.given_store(loaded, dataset)
        resolved, parts = team.together(lambda: _resolve(loaded, stores, folder, evaluate, resume))
        team.begin(resolved, stores[0])
        latest = Run(folder).latest_checkpoint() if resume else None
        resumed = latest[1] if latest else None
        # What cannot train leaves no folder behind.
        models, trainer, began = team.together(
            lambda: beginning.make_trainer(resolved, parts, resumed, team.core, model)
        )
        beginning.check_external_evaluation(models, resolved, evaluate)
        if not team.leads:
            return _follow(trainer, folder, team)
        with RunWriter(folder, resume=resume) as writer:
            session = _Session(resolved, parts, writer, tuple(callbacks), progress, evaluate, team)
            session.prepare(models, trainer, began)
            session.execute_all()
        return writer.run


def _resolve(
    loaded: _C.Config,
    stores: list[_C.TrajectoryStore | _C.FrameStore],
    folder: Path,
    evaluate: bool | str,
    resume: bool,
) -> tuple[_C.Config, list[Part]]:
    """The configuration with what the data fill in and its parts, if the run can be done."""
    resolved, parts = beginning.resolve(loaded, stores)
    if evaluate:
        beginning.check_evaluation(parts, evaluate)
    beginning.check_choice(resolved, evaluate)
    if resume:
        beginning.check_unchanged(Run(folder).config, resolved, folder)
    return resolved, parts


def _follow(trainer: _C.Trainer, folder: Path, team: Team) -> Run:
    """What a rank does that does not lead."""
    with StopSignals(folder) as signals:
        try:
            team.connect(trainer)
            team.follow(trainer, signals)
        except _C.LostRankError as lost:
            raise _C.LostRankError(team.explain(lost)) from lost
        except _C.NotFiniteError as error:
            raise _not_finite(error, Run(folder)) from error
    return Run(folder)


def _not_finite(error: _C.NotFiniteError, run: Run) -> _C.NotFiniteError:
    """The error with where to go on from."""
    latest = run.latest_checkpoint()
    if latest is None:
        return _C.NotFiniteError(f"{error}. There is no checkpoint yet")
    limit = max(10, 2 * run.config.training.skip_nan_batches)
    return _C.NotFiniteError(
        f"{error}. The last good checkpoint is {latest[1]}; continue from it with: dmamba train "
        f"--resume {run.folder} training.skip_nan_batches={limit}, or begin a new run with a lower "
        f"rate and transfer.init_from={latest[1]}"
    )


class _Session:
    """One process's share of a run: from where it starts or continues to its end."""

    def __init__(
        self,
        config: _C.Config,
        parts: list[Part],
        writer: RunWriter,
        callbacks: tuple[Callback, ...],
        progress: bool,
        evaluate: bool | str,
        team: Team,
    ) -> None:
        self.config = config
        self.parts = parts
        self.writer = writer
        self.run = writer.run
        self.callbacks = callbacks
        self.progress = progress
        self.evaluate = evaluate
        self.team = team
        self.seconds = {"training": 0.0, "evaluation": 0.0, "choosing": 0.0, "waiting": 0.0}

    def prepare(
        self,
        models: list[Model],
        trainer: _C.Trainer,
        began: dict[str, Any] | None,
    ) -> None:
        """Loads the latest checkpoint if there is one, and opens the logs.

        Args:
            models: At step 0, one a part.
            trainer: Theirs.
            began: What of them was taken from another run, if anything was.
        """
        self.models = models
        self.trainer = trainer
        latest = self.run.latest_checkpoint()
        if latest is not None:
            self.trainer.load(str(latest[1]))
        self.team.connect(self.trainer)
        self.first_step = self.trainer.step
        self.saved_step = self.first_step
        self.writer.start(self.config, self.first_step)
        self.choice = beginning.make_choice(self.config, self.parts[0].store, models[0], trainer)
        if self.choice:
            self.writer.write_contexts(self.choice.decisions)
        self.writers = [
            self.writer.part(part.name, part.config, self.first_step) for part in self.parts
        ]
        done = [{r["checkpoint_step"] for r in w.run.evaluations()} for w in self.writers]
        self.evaluated = set.intersection(*done)
        if began is not None:
            self.writer.write_transfer(began)
            if self.progress:
                print(transfer.describe(began), flush=True)
        if began is not None or (latest is None and isinstance(models[0], ExternalModel)):
            self.saved_step = -1
            self._save()  # from here on the run says by itself what it began with
        every, steps = self.config.evaluation.every, self.config.training.steps
        pays = trainer.device != "cpu" and 0 < every < steps
        self.beside = self.evaluate == "beside" or (self.evaluate in (True, "auto") and pays)
        self.beside = self.beside and len(self.parts) == 1 and self._is_known_elsewhere()
        self.evaluator = Evaluator(trainer.device, evaluation.settings(self.config))

    def _is_known_elsewhere(self) -> bool:
        """Whether another process can make the model."""
        return not isinstance(self.models[0], ExternalModel)

    def execute_all(self) -> None:
        """:meth:`execute`, and the last hook however it ends."""
        try:
            self.execute()
        except BaseException as error:
            self._call("on_exit", error)
            raise
        self._call("on_exit", None)

    def execute(self) -> None:
        """Trains to the end, or until a signal; then says what came of it."""
        if self.progress:
            device = self.trainer.device
            name = f" ({evaluation.device_name(device)})" if device != "cpu" else ""
            print(
                f"{self.config.name}: training on {device}{name}, {self.config.training.precision}",
                flush=True,
            )
        with StopSignals(self.run.folder) as signals:
            self._call("on_start")
            try:
                if self.evaluate:
                    self._make_up(signals)
                self._loop(signals)
            except _C.LostRankError as lost:
                raise self._lost(self.team.explain(lost)) from lost
            except _C.NotFiniteError as error:
                raise _not_finite(error, self.run) from error
            except Interrupted as stop:
                self._save()
                self.team.end(stop.signum)
                if self.progress:
                    print(
                        f"\n{stop} at step {self.trainer.step} of {self.config.training.steps}; "
                        f"continue with: dmamba train --resume {self.run.folder}",
                        flush=True,
                    )
                raise
            finally:
                self.evaluator.close()
        times = {
            "first_step": self.first_step,
            "training_seconds": self.seconds["training"],
            "evaluation_seconds": self.seconds["evaluation"],
            "choosing_seconds": self.seconds["choosing"],
            "waiting_seconds": self.seconds["waiting"],
            "evaluated": "beside" if self.beside else "between",
        }
        summary.write_summaries(
            self.writer,
            self.writers,
            self.parts,
            [sum(p.numel() for p in model.parameters()) for model in self.models],
            times,
            evaluation.device_name(self.trainer.device),
            summary.peak_memory(self.trainer.device),
        )
        self._call("on_end")
        if self.progress:
            for writer in self.writers:
                print(summary.format_run(writer.run), flush=True)
        self.team.end()

    def _lost(self, reason: str) -> _C.LostRankError:
        """The error of a run whose other ranks are gone; what can be saved is saved."""
        if self.trainer.device == "cpu":  # a GPU may be in the middle of a step
            self._save()
        latest = self.run.latest_checkpoint()
        advice = f"continue with --resume {self.run.folder}, from step {latest[0] if latest else 0}"
        return _C.LostRankError(f"{reason}; {advice}")

    def _loop(self, signals: StopSignals) -> None:
        steps = self.config.training.steps
        shown = bar(steps, "training", "step", initial=self.first_step, enabled=self.progress)
        with shown:
            while self.trainer.step < steps:
                self._save_and_evaluate(signals)  # a run that continues may owe an evaluation
                signals.check()
                self._burst(shown, signals)
                signals.check()  # first: a signal to all processes ends the evaluation's, too
                self._collect()
        self._save_and_evaluate(signals)
        self._await_evaluations(signals)

    def _save_and_evaluate(self, signals: StopSignals) -> None:
        """What is due at this step. Saving comes first: a kill in an evaluation costs no steps."""
        step = self.trainer.step
        self._choose(step, signals)  # first: a checkpoint has what was chosen at its step
        evaluates = self._evaluation_due(step)
        if evaluates or self._due(step, self.config.training.checkpoint_every):
            self._save()
        if evaluates:
            self._evaluate(signals)

    def _choose(self, step: int, signals: StopSignals) -> None:
        """Has the context length of the coming steps decided, where that is due."""
        if self.choice is None or not self.choice.due(step):
            return
        started = time.perf_counter()
        decision = self.choice.decide(self.trainer, signals.check)
        self.seconds["choosing"] += time.perf_counter() - started
        self.saved_step = -1  # a checkpoint of this step that is there already lacks the decision
        self.writer.write_contexts(self.choice.decisions)
        what = "loss" if self.config.training.context == "schedule" else "return"
        note(choosing.format_decision(decision, what), enabled=self.progress)

    def _burst(self, shown: Any, signals: StopSignals) -> None:
        started, before = time.perf_counter(), self.trainer.step
        rows = self.team.burst(self.trainer, self._next_stop() - before, signals)
        elapsed = time.perf_counter() - started
        self.seconds["training"] += elapsed
        done = self.trainer.step - before
        for row in rows:
            self.writer.add_row(row, done / elapsed)
            if row["training/skipped"]:
                note(
                    f"up to step {row['step']}: loss or gradient was not finite with "
                    f"{row['training/skipped']} batches, which were passed over",
                    enabled=self.progress,
                )
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
        decision = self.choice.next_step(step) if self.choice else None
        return min([*stops, decision or steps])

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

    def _evaluate(self, signals: StopSignals) -> None:
        """Evaluates the model as it is, just saved: now, or from a snapshot beside the training."""
        if self.beside:
            latest = self.run.latest_checkpoint()
            assert latest is not None and latest[0] == self.trainer.step
            self._submit(self.trainer.step, self.writer.snapshot(latest[1]))
            return
        for model, info, part, writer in zip(
            self.models, self._infos(), self.parts, self.writers, strict=True
        ):
            known = {result["checkpoint_step"] for result in writer.run.evaluations()}
            if self.trainer.step not in known:  # an earlier process may have got through some sets
                self._evaluate_now(model, info, part, writer, signals)
        self.evaluated.add(self.trainer.step)

    def _infos(self) -> list[dict[str, Any]]:
        """What an evaluation needs beside the model, of each part."""
        trainer = self.trainer
        if not trainer.sets:
            return [evaluation.trainer_info(trainer, self.config)]
        return [
            evaluation.trainer_info(trainer, part.config)
            | {key: own[key] for key in ("state_mean", "state_std")}
            for part, own in zip(self.parts, trainer.sets, strict=True)
        ]

    def _make_up(self, signals: StopSignals) -> None:
        """Evaluations that an earlier process of this run left undone."""
        for step, snapshot in self.run.snapshots():
            if self.beside:
                self._submit(step, snapshot)
            else:
                model, info = nn.load(snapshot, self.trainer.device)
                self._evaluate_now(model, info, self.parts[0], self.writer, signals)
                self.evaluated.add(step)

    def _submit(self, step: int, snapshot: Path) -> None:
        self.evaluator.submit(snapshot)
        self.evaluated.add(step)

    def _evaluate_now(
        self,
        model: Model,
        info: dict[str, Any],
        part: Part,
        writer: RunWriter,
        signals: StopSignals,
    ) -> None:
        try:
            result = evaluation.evaluate_model(
                model,
                info,
                **evaluation.settings(part.config),
                progress=self.progress,
                check=signals.check,
            )
        except Exception as error:  # the training is none the worse for it
            self._record_failure(int(info["step"]), explain(error), part, writer)
        else:
            self._record(result, writer)

    def _collect(self, wait_seconds: float = 0.0) -> None:
        for snapshot, result in self.evaluator.results(wait_seconds):
            if isinstance(result, str):
                step = step_of(snapshot)
                self._record_failure(step, result, self.parts[0], self.writer)
            else:
                self._record(result, self.writer)

    def _await_evaluations(self, signals: StopSignals) -> None:
        started, total = time.perf_counter(), self.evaluator.pending
        with bar(total, "evaluating", "evaluation", enabled=self.progress and total > 0) as shown:
            while self.evaluator.pending:
                signals.check()
                self._collect(BURST_SECONDS)
                shown.update(total - self.evaluator.pending - shown.n)
        self.seconds["waiting"] += time.perf_counter() - started

    def _record(self, result: dict[str, Any], writer: RunWriter) -> None:
        self.seconds["evaluation"] += result["time_seconds"]
        writer.add_evaluation(result)
        self._call("on_evaluation", result)

    def _record_failure(self, step: int, error: str, part: Part, writer: RunWriter) -> None:
        """Keeps, and says, that an evaluation has come to nothing; the training goes on."""
        environment = part.config.dataset.environment
        writer.add_failed_evaluation(step, environment, error)
        warnings.warn(f"step {step} could not be evaluated: {error}", stacklevel=2)

    def _call(self, hook: str, *arguments: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, hook)(self.run, *arguments)


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
