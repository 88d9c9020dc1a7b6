"""Datasets by name or path, what they hold, and the settings that follow from them."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dmamba import _C, envs
from dmamba._C import FrameStore, TrajectoryStore
from dmamba.common import scores
from dmamba.data import histograms, minari_folders, minari_sets, replays, sources
from dmamba.data.downloading import check
from dmamba.data.episodes import from_arrays, from_episodes
from dmamba.data.frame_segments import FrameSegmentDataset
from dmamba.data.segments import SegmentDataset
from dmamba.data.segments import default_rtg_scale as rtg_scale
from dmamba.data.sources import PACKAGE_FOLDER, cache_folders, listing, locate
from dmamba.display.progress import ReadingBar

if TYPE_CHECKING:
    from dmamba.evaluation.recording import record
else:

    def __getattr__(name: str) -> Any:
        """Finds ``record``: who plays episodes stands above the data, and reads them."""
        if name != "record":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from dmamba.evaluation.recording import record

        return record


__all__ = [
    "FrameSegmentDataset",
    "FrameStore",
    "PACKAGE_FOLDER",
    "SegmentDataset",
    "TrajectoryStore",
    "cache_folders",
    "default_targets",
    "describe",
    "download",
    "environment_of",
    "format_info",
    "from_arrays",
    "from_episodes",
    "info",
    "listing",
    "load",
    "locate",
    "record",
    "reshape",
    "resolve",
    "rtg_scale",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def load(
    path_or_name: str | os.PathLike[str],
    format: str = "auto",
    *,
    buffers: int = 0,
    trajectories_per_buffer: int = 0,
    transitions: int = 0,
    seed: int = 0,
    game: str = "",
    cache: str = "disk",
    storage: str = "auto",
    progress: bool = True,
    verify: bool = False,
) -> _C.TrajectoryStore | _C.FrameStore:
    """Reads a dataset; one of D4RL's or Minari's names is downloaded if it is not here yet.

    D4RL's downloads lie in ``$DMAMBA_DATA``, else in ``~/.cache/dmamba/datasets``. A later load
    holds the file's size and time of change against the record of the download. What is read of a
    recorded game is kept in the folder ``replays`` there, which later loads map into memory.
    Minari's lie in ``$MINARI_DATASETS_PATH``, else in ``~/.minari/datasets``.

    Args:
        path_or_name: A file, the folder of a dataset of Minari's or of a recorded game in the
            DQN-replay layout, a name that :func:`locate` finds, a name of :func:`listing`, or an id
            of Minari's such as ``mujoco/hopper/medium-v0``.
        format: ``auto`` looks at it; ``d4rl`` is D4RL's HDF5 layout, ``minari`` Minari's,
            ``dqn-replay`` that of games, or a file that the cache was filled with, under any name.
        buffers: Of recorded games alone, as the five that follow: the last so many shards; 0: all.
        trajectories_per_buffer: Games a visit of a shard; 0: all of it.
        transitions: Reading ends once so many are chosen; 0: no limit.
        seed: Of the order in which shards are visited.
        game: Which, where the folder holds several.
        cache: ``disk``, or ``memory``: nothing is kept.
        storage: Of vectors, where the transitions are: ``memory``; ``disk``, which reads rows as
            they are asked for; ``auto``: on disk where they would take more than half of the memory
            that is free. What is drawn from them is the same. docs/data.md says what it costs.
        progress: Whether a download or the reading of a game shows a bar.
        verify: Hold the whole file against the SHA-256 of its download, too; one without a record,
            which was not downloaded here, is refused.

    Raises:
        DataError: Not found, not to be had, changed, or not usable; the message names file, field
            and numbers.
        ConfigError: Arguments of games for another dataset.

    Example:
        >>> store = dmamba.data.load("hopper-medium-v2")
        >>> store.num_transitions, store.episode_returns.mean()
    """
    path = sources.obtain(path_or_name, progress=progress, verify=verify)
    chosen: dict[str, Any] = {
        "buffers": buffers,
        "trajectories_per_buffer": trajectories_per_buffer,
        "transitions": transitions,
        "seed": seed,
        "game": game,
    }
    return _read(path, format, chosen, cache, storage, progress)


def _read(
    path: Path, format: str, chosen: dict[str, Any], cache: str, storage: str, progress: bool
) -> _C.TrajectoryStore | _C.FrameStore:
    """Reads a file or folder that is here; ``chosen`` is what is chosen of a recorded game."""
    if _holds_game(path, format):
        if storage != "auto":
            raise _C.ConfigError(
                f"{path}: storage is for states that are vectors, not for recorded games, which "
                "have cache (disk, memory)"
            )
        return replays.load(path, **chosen, cache=cache, progress=progress)
    for key, value in chosen.items():
        if value:
            raise _C.ConfigError(f"{path}: {key} is for recorded games (DQN-replay), not for this")
    with ReadingBar(f"reading {path.name}", progress) as shown:
        kept: dict[str, Any] = {
            "storage": storage,
            "scratch": str(cache_folders()[0]),
            "progress": shown.update,
        }
        if format in ("auto", minari_sets.FORMAT) and minari_sets.is_set(path):
            return minari_sets.load(path, **kept)
        return _C.open_dataset(str(path), format, **kept)


def _holds_game(path: Path, format: str) -> bool:
    return format == replays.FORMAT or (format == "auto" and _is_recording(path))


def _is_recording(path: Path) -> bool:
    return replays.is_recording(path) and not minari_sets.is_set(path)


def load_configured(
    config: _C.DatasetConfig, *, progress: bool = True
) -> _C.TrajectoryStore | _C.FrameStore:
    """Reads what a configuration's ``dataset`` says: :func:`load`, then :func:`reshape`."""
    path = sources.obtain(config.path, progress=progress)
    chosen: dict[str, Any] = {
        "buffers": config.buffers,
        "trajectories_per_buffer": config.trajectories_per_buffer,
        "transitions": config.transitions,
        # Of vectors, it is the seed of `fraction`.
        "seed": config.selection_seed if _is_recording(path) else 0,
        "game": replays.game_of(config.environment),
    }
    game = _holds_game(path, "auto")
    storage = "memory" if config.cache == "memory" and not game else "auto"
    store = _read(path, "auto", chosen, config.cache, storage, progress)
    return reshape(store, config)


