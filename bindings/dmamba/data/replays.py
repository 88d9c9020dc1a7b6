"""Recorded games (DQN-replay): reading with a cache, what they hold, the settings that follow.

Google's recordings (Agarwal and others, arXiv 1907.04543) are not downloaded here; RECIPE says how
they are had. The returns of the layout are sums of rewards clipped to [-1, 1], not scores.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from dmamba import _C, envs
from dmamba.common import scores
from dmamba.data import histograms, sources
from dmamba.display.progress import ReadingBar
from dmamba.envs import games

RECIPE = """\
DQN-replay (Atari) is Google's, some 50 shards a game and run, 7 GB each when inflated; `buffers`
and `transitions` choose how much is read:
  gsutil -m cp -R gs://atari-replay-datasets/dqn/Breakout/1/replay_logs DIR"""

# Raw returns that the author's code asks for; the last four are Decision ConvFormer's (J. Kim and
# others, arXiv 2310.03022). The Decision Transformer's paper has Qbert 2500 and Seaquest 1450.
TARGETS = {
    "Breakout": 90.0,
    "Qbert": 14000.0,
    "Pong": 20.0,
    "Seaquest": 1150.0,
    "Asterix": 520.0,
    "Frostbite": 950.0,
    "Assault": 780.0,
    "Gopher": 2750.0,
}

FORMAT = "dqn-replay"
CACHES = ("disk", "memory")
# Settings that states and actions that are vectors have no use for.
GAME_KEYS = {
    "dataset": ("buffers", "trajectories_per_buffer", "transitions", "selection_seed"),
    "model": ("encoder", "position"),
    "evaluation": ("temperature", "sticky_actions"),
}
_CONVERTED = re.compile(r"-[0-9a-f]{16}\.h5$")  # Breakout-0123456789abcdef.h5


def is_recording(path: Path) -> bool:
    """Whether a path is a recording's: a folder, or a converted file by the name the cache gave."""
    return path.is_dir() or _CONVERTED.search(path.name) is not None


def load(
    path: Path,
    *,
    buffers: int = 0,
    trajectories_per_buffer: int = 0,
    transitions: int = 0,
    seed: int = 0,
    game: str = "",
    cache: str = "disk",
    progress: bool = True,
) -> _C.FrameStore:
    """Reads a recording; ``dmamba.data.load`` says what the arguments are.

    Raises:
        ConfigError: A number below 0, or an unknown ``cache``.
        DataError: Nothing usable; the message names file, field and numbers.
    """
    place = _cache_folder(cache)
    folder = ""
    if place is not None and path.is_dir():
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _C.DataError(
                f"{place}: cannot be made, to keep the converted recording in ({error.strerror}); "
                "let DMAMBA_DATA name a folder that can, or use cache=memory (dataset.cache=memory)"
            ) from None
        folder = str(place)
    with ReadingBar(f"reading {path.name}", progress) as shown:
        return _C.open_replay(
            str(path),
            buffers=buffers,
            trajectories_per_buffer=trajectories_per_buffer,
            transitions=transitions,
            seed=seed,
            game=game,
            cache=folder,
            progress=shown.update,
        )


def outline(
    path: Path, *, cache: str = "disk", progress: bool = True, **chosen: Any
) -> _C.ReplayOutline | _C.FrameStore:
    """What a recording holds, without reading its frames and without writing anything.

    A converted file that is there is opened. Where there is none, padding before a game is taken to
    be alike in all games of a shard, as Dopamine writes it; :func:`load`, which sees all frames,
    finds out.

    Args:
        path: As for :func:`load`, as are the others.
        cache: As above.
        progress: As above.
        **chosen: As above.

    Raises:
        ConfigError, DataError: As :func:`load`, but for what only the frames can show.
    """
    place = _cache_folder(cache)
    folder = str(place) if place is not None and place.is_dir() else ""
    with ReadingBar(f"looking at {path.name}", progress) as shown:
        return _C.outline_replay(str(path), **chosen, cache=folder, progress=shown.update)


def _cache_folder(cache: str) -> Path | None:
    """Of converted recordings; None: they stay in memory."""
    if cache not in CACHES:
        raise _C.ConfigError(f"cache must be one of {', '.join(CACHES)}, got {cache!r}")
    return sources.cache_folders()[0] / "replays" if cache == "disk" else None


def game_of(environment: str) -> str:
    """The name of the game of a gymnasium id, ``ALE/Breakout-v5``; "" of any other environment."""
    found = games.find(environment)
    return found.name if found else ""


def environment_of(store: _C.FrameStore | _C.ReplayOutline) -> str:
    """The gymnasium id of a recording's game; "" where its folder does not name one."""
    found = games.find(store.metadata.get("game", ""))
    return found.gym_id if found else ""


