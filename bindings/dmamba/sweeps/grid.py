"""The grid of a sweep: from ``key=v1,v2`` texts to configurations that are known to be usable.

    model.context_length=5,10,20            a list of values; its short names are context_length, K
    evaluation.targets=[1800,3600],[3600]   commas inside brackets belong to the value
    seed=0:5                                a range: 0, 1, 2, 3, 4
    training.steps=1000                     one value: for every run

The product of the lists is the grid; the seeds are apart, a point is run with each of them.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmamba import _C, data
from dmamba.common.values import split_values
from dmamba.configuration import flatten, load_config
from dmamba.data import replays
from dmamba.sweeps.ranges import refuse_ranges
from dmamba.training.beginning import check_environment, make_model

MAX_RUNS = 10_000
SHORT_NAMES = {"K": "model.context_length"}  # beside the last parts of dotted keys
_UNFIT = re.compile(r"[^\w.,=+\[\]-]+")  # for the name of a folder


@dataclass(frozen=True)
class Point:
    """A point of the grid.

    Attributes:
        settings: Value of each swept key, by its dotted name; without the seed.
        overrides: The same as ``key=value`` texts.
        label: The same with short names, for people and for folders.
        configs: By seed: the configuration as the run will resolve it.
    """

    settings: dict[str, Any]
    overrides: list[str]
    label: str
    configs: dict[int, _C.Config]

    def folder(self, output: Path, seed: int) -> Path:
        """Where the run of a seed lies in the folder of the sweep."""
        return output / folder_name(self.label, seed)


@dataclass(frozen=True)
class Grid:
    """All points, and what they have in common.

    Attributes:
        base: The configuration without the swept values, not resolved.
        keys: Swept keys, dotted, without the seed.
        seeds: Each point's.
        points: In the order of the values, the first key's slowest.
        dataset_mean: Mean raw return of the dataset's episodes; None of several datasets.
    """

    base: _C.Config
    keys: list[str]
    seeds: list[int]
    points: list[Point]
    dataset_mean: float | None


def folder_name(label: str, seed: int) -> str:
    """The name of the folder of a point's run."""
    return f"{_UNFIT.sub('_', label)}-seed{seed}"


def short_name(key: str, base: _C.Config) -> str:
    """The last part of a dotted key where no other key ends in it, else the whole key."""
    last = key.rpartition(".")[2]
    ends = [known for known in flatten(base.to_dict()) if known.rpartition(".")[2] == last]
    return last if len(ends) == 1 else key


def make_grid(
    config: str | os.PathLike[str] | _C.Config | dict[str, Any],
    overrides: Iterable[str],
    *,
    here: bool = True,
) -> Grid:
    """The grid, with every point checked: settings, dataset, context length, environment.

    Args:
        config: What :func:`dmamba.configuration.load_config` takes.
        overrides: ``key=value``, ``key=v1,v2`` and ``key=A:B`` texts; each key once.
        here: Whether the runs are this machine's, so that it must have their device.

    Raises:
        ConfigError: A text that cannot be read, a key given twice, an empty or too large grid, two
            equal points, a setting that cannot be used; the message names the point.
        DataError: A dataset that cannot be read or has no episode as long as the context.
    """
    start = load_config(config)
    lists = read_lists(start, list(overrides))
    refuse_ranges(lists, flatten(start.to_dict()))
    fixed = [f"{key}={values[0]}" for key, values in lists.items() if len(values) == 1]
    base = load_config(config, fixed)
    seeds = [load_config(base, [f"seed={seed}"]).seed for seed in lists.pop("seed", [base.seed])]
    refuse_repeated("seed", seeds)
    swept = {key: values for key, values in lists.items() if len(values) > 1}
    points = []
    stores: dict[tuple[Any, ...], _C.TrajectoryStore | _C.FrameStore] = {}
    environments: set[tuple[str, str, int]] = set()
    count = len(seeds)
    for values in swept.values():
        count *= len(values)
    if count > MAX_RUNS:
        raise _C.ConfigError(f"the grid has {count} runs, more than {MAX_RUNS}: give fewer values")
    for combination in itertools.product(*swept.values()):
        texts = [f"{key}={value}" for key, value in zip(swept, combination, strict=True)]
        try:
            point = make_point(base, list(swept), texts, seeds, stores, environments)
            if here:
                check_device(point)
            points.append(point)
        except _C.Error as error:
            if not texts:
                raise
            raise type(error)(f"grid point {' '.join(texts)}: {error}") from None
    refuse_repeated("grid point", [point.label for point in points])
    means = [float(store.episode_returns.mean()) for store in stores.values()]
    return Grid(base, list(swept), seeds, points, means[0] if len(means) == 1 else None)