def reshape(
    store: _C.TrajectoryStore | _C.FrameStore, config: _C.DatasetConfig
) -> _C.TrajectoryStore | _C.FrameStore:
    """What a configuration trains on: some of a store's episodes, or rewards that come late.

    ``fraction`` keeps that share of the episodes, at least one, drawn with ``selection_seed``. Of
    those, ``top_fraction`` keeps its share, at least one, with the highest returns, in their order;
    of equal returns the earlier. ``rewards: delayed`` then gives each episode's whole return with
    its last step.

    Args:
        store: As recorded; it stays as it is.
        config: The settings.

    Raises:
        ConfigError: A recorded game, whose frames are not copied.
    """
    if config.fraction == 1.0 and config.top_fraction == 1.0 and config.rewards == "dense":
        return store
    if isinstance(store, _C.FrameStore):
        shares = [key for key in ("fraction", "top_fraction") if getattr(config, key) != 1.0]
        key = (*shares, "rewards")[0]
        raise _C.ConfigError(
            f"{store.name}: dataset.{key} is for states and actions that are vectors, not for "
            "recorded games; leave it out"
        )
    if config.fraction < 1.0:
        drawn = _C.draw_episodes(store, config.fraction, config.selection_seed)
        store = _C.select_episodes(store, drawn)
    if config.top_fraction < 1.0:
        kept = math.ceil(config.top_fraction * store.num_episodes)
        best = np.argsort(-store.episode_returns, kind="stable")[:kept]
        store = _C.select_episodes(store, sorted(best.tolist()))
    return _C.delay_rewards(store) if config.rewards == "delayed" else store


