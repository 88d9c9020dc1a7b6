"""How far back a model of Mamba layers looks, and a context length K from that and the data.

A channel's state decays with exp(delta_t A) a token, delta_t > 0 chosen by the token, A < 0 learned
(Gu and Dao, arXiv 2312.00752, section 3.2). With the mean of delta over the tokens of real segments
its half-life is::

    ln 2 / (mean(delta) |A|)  tokens,  in environment steps that divided by the tokens of one (3),

for each layer, channel and state: d_inner x d_state numbers a layer. It says how long a state can
keep what it has been told, not whether the model makes use of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmamba import _C, nn
from dmamba.common import scores
from dmamba.data import segments

SEGMENTS = 64  # that the deltas are the mean of
QUANTILES = (0.1, 0.5, 0.9, 0.99)
HORIZON_QUANTILE = 0.9  # of the half-lives of a layer, that K should cover
MAX_PADDED = 0.5  # share of a batch's steps that may be padding


def padding_shares(
    lengths: np.ndarray, context_length: int, moved_back: bool = False
) -> tuple[float, float]:
    """What becomes of segments of K steps, drawn with a start uniform over all transitions.

    Args:
        lengths: Of the episodes, in steps.
        context_length: K.
        moved_back: Whether a segment begins earlier where its episode ends before, as those of
            games do: only those of episodes shorter than K are padded then.

    Returns:
        The share of segments that are padded, since their episode ends before, and the share of
        padding among the steps of a batch.
    """
    K, total = context_length, float(lengths.sum())
    if moved_back:
        few = lengths[lengths < K]
        return float(few.sum() / total), float((few * (K - few)).sum() / (total * K))
    short = np.minimum(lengths, K - 1)  # starts in an episode that leave less than K steps
    padding = short * (K - 1) - short * (short - 1) / 2  # K - 1 at its last step, one less before
    return float(short.sum() / total), float(padding.sum() / (total * K))


def half_lives(model: nn.DMamba, batch: dict[str, Tensor]) -> list[np.ndarray]:
    """The half-life in tokens of every layer, channel and state.

    Args:
        model: Of ``mamba`` layers, float32.
        batch: ``states``, ``actions``, ``returns_to_go``, ``timesteps``, ``mask``, as
            :class:`dmamba.data.SegmentDataset` gives, with a batch dimension.

    Returns:
        A (d_inner, d_state) float64 array a layer.

    Raises:
        ConfigError: A layer that is not ``mamba``.
    """
    config = model.config
    others = sorted(set(config.token_mixer) - {"mamba"})
    if others:
        raise _C.ConfigError(
            f"model.token_mixer: {', '.join(others)} has no delta and A; the memory horizon is "
            "that of mamba layers"
        )
    captured = model.capture(**batch, what=["delta", "A"])
    mask = batch["mask"].repeat_interleave(tokens_per_step(config), dim=1)
    lives = []
    for layer in range(config.n_layer):
        inside = captured.layer(layer)
        delta = inside["delta"][mask].double().mean(0)
        lives.append((-math.log(2) / (delta[:, None] * inside["A"].double())).cpu().numpy())
    return lives


def tokens_per_step(config: _C.ModelConfig) -> int:
    """Of return-to-go, state and action, as many as the model has."""
    return 1 + (config.rtg == "token") + (config.past_actions == "token")


def describe(
    store: _C.TrajectoryStore | _C.FrameStore,
    lengths: Sequence[int],
    model: nn.DMamba | None = None,
    info: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """What data, and a model, say about context lengths.

    Args:
        store: The data.
        lengths: Candidates for K, rising.
        model: A trained model, if there is one; a short training is enough to see its horizon.
        info: What :func:`dmamba.nn.load` says of the model.

    Returns:
        A dict with ``episode_lengths`` (quantiles), ``lengths``: a dict ``{K: (padded segments,
        padding)}`` of shares, ``half_lives``: quantiles in tokens, a row a layer (None without a
        model), ``horizon``: environment steps (likewise), ``proposed``: K, and ``why``.

    Raises:
        ConfigError: A K below 1, or no K that an episode can fill.
    """
    if not lengths or min(lengths) < 1:
        raise _C.ConfigError(f"context lengths must be at least 1, got {list(lengths)}")
    episodes = np.asarray(store.episode_lengths)
    fitting = [length for length in lengths if length <= episodes.max()]
    if not fitting:
        raise _C.ConfigError(
            f"{store.name}: no episode fills {min(lengths)} steps, the longest has {episodes.max()}"
        )
    games = isinstance(store, _C.FrameStore)
    table = {length: padding_shares(episodes, length, games) for length in fitting}
    lives, horizon = None, None
    if model is not None and info is not None:
        assert isinstance(store, _C.TrajectoryStore)
        lives = half_lives(model, _batch(store, model, info))
        far = max(float(np.quantile(each, HORIZON_QUANTILE)) for each in lives)
        horizon = far / tokens_per_step(model.config)
    proposed, why = _propose(table, horizon)
    return {
        "path": store.name,
        "episode_lengths": {q: float(np.quantile(episodes, q)) for q in (0, *QUANTILES, 1)},
        "lengths": table,
        "half_lives": None if lives is None else [list(np.quantile(x, QUANTILES)) for x in lives],
        "horizon": horizon,
        "proposed": proposed,
        "why": why,
    }


def _batch(store: _C.TrajectoryStore, model: nn.DMamba, info: dict[str, Any]) -> dict[str, Tensor]:
    """Segments evenly spread over the data, as the model was trained on them."""
    data = segments.SegmentDataset(
        store,
        model.config.context_length,
        rtg_scale=info["rtg_scale"],
        state_mean=info["state_mean"],
        state_std=info["state_std"],
        max_timestep=model.config.max_timestep,
        padding=model.config.padding,
    )
    chosen = np.unique(np.linspace(0, len(data) - 1, SEGMENTS).astype(int))
    items = [data[int(i)] for i in chosen]
    return {name: torch.stack([item[name] for item in items]) for name in items[0]}


def _propose(table: dict[int, tuple[float, float]], horizon: float | None) -> tuple[int, str]:
    allowed = [length for length, (_, padding) in table.items() if padding <= MAX_PADDED]
    if not allowed:
        return min(
            table
        ), f"every K leaves more than {MAX_PADDED:.0%} padding; this is the shortest"
    if horizon is None:
        return max(allowed), (
            f"the longest with at most {MAX_PADDED:.0%} padding; a run's memory may say that less "
            "will do (dmamba context RUN)"
        )
    reaching = [length for length in allowed if length >= horizon]
    seen = f"{HORIZON_QUANTILE:.0%} of every layer's half-lives are below {horizon:.1f} steps"
    if reaching:
        return min(reaching), f"the shortest that covers the horizon: {seen}"
    return max(allowed), f"the longest with at most {MAX_PADDED:.0%} padding, though {seen}"


def to_document(result: dict[str, Any]) -> dict[str, Any]:
    """What ``dmamba context --json`` prints: the same with names in place of numbers for keys."""
    quantiles = {f"{q:g}": value for q, value in result["episode_lengths"].items()}
    lengths = [
        {"context_length": length, "padded_segments": padded, "padding": padding}
        for length, (padded, padding) in result["lengths"].items()
    ]
    lives = result["half_lives"]
    if lives is not None:
        names = [f"{q:g}" for q in QUANTILES]
        lives = [dict(zip(names, layer, strict=True)) for layer in lives]
    changed = {"episode_lengths": quantiles, "lengths": lengths, "half_lives": lives}
    return {**result, **changed}


def format_result(result: dict[str, Any]) -> str:
    """The text of ``dmamba context``."""
    quantiles = result["episode_lengths"]
    names = {0: "min", 0.5: "median", 1: "max"}
    lines = [
        result["path"],
        scores.format_table(
            [
                ["episodes", *(names.get(q, f"{q:.0%}") for q in quantiles)],
                ["length", *(f"{value:.0f}" for value in quantiles.values())],
            ]
        ),
        "",
        scores.format_table(
            [
                ["K", "padded segments", "padding in a batch"],
                *(
                    [str(length), f"{padded:.1%}", f"{padding:.1%}"]
                    for length, (padded, padding) in result["lengths"].items()
                ),
            ]
        ),
    ]
    if result["half_lives"] is not None:
        rows = [["half-life, tokens", *(f"{q:.0%}" for q in QUANTILES)]]
        for layer, values in enumerate(result["half_lives"]):
            rows.append([f"layer {layer}", *(f"{value:.1f}" for value in values)])
        lines += ["", scores.format_table(rows)]
    return "\n".join([*lines, "", f"proposed K   {result['proposed']}: {result['why']}"])