def check_device(point: Point) -> None:
    """Finds out whether this machine has a point's device.

    Raises:
        ConfigError: It has not.
    """
    device = next(iter(point.configs.values())).training.device
    _C.resolve_device(device, "training.device")


def read_lists(base: _C.Config, texts: list[str]) -> dict[str, list[str]]:
    """The texts of each key's values, by its dotted name.

    Raises:
        ConfigError: An unknown key, one given twice, or a text that cannot be read.
    """
    known = list(flatten(base.to_dict()))
    lists: dict[str, list[str]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not (name and equals):
            raise _C.ConfigError(f"{text!r}: expected key=value or key=v1,v2, such as K=5,10,20")
        ends = [key for key in known if key.rpartition(".")[2] == name]
        key = SHORT_NAMES.get(name, name)
        if key not in known:
            if len(ends) != 1:
                base.copy().override([text])  # says what is wrong with the key
            key = ends[0]
        if key in lists:
            raise _C.ConfigError(f"{text!r}: {key} is given twice; give all its values at once")
        try:
            lists[key] = split_values(values)
        except _C.ConfigError as error:
            raise _C.ConfigError(f"{text!r}: {error}") from None
    return lists


def make_point(
    base: _C.Config,
    keys: list[str],
    texts: list[str],
    seeds: list[int],
    stores: dict[tuple[Any, ...], _C.TrajectoryStore | _C.FrameStore],
    environments: set[tuple[str, str, int]],
) -> Point:
    """A point, checked as the run will check it.

    Args:
        base: The configuration without the point's values.
        keys: What the point sets, dotted.
        texts: The same as ``key=value``.
        seeds: Of the point's runs.
        stores: Datasets that are read already, to which this point's is added.
        environments: Those that are known to work, likewise.

    Raises:
        Error: Settings, a dataset or an environment that cannot be used.
    """
    config = load_config(base, texts)
    if config.pretraining.sets:
        raise _C.ConfigError("pretraining.sets: a sweep's runs are on one set each")
    dataset = config.dataset
    chosen = (
        *(dataset.path, dataset.buffers, dataset.trajectories_per_buffer, dataset.transitions),
        *(dataset.selection_seed, replays.game_of(dataset.environment), dataset.fraction),
        *(dataset.top_fraction, dataset.rewards),
    )
    if chosen not in stores:
        stores[chosen] = data.load_configured(dataset)  # downloads what the runs would
    store = stores[chosen]
    resolved = data.resolve(config, store)
    _check_sampler(resolved, store)
    make_model(resolved, store)  # unknown mixers, sizes that do not fit
    simulated = (dataset.path, resolved.dataset.environment, resolved.dataset.max_episode_length)
    if simulated not in environments:
        check_environment(resolved, store)
        environments.add(simulated)
    values = flatten(config.to_dict())
    settings = {key: values[key] for key in keys}
    label = ",".join(f"{short_name(key, base)}={text_of(value)}" for key, value in settings.items())
    configs = {seed: load_config(resolved, [f"seed={seed}"]) for seed in seeds}
    return Point(settings, texts, label or base.name, configs)


def _check_sampler(config: _C.Config, store: _C.TrajectoryStore | _C.FrameStore) -> None:
    """The sampler's own check of the context length, and of whatever else it needs."""
    batch, context = config.training.batch_size, config.model.context_length
    scale, last = config.dataset.rtg_scale, config.model.max_timestep
    if isinstance(store, _C.FrameStore):
        _C.FrameSampler(store, batch, context, config.seed, scale, last)
        return
    mean, std = (values.tolist() for values in store.state_statistics())
    paper = config.model.padding == "paper"
    _C.SegmentSampler(store, batch, context, config.seed, paper, scale, mean, std, last)


def text_of(value: Any) -> str:
    """A setting's value for people and folders: ``[mamba,attention]``, ``0.1``."""
    if isinstance(value, list):
        return "[" + ",".join(map(text_of, value)) + "]"
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)


def refuse_repeated(what: str, values: list[Any]) -> None:
    """Refuses a value that is given more than once.

    Raises:
        ConfigError: There is one.
    """
    for value in values:
        if values.count(value) > 1:
            raise _C.ConfigError(f"{what} {value} is in the grid twice: give each value once")