def download(name: str, *, progress: bool = True) -> Path:
    """Downloads a dataset of D4RL's or Minari's, unless it is here, in which case it is checked.

    A file of D4RL's is checked by its SHA-256; one that was put there by hand has no record to be
    checked against, and is left as it is. A dataset of Minari's is read, and held against the
    number of episodes and steps that it says to have.

    Args:
        name: One of :func:`listing`'s, such as ``hopper-medium-v2``, or an id of Minari's with its
            namespace, such as ``mujoco/hopper/medium-v0``.
        progress: Whether to show a bar.

    Returns:
        Where the file or, of Minari's, the folder is.

    Raises:
        DataError: An unknown name, or what :func:`load` raises.
    """
    found = sources.find(name)
    if found is not None and minari_sets.is_set(found):
        minari_sets.load(found)
        return found
    if name not in sources.SOURCES and not minari_folders.is_remote_id(name):
        raise _C.DataError(
            f"no dataset named {name!r} can be downloaded; there are {', '.join(sources.SOURCES)}, "
            "and Minari's with their namespaces, such as mujoco/hopper/medium-v0"
        )
    if found is None:
        return sources.obtain(name, progress=progress)
    check(found, full=True)
    return found


def environment_of(store: _C.TrajectoryStore | _C.FrameStore | _C.ReplayOutline) -> str:
    """The gymnasium id of a dataset's environment: its metadata's, else the known one of its name.

    Empty where neither tells.
    """
    if isinstance(store, (_C.FrameStore, _C.ReplayOutline)):
        return replays.environment_of(store)
    for key in ("environment", "env_id", "env_name"):
        if store.metadata.get(key):
            return str(store.metadata[key])
    if minari_sets.is_read_from(store):
        return ""  # its name may tell the robot, but not which version of the environment
    known = envs.find(store.name)
    return "" if known is None else known.gym_id


def info(path_or_name: str | os.PathLike[str], **options: Any) -> dict[str, Any]:
    """What a dataset holds; of a recorded game, frames are not read and nothing is converted.

    Args:
        path_or_name: As for :func:`load`.
        **options: As for :func:`load`.

    Returns:
        A dict with ``path``, ``environment``, ``state_dim``, ``act_dim``, ``metadata``,
        ``dropped_transitions`` (after the last episode end), the counts and the return and length
        statistics of ``TrajectoryStore.summary()``, ``constants`` (of the normalised score) and
        ``score_min``, ``score_mean``, ``score_max``, ``score_percentile_90`` (None for an unknown
        environment), and ``histograms`` of ``return`` and ``length``, each with ``edges`` (bins +
        1) and ``counts`` (bins). Of a recorded game, what ``dmamba.data.replays.describe`` says.

    Raises:
        DataError: What :func:`load` raises.
    """
    obtaining = {key: options[key] for key in ("progress", "verify") if key in options}
    path = sources.obtain(path_or_name, **obtaining)
    if not _holds_game(path, options.get("format", "auto")):
        return describe(load(path, **options))
    chosen = {key: value for key, value in options.items() if key not in ("format", "verify")}
    return describe(replays.outline(path, **chosen))


def describe(
    store: _C.TrajectoryStore | _C.FrameStore | _C.ReplayOutline, environment: str | None = None
) -> dict[str, Any]:
    """What :func:`info` returns, of a dataset already in memory.

    Args:
        store: The dataset.
        environment: gymnasium id; None: what the dataset itself says.
    """
    if environment is None:
        environment = environment_of(store)
    if isinstance(store, (_C.FrameStore, _C.ReplayOutline)):
        return replays.describe(store, environment)
    summary = store.summary()
    result = {
        "path": store.name,
        "environment": environment,
        "state_dim": store.state_dim,
        "act_dim": store.act_dim,
        "dropped_transitions": store.dropped_transitions,
        "metadata": dict(store.metadata),
        **summary,
        "constants": envs.score_constants(environment, store.name),
        "histograms": histograms.of_episodes(store),
    }
    for name in ("min", "mean", "max", "percentile_90"):
        result[f"score_{name}"] = envs.normalized_score(environment, summary[f"return_{name}"])
    return result