def num_actions(store: _C.FrameStore, environment: str) -> int:
    """The size of the game's minimal set of actions where it is known, else the recording's.

    A recording need not have used every action, but a policy may.

    Raises:
        DataError: The recording has actions that the game does not know.
    """
    known = envs.num_actions(environment)
    if known is None:
        return store.num_actions
    if store.num_actions > known:
        raise _C.DataError(
            f"{store.name}: has {store.num_actions} actions, but {environment} has {known}; name "
            "the game that was recorded with dataset.environment=ALE/GAME-v5"
        )
    return known


def fill_in(config: _C.Config, store: _C.FrameStore, targets: list[float]) -> None:
    """Fills in what ``dmamba.data.resolve`` takes from a recording; the environment is known.

    Returns-to-go are fed as they are, as in the author's code. Targets that are taken from the
    recording are sums of clipped rewards, and go down by those (evaluation.rtg_rewards). An
    episode may be as long as the environment allows; later timesteps than the embedding has share
    its last row.

    Args:
        config: Changed in place.
        store: The recording.
        targets: Of a game that the papers have no target for.

    Raises:
        DataError: The recording's folders name another game than the configuration.
    """
    dataset = config.dataset
    recorded = games.find(store.metadata.get("game", ""))
    if recorded and game_of(dataset.environment) not in ("", recorded.name):
        raise _C.DataError(
            f"{store.name}: is a recording of {recorded.name}, but dataset.environment is "
            f"{dataset.environment}; one of the two must be the other's"
        )
    dataset.rtg_scale = dataset.rtg_scale or 1.0
    longest = int(store.episode_lengths.max())
    config.model.max_timestep = max(config.model.max_timestep, longest + 1)
    if not config.evaluation.targets:
        known = TARGETS.get(game_of(dataset.environment))
        config.evaluation.targets = targets if known is None else [known]
        if known is None:  # the recording's returns are clipped, so they have to be used up so
            config.evaluation.rtg_rewards = "clipped"


def refuse_keys(config: _C.Config, name: str) -> None:
    """Raises ConfigError where a key of games is set and the data are vectors.

    Args:
        config: What was asked for.
        name: The dataset's, which begins the message.
    """
    asked, usual = config.to_dict(), _C.Config().to_dict()
    for section, keys in GAME_KEYS.items():
        for key in keys:
            draws = config.dataset.fraction < 1 or config.training.context == "schedule"
            if key == "selection_seed" and draws:
                continue  # of the episodes that are drawn, or held out
            if asked[section][key] != usual[section][key]:
                raise _C.ConfigError(
                    f"{name}: {section}.{key} is for recorded games (DQN-replay), but this dataset "
                    "has vectors for states and actions; leave the key out"
                )


def describe(store: _C.FrameStore | _C.ReplayOutline, environment: str) -> dict[str, Any]:
    """What ``dmamba.data.info`` returns of a recording.

    Returns:
        A dict with ``path``, ``environment``, ``game``, ``shards``, ``num_actions``,
        ``action_counts`` (by index), ``dropped_transitions``, ``metadata``, the counts and the
        return and length statistics of ``FrameStore.summary()`` (of clipped rewards), and
        ``constants`` (None) and ``score_min``, ``score_mean``, ``score_max``,
        ``score_percentile_90`` (None): clipped returns have no score; and ``histograms`` of
        ``return`` and ``length``.
    """
    return {
        "path": store.name,
        "environment": environment,
        "game": store.metadata.get("game", ""),
        "shards": store.metadata.get("shards", ""),
        "num_actions": store.num_actions,
        "action_counts": np.bincount(store.actions, minlength=store.num_actions).tolist(),
        "dropped_transitions": store.dropped_transitions,
        "metadata": dict(store.metadata),
        **store.summary(),
        "constants": None,
        "histograms": histograms.of_episodes(store),
        **{f"score_{name}": None for name in ("min", "mean", "max", "percentile_90")},
    }


def format_info(result: dict[str, Any]) -> str:
    """The text of ``dmamba data info`` for a recording."""
    dropped = result["dropped_transitions"]
    total = result["transitions"]
    lines = [
        f"{result['path']}",
        f"  game           {result['game'] or 'not named by its folder'}"
        f"  (84 x 84 frames, {result['num_actions']} actions, shards {result['shards']})",
        f"  transitions    {total:,}"
        + (f"  ({dropped:,} more of games without beginning or end: not used)" if dropped else ""),
        f"  games          {result['episodes']:,}",
        "",
    ]
    rows = [["", "min", "mean", "90th percentile", "max"]]
    lengths = [f"{result['length_min']}", f"{result['length_mean']:.1f}", ""]
    rows.append(["length", *lengths, f"{result['length_max']}"])
    names = ("min", "mean", "percentile_90", "max")
    rows.append(["clipped return", *(f"{result[f'return_{name}']:.1f}" for name in names)])
    lines.append(scores.format_table(rows))
    lines.append("  returns are sums of rewards clipped to [-1, 1], which no score can be made of")
    shares = [f"{action}: {n / total:.1%}" for action, n in enumerate(result["action_counts"])]
    lines.append(f"  actions        {',  '.join(shares)}")
    lines += ["", histograms.format_histograms(result["histograms"], what="games")]
    return "\n".join(lines)
