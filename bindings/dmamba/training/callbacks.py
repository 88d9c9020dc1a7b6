"""The hooks of a training run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dmamba import _C
from dmamba.common.files import read_json, write_json
from dmamba.runs import Run, evaluation_scalars


class Callback:
    """Base of a callback: override what you need, and pass instances to :func:`dmamba.train`.

    Callbacks run in Python between two bursts of training. An exception ends the training; the run
    can be resumed from its latest checkpoint.

    Example:
        >>> class Print(dmamba.Callback):
        ...     def on_log(self, run, row):
        ...         print(row["step"], row["training/loss"])
        >>> dmamba.train("hopper-sample", callbacks=[Print()])
    """

    def on_start(self, run: Run) -> None:
        """Training is about to start, or to continue."""

    def on_log(self, run: Run, row: dict[str, Any]) -> None:
        """A row of metrics.csv was written: ``step``, ``training/loss``, and its other columns."""

    def on_checkpoint(self, run: Run, path: Path) -> None:
        """A checkpoint folder is complete.

        Once: where the run was killed in here, a run that continues does not call it for this
        checkpoint again. Who must not miss one looks at ``run.latest_checkpoint()`` in on_start.
        """

    def on_evaluation(self, run: Run, result: dict[str, Any]) -> None:
        """An evaluation is done; ``result`` is what :func:`dmamba.evaluate` returns."""

    def on_end(self, run: Run) -> None:
        """Training and evaluation are done, and the summary is written."""

    def on_exit(self, run: Run, error: BaseException | None) -> None:
        """Training is over, in whatever way: the last hook of all.

        Args:
            run: The run.
            error: What ended it early, a KeyboardInterrupt for a signal; None after its end.
        """


class WandbCallback(Callback):
    """Shows a run on Weights & Biases, beside the TensorBoard events that every run has.

    A run that is resumed goes on under the same id, which ``wandb.json`` in its folder keeps; what
    it had logged after its last checkpoint is logged again with the same values. Without a network,
    set WANDB_MODE=offline.

    Args:
        project: Where it is shown.
        entity: User or team; None: the default one.
        name: None: the run folder's.
        **options: Other arguments of ``wandb.init``, such as ``tags``, ``group`` and ``mode``.

    Raises:
        Error: wandb is missing.

    Example:
        >>> dmamba.train("hopper-sample", callbacks=[dmamba.WandbCallback(project="dmamba")])
    """

    def __init__(
        self,
        project: str = "dmamba",
        *,
        entity: str | None = None,
        name: str | None = None,
        **options: Any,
    ) -> None:
        try:
            import wandb
        except ImportError as error:
            raise _C.Error(f"WandbCallback needs wandb ({error}): pip install wandb") from error
        self._wandb = wandb
        self._project, self._entity, self._name = project, entity, name
        self._options = options
        self._logger: Any = None

    def on_start(self, run: Run) -> None:
        """Begins or resumes the run there."""
        kept = run.folder / "wandb.json"
        known = read_json(kept) if kept.is_file() else {}
        arguments = {
            "project": self._project,
            "entity": self._entity,
            "name": self._name or run.folder.name,
            "dir": str(run.folder),
            "config": run.config.to_dict(),
            "id": known.get("id"),
            "resume": "allow",
        }
        self._logger = self._wandb.init(**{**arguments, **self._options})
        # Steps may come twice after a kill; wandb's own count would refuse them.
        self._logger.define_metric("step")
        self._logger.define_metric("training/*", step_metric="step")
        self._logger.define_metric("evaluation/*", step_metric="step")
        write_json(kept, {"id": self._logger.id, "project": self._project, "entity": self._entity})

    def on_log(self, run: Run, row: dict[str, Any]) -> None:
        """Logs a row of metrics.csv."""
        self._logger.log(dict(row))

    def on_evaluation(self, run: Run, result: dict[str, Any]) -> None:
        """Logs mean return, length and score of each target."""
        logged: dict[str, Any] = {"step": result["checkpoint_step"]}
        for row in result["targets"]:
            logged.update(evaluation_scalars(result["environment"], row))
        self._logger.log(logged)

    def on_end(self, run: Run) -> None:
        """Copies the last evaluation into the run's summary there."""
        last = run.summary()["last"] or {}
        for row in last.get("targets", ()):
            for key in ("return_mean", "score_mean"):
                if row.get(key) is not None:
                    self._logger.summary[f"last/target_{row['target']:g}_{key}"] = row[key]

    def on_exit(self, run: Run, error: BaseException | None) -> None:
        """Ends the run there, as failed where it was."""
        if self._logger is not None:
            self._logger.finish(exit_code=0 if error is None else 1)
            self._logger = None
