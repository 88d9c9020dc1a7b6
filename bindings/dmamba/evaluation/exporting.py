"""A run's policy as a pretrained folder; see :mod:`dmamba.nn.pretrained`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dmamba.data import pretraining
from dmamba.evaluation import load_model
from dmamba.nn.external import ExternalModel
from dmamba.runs import Run, locate_checkpoint


def export(
    run: Run | str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    set: str = "",
    evaluation: Mapping[str, Any] | None = None,
) -> Path:
    """Writes the policy of a run as a folder in the Hugging Face form.

    Args:
        run: A :class:`dmamba.Run`, a run folder (its latest checkpoint), or one checkpoint.
        folder: To be made; one of this form is replaced.
        set: Of a run on several sets, the one whose model is meant.
        evaluation: What :func:`dmamba.evaluate` returned, for the model card; left out, the
            evaluation that the run made of this checkpoint, if it did.

    Returns:
        The folder: ``dmamba.nn.DMamba.from_pretrained``, :func:`dmamba.nn.load` and
        :func:`dmamba.evaluate` take it.

    Raises:
        CheckpointError: There is no usable checkpoint.
        Error: The folder holds other files, or cannot be written.

    Example:
        >>> dmamba.export("runs/hopper-sample-seed0", "hopper-policy")
        >>> dmamba.evaluate("hopper-policy", episodes=100)
    """
    path = run.folder if isinstance(run, Run) else Path(run)
    model, info, config = load_model(path, "cpu", set)
    assert not isinstance(model, ExternalModel)  # refused: its code is not at hand
    root, _ = locate_checkpoint(path)
    if evaluation is None and root is not None:
        made = Run(root / pretraining.FOLDER / set if set else root).evaluations()
        same = [result for result in made if result["checkpoint_step"] == info["step"]]
        evaluation = same[-1] if same else None
    info["config"] = config
    return model.save_pretrained(folder, info, evaluation)
