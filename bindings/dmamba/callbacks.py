"""The hooks of a training run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dmamba.run import Run


class Callback:
    """Base of a callback: override what you need, and pass instances to :func:`dmamba.train`.

    Callbacks run in Python between two bursts of training. An exception ends the training; the run
    can be resumed from its latest checkpoint.

    Example:
        >>> class Print(dmamba.callbacks.Callback):
        ...     def on_log(self, run, row):
        ...         print(row["step"], row["training/loss"])
        >>> dmamba.train("hopper-sample", callbacks=[Print()])
    """

    def on_start(self, run: Run) -> None:
        """Training is about to start, or to continue."""

    def on_log(self, run: Run, row: dict[str, Any]) -> None:
        """A row of metrics.csv was written: ``step``, ``training/loss``, and its other columns."""

    def on_checkpoint(self, run: Run, path: Path) -> None:
        """A checkpoint folder is complete."""

    def on_evaluation(self, run: Run, result: dict[str, Any]) -> None:
        """An evaluation is done; ``result`` is what :func:`dmamba.evaluate` returns."""

    def on_end(self, run: Run) -> None:
        """Training and evaluation are done, and the summary is written."""