def format_info(result: dict[str, Any]) -> str:
    """The text of ``dmamba data info``."""
    if "game" in result:
        return replays.format_info(result)
    known = envs.find(result["environment"]) if result["environment"] else None
    lines = [
        f"{result['path']}",
        f"  environment    {result['environment'] or 'not named by the file'}"
        f"  (states {result['state_dim']}, actions {result['act_dim']})",
        f"  transitions    {result['transitions']:,}"
        + (
            f"  ({result['dropped_transitions']:,} more after the last episode end: not used)"
            if result["dropped_transitions"]
            else ""
        ),
        f"  episodes       {result['episodes']:,}"
        f"  ({result['terminals']:,} end in a terminal state, {result['timeouts']:,} by timeout)",
        "",
    ]
    rows = [["", "min", "mean", "90th percentile", "max"]]
    rows.append(
        [
            "length",
            f"{result['length_min']}",
            f"{result['length_mean']:.1f}",
            "",
            f"{result['length_max']}",
        ]
    )
    names = ("min", "mean", "percentile_90", "max")
    rows.append(["return", *(f"{result[f'return_{name}']:.1f}" for name in names)])
    if known is not None:
        rows.append(["D4RL score", *(f"{result[f'score_{name}']:.1f}" for name in names)])
    lines.append(scores.format_table(rows))
    lines.append("  " + envs.describe_constants(result["constants"]))
    lines += ["", histograms.format_histograms(result["histograms"])]
    if result["metadata"]:
        lines.append("")
        lines += [f"  {key}: {value}" for key, value in sorted(result["metadata"].items())]
    return "\n".join(lines)


def default_targets(store: _C.EpisodeStore) -> list[float]:
    """The dataset's 90th percentile and maximum return, to four digits, ascending."""
    summary = store.summary()
    wanted = (summary["return_percentile_90"], summary["return_max"])
    return sorted({float(f"{value:.4g}") for value in wanted})


def resolve(config: _C.Config, store: _C.TrajectoryStore | _C.FrameStore) -> _C.Config:
    """A copy of a configuration in which everything that comes from the data is filled in.

    Fills dataset.environment, rtg_scale, max_episode_length (a known environment's time limit, else
    the longest episode; of games it stays 0, the environment's own) and evaluation.targets where
    they are empty, makes the timestep embedding cover every episode, and makes dataset.path
    (where it is a file's or a folder's) and transfer.init_from absolute, so that the run can be
    continued from another folder.

    With ``model.rtg: none`` one target is enough, for nothing depends on it; with
    ``dataset.rewards: delayed`` returns-to-go stay as they are during an episode
    (``evaluation.rtg_rewards: none``).

    Raises:
        ConfigError: A value out of range, or a key that the kind of data has no use for.
    """
    resolved = config.copy()
    dataset = resolved.dataset
    if Path(dataset.path).expanduser().exists():
        dataset.path = str(Path(dataset.path).expanduser().resolve())
    if resolved.transfer.init_from:
        origin = Path(resolved.transfer.init_from).expanduser()
        resolved.transfer.init_from = str(origin.resolve())
    dataset.environment = dataset.environment or environment_of(store)
    if isinstance(store, _C.FrameStore):
        replays.fill_in(resolved, store, default_targets(store))
    else:
        replays.refuse_keys(config, store.name)
        _fill_in(resolved, store)
    resolved.validate()
    return resolved


def _fill_in(config: _C.Config, store: _C.TrajectoryStore) -> None:
    """What :func:`resolve` takes from states and actions that are vectors."""
    dataset = config.dataset
    longest = int(store.episode_lengths.max())
    dataset.rtg_scale = dataset.rtg_scale or rtg_scale(store)
    if not dataset.max_episode_length:
        # A better policy than the dataset's may live longer: a known time limit comes first.
        known = envs.find(dataset.environment)
        dataset.max_episode_length = longest if known is None else known.max_episode_steps
    config.model.max_timestep = max(config.model.max_timestep, longest, dataset.max_episode_length)
    if not config.evaluation.targets:
        targets = default_targets(store)
        config.evaluation.targets = targets[-1:] if config.model.rtg == "none" else targets
    if dataset.rewards == "delayed":
        config.evaluation.rtg_rewards = "none"
