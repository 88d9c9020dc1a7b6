"""Several sets at once: their stores, their settings, and where their results lie.

A run on several sets keeps ``sets/NAME`` in its folder for each: a run folder itself, without
checkpoints, with the settings that the set alone would be trained with, and its evaluations.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from dmamba import _C, data

FOLDER = "sets"


@dataclass(frozen=True)
class Part:
    """One set of a run, or the only one.

    Attributes:
        name: Of the set; empty where there is only one.
        config: Resolved, as if this set were the only one.
        store: The set.
    """

    name: str
    config: _C.Config
    store: _C.TrajectoryStore | _C.FrameStore


def set_name(path: str) -> str:
    """What a set is called in parameters' names and folders.

    Its file's stem without dots and without D4RL's version: hopper-medium, of hopper-medium-v2.
    """
    return re.sub(r"-v\d+$", "", Path(path).stem).replace(".", "_")


def load(config: _C.Config, *, progress: bool = True) -> list[_C.TrajectoryStore]:
    """The stores of ``pretraining.sets``, of each the share that ``dataset.fraction`` says.

    Raises:
        ConfigError: Two sets of one name, a recorded game, or a setting for one set alone.
        DataError: What :func:`dmamba.data.load` raises.
    """
    names = [set_name(path) for path in config.pretraining.sets]
    for name in names:
        if names.count(name) > 1:
            raise _C.ConfigError(
                f"pretraining.sets: two sets are called {name!r}: give their files different names"
            )
    if config.transfer.statistics != "data":
        raise _C.ConfigError(
            "transfer.statistics: checkpoint is for a run on one set; pretraining.sets have their "
            "own statistics"
        )
    stores = []
    for path in config.pretraining.sets:
        dataset = config.dataset.copy()
        dataset.path = path
        store = data.load_configured(dataset, progress=progress)
        if isinstance(store, _C.FrameStore):
            raise _C.ConfigError(
                f"{path}: pretraining.sets are sets of states and actions that are vectors, not "
                "recorded games"
            )
        stores.append(store)
    return stores


def resolve(config: _C.Config, stores: list[_C.TrajectoryStore]) -> tuple[_C.Config, list[Part]]:
    """What follows from the data, filled in.

    Args:
        config: With ``pretraining.sets``.
        stores: A store for each.

    Returns:
        A copy of the config with the sets' paths, environments and scales, and with a timestep
        embedding that covers all of them; and the parts.

    Raises:
        ConfigError: What :func:`dmamba.data.resolve` raises.
    """
    own = []
    for index, (path, store) in enumerate(zip(config.pretraining.sets, stores, strict=True)):
        alone = config.copy()
        alone.pretraining = _C.PretrainingConfig()
        alone.name = set_name(path)
        alone.dataset.path = path
        if config.pretraining.environments:
            alone.dataset.environment = config.pretraining.environments[index]
        if config.pretraining.rtg_scales:
            alone.dataset.rtg_scale = config.pretraining.rtg_scales[index]
        own.append(data.resolve(alone, store))
    resolved = config.copy()
    pretraining = resolved.pretraining
    pretraining.sets = [alone.dataset.path for alone in own]
    pretraining.environments = [alone.dataset.environment for alone in own]
    pretraining.rtg_scales = [alone.dataset.rtg_scale for alone in own]
    resolved.model.max_timestep = max(alone.model.max_timestep for alone in own)
    resolved.transfer.init_from = own[0].transfer.init_from
    resolved.validate()
    parts = []
    for alone, store in zip(own, stores, strict=True):
        alone.model = resolved.model.copy()
        parts.append(Part(alone.name, alone, store))
    return resolved, parts


def own_config(config: _C.Config, set: str) -> _C.Config:
    """The configuration of one set, as far as that of the run tells it.

    Args:
        config: Of a run on several sets, as its checkpoints have it.
        set: One of its sets.
    """
    index = [set_name(path) for path in config.pretraining.sets].index(set)
    alone = config.copy()
    alone.dataset.path = config.pretraining.sets[index]
    alone.dataset.environment = config.pretraining.environments[index]
    alone.dataset.rtg_scale = config.pretraining.rtg_scales[index]
    alone.pretraining = _C.PretrainingConfig()
    return alone
