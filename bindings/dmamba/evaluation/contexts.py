"""Evaluation of one model with several context lengths K, and the choice among them.

A windowed policy may look at fewer steps than it was trained with, and a model of Mamba layers at
more. ``auto`` picks the K with the highest mean return over the targets in the first half of the
episodes, and reports what that K earns in the other half, whose seeds are others: the maximum over
several K of what they were picked by would be too high.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from dmamba import _C, evaluation, nn
from dmamba.display.describing import Evaluation
from dmamba.nn.external import Model

AUTO = "auto"


def parse(text: str) -> int | list[int] | str:
    """What ``--context-length`` means: a number, numbers with commas between, or ``auto``."""
    if text == AUTO:
        return AUTO
    try:
        lengths = [int(word) for word in text.split(",")]
    except ValueError:
        raise _C.ConfigError(
            f"--context-length: {text!r} is neither auto nor numbers such as 5,10,20"
        ) from None
    return lengths if len(lengths) > 1 else lengths[0]


def evaluate_lengths(
    model: Model,
    info: dict[str, Any],
    wanted: int | Sequence[int] | str | None,
    *,
    config: _C.Config,
    episodes: int,
    **settings: Any,
) -> Evaluation:
    """Evaluates with one K, with each of several, or with the best of some.

    Args:
        model: As for :func:`dmamba.evaluation.evaluate_model`.
        info: Likewise.
        wanted: K; None: the model's. Several: each. ``auto``: the best of ``training.contexts``, or
            of a quarter, a half and the whole of ``model.context_length`` if the run had one K.
        config: The run's.
        episodes: Per target; ``auto`` plays half of them with every K to choose, and the other half
            with the chosen one to report.
        **settings: The other arguments of :func:`dmamba.evaluation.evaluate_model`.

    Returns:
        Of one K, that function's result. Of several, ``{"context_lengths": {K: result}}``. Of
        ``auto``, the result in the episodes that were not chosen by, with ``chosen_from``: a dict
        ``{K: mean return over the targets}`` and ``chosen_episodes``, how many a target that is.

    Raises:
        ConfigError: A K below 1, given twice, or longer than the model can look back; a recurrent
            policy; fewer than two episodes for ``auto``.
    """
    if wanted is None:
        return evaluation.evaluate_model(model, info, episodes=episodes, **settings)
    if settings["policy"] != "windowed":
        raise _C.ConfigError(
            "context_length is for the windowed policy; a recurrent one has no window, but may "
            "forget (forget_after)"
        )
    if isinstance(wanted, str):
        if wanted != AUTO:
            raise _C.ConfigError(f"context_length must be numbers or 'auto', got {wanted!r}")
        return _choose(model, info, candidates(config), episodes, settings)
    lengths = [wanted] if isinstance(wanted, int) else list(wanted)
    check(model, lengths)
    results = {
        length: evaluation.evaluate_model(
            model, info, episodes=episodes, context_length=length, **settings
        )
        for length in lengths
    }
    if isinstance(wanted, int):
        return results[wanted]
    return Evaluation(context_lengths=results)


def candidates(config: _C.Config) -> list[int]:
    """The lengths that ``auto`` chooses among."""
    if config.training.contexts:
        return list(config.training.contexts)
    longest = config.model.context_length
    return sorted({max(1, longest // 4), max(1, longest // 2), longest})


def check(model: Model, lengths: Sequence[int]) -> None:
    """Raises ConfigError for lengths that cannot be, warns of those that were not trained."""
    if not lengths:
        raise _C.ConfigError("context_length: give at least one length")
    trained = model.config.context_length
    for length in lengths:
        if length < 1:
            raise _C.ConfigError(f"context_length must be at least 1, got {length}")
        if list(lengths).count(length) > 1:
            raise _C.ConfigError(f"context_length: {length} is given twice")
        if length <= trained:
            continue
        others = sorted(set(model.config.token_mixer) - {"mamba"})
        if others:
            raise _C.ConfigError(
                f"context_length {length}: the model was trained with {trained} steps, and its "
                f"{', '.join(others)} layers cannot be relied on beyond; only mamba layers can"
            )
        if isinstance(model, nn.AtariDMamba) and model.config.position == "segment":
            raise _C.ConfigError(
                f"context_length {length}: the model has learned {trained} places (model.position="
                "segment); choose at most that"
            )
        warnings.warn(
            f"context_length {length}: the model was trained with at most {trained} steps; what it "
            "does with more is not trained",
            stacklevel=3,
        )


def _choose(
    model: Model,
    info: dict[str, Any],
    lengths: list[int],
    episodes: int,
    settings: dict[str, Any],
) -> Evaluation:
    if episodes < 2:
        raise _C.ConfigError(
            f"context_length auto needs 2 episodes a target: half to choose by; got {episodes}"
        )
    seen = episodes // 2
    means = {}
    for length in lengths:
        result = evaluation.evaluate_model(
            model, info, episodes=seen, context_length=length, **settings
        )
        means[length] = float(np.mean([row["return_mean"] for row in result["targets"]]))
    chosen = max(lengths, key=lambda length: means[length])  # of equals the shortest
    result = evaluation.evaluate_model(
        model,
        info,
        episodes=episodes - seen,
        context_length=chosen,
        first_episode=seen,
        **settings,
    )
    return Evaluation(result, chosen_from=means, chosen_episodes=seen)
