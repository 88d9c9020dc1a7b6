"""Stores from arrays: a recording that is in memory already, or that no reader knows.

The C++ store is filled by its readers, so the arrays go through a file of D4RL's layout, a
temporary one unless its path is given. Its checks are thus those of any dataset; what can be said
of single episodes is checked here, with the episode's number.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dmamba import _C
from dmamba.data import hdf5

MEMORY = "memory:"  # begins the dataset.path of a run that was trained on arrays
FIELDS = ("observations", "actions", "rewards", "terminated")


def from_episodes(
    episodes: Sequence[Mapping[str, Any] | Sequence[Any]],
    *,
    name: str = "episodes",
    environment: str = "",
    save: str | os.PathLike[str] | None = None,
) -> _C.TrajectoryStore:
    """A store of episodes that are given as arrays.

    Args:
        episodes: Each a dict with these fields (others are ignored), or a tuple in this order:
            ``observations`` (T, state_dim), or (T + 1, state_dim) with the one after the last
            action, which is not used; ``actions`` (T, act_dim); ``rewards`` (T,), raw;
            ``terminated``, whether the environment ended the episode: False for a time limit.
            Real numbers of any dtype; they become float32.
        name: Begins messages, and stands in the store's ``name``.
        environment: gymnasium id of the environment, "" if it has none.
        save: Where to keep them, a file of D4RL's layout. Such a run can be resumed from its
            folder alone; one from memory needs the store again.

    Raises:
        DataError: No episodes, or one that cannot be used; the message names episode and field.
        OSError: The file cannot be written.

    Example:
        >>> store = dmamba.data.from_episodes(episodes, environment="Hopper-v4")
        >>> run = dmamba.train("hopper-sample", dataset=store)
    """
    return _store(collect(episodes, name), name, environment, save)


def from_arrays(
    observations: Any,
    actions: Any,
    rewards: Any,
    terminals: Any,
    timeouts: Any,
    *,
    name: str = "arrays",
    environment: str = "",
    save: str | os.PathLike[str] | None = None,
) -> _C.TrajectoryStore:
    """A store of transitions that lie one after the other, as D4RL has them.

    Args:
        observations: (N, state_dim) real numbers; they become float32, as all do.
        actions: (N, act_dim).
        rewards: (N,), raw.
        terminals: (N,) bool, or 0 and 1: the environment ended the episode with this transition.
        timeouts: (N,) likewise: the time limit cut it here. An episode ends at either; transitions
            after the last end are left out, and counted by ``dropped_transitions``.
        name: As in :func:`from_episodes`.
        environment: As in :func:`from_episodes`.
        save: As in :func:`from_episodes`.

    Raises:
        DataError: Arrays that cannot be used; the message names the field.
        OSError: The file cannot be written.
    """
    arrays = {
        "observations": _numbers(observations, f"{name}: observations", "(N, state_dim)"),
        "actions": _numbers(actions, f"{name}: actions", "(N, act_dim)"),
        "rewards": _numbers(rewards, f"{name}: rewards", "(N,)"),
        "terminals": _flags(terminals, f"{name}: terminals"),
        "timeouts": _flags(timeouts, f"{name}: timeouts"),
    }
    count = len(arrays["rewards"])
    if count == 0:
        raise _C.DataError(f"{name}: there are no transitions")
    for field, array in arrays.items():
        _require_rows(len(array), (count,), f"{name}: {field}")
    return _store(arrays, name, environment, save)


def collect(
    episodes: Sequence[Mapping[str, Any] | Sequence[Any]], name: str
) -> dict[str, np.ndarray]:
    """Checks episodes and puts them one after the other; :func:`from_episodes` says which.

    Returns:
        ``observations``, ``actions``, ``rewards`` float32, ``terminals``, ``timeouts`` bool.

    Raises:
        DataError: As :func:`from_episodes`.
    """
    if len(episodes) == 0:
        raise _C.DataError(f"{name}: there are no episodes")
    columns: dict[str, list[np.ndarray]] = {field: [] for field in FIELDS[:3]}
    terminals, timeouts, sizes = [], [], (0, 0)
    for number, episode in enumerate(episodes):
        where = f"{name}: episode {number}"
        fields = _fields(episode, where)
        rewards = _numbers(fields["rewards"], f"{where}: rewards", "(T,)")
        count = len(rewards)
        if count == 0:
            raise _C.DataError(f"{where}: rewards are empty; leave the episode out")
        actions = _numbers(fields["actions"], f"{where}: actions", "(T, act_dim)")
        observations = _numbers(
            fields["observations"], f"{where}: observations", "(T or T + 1, state_dim)"
        )
        _require_rows(len(actions), (count,), f"{where}: actions")
        _require_rows(len(observations), (count, count + 1), f"{where}: observations")
        found = (observations.shape[1], actions.shape[1])
        sizes = sizes if number else found
        for field, size, first in zip(("observations", "actions"), found, sizes, strict=True):
            if size != first:
                raise _C.DataError(
                    f"{where}: {field} have {size} components, those of episode 0 have {first}"
                )
        _require_sum(rewards, f"{where}: rewards")
        for field, value in zip(FIELDS, (observations[:count], actions, rewards), strict=False):
            columns[field].append(value)
        last: np.ndarray = np.zeros(count, bool)
        last[-1] = True
        terminated = _flag(fields["terminated"], f"{where}: terminated")
        terminals.append(last & terminated)
        timeouts.append(last & (not terminated))
    arrays = {field: np.concatenate(values) for field, values in columns.items()}
    arrays |= {"terminals": np.concatenate(terminals), "timeouts": np.concatenate(timeouts)}
    return arrays


def config_path(store: _C.TrajectoryStore | _C.FrameStore) -> str:
    """What a run's ``dataset.path`` says of a store: its file or folder, or name and digest.

    The digest lets a resumed run notice that it is given other data. Of a recorded game, too: its
    folder alone does not say what was chosen from it.
    """
    path = Path(store.name)
    if isinstance(store, _C.FrameStore):
        digest = hashlib.sha256()
        for array in (store.actions, store.rewards, store.episode_ends):
            digest.update(np.ascontiguousarray(array).data.cast("B"))
        return f"{MEMORY}{path.stem}-{digest.hexdigest()[:12]}"
    return store.name if path.exists() else f"{MEMORY}{path.stem}"


def _store(
    arrays: dict[str, np.ndarray],
    name: str,
    environment: str,
    save: str | os.PathLike[str] | None,
) -> _C.TrajectoryStore:
    for field in ("terminals", "timeouts"):
        arrays[field] = arrays[field].astype(np.uint8)
    metadata = {"environment": environment} if environment else {}
    if save is not None:
        hdf5.write(save, arrays, metadata)
        return _C.open_dataset(os.fspath(save), "d4rl")
    digest = hashlib.sha256(environment.encode())
    for array in arrays.values():
        digest.update(repr(array.shape).encode())
        digest.update(np.ascontiguousarray(array).data.cast("B"))
    safe = re.sub(r"[^\w.-]+", "-", name)
    with tempfile.TemporaryDirectory(prefix="dmamba-") as folder:
        path = Path(folder) / f"{safe}-{digest.hexdigest()[:12]}.hdf5"
        hdf5.write(path, arrays, metadata)
        return _C.open_dataset(str(path), "d4rl")


def _fields(episode: Mapping[str, Any] | Sequence[Any], where: str) -> Mapping[str, Any]:
    if isinstance(episode, Mapping):
        missing = [field for field in FIELDS if field not in episode]
        if missing:
            raise _C.DataError(
                f"{where}: missing {', '.join(missing)}; it has {', '.join(map(str, episode))}"
            )
        return episode
    if not isinstance(episode, (tuple, list)) or len(episode) != len(FIELDS):
        count = f" of {len(episode)}" if isinstance(episode, (tuple, list)) else ""
        raise _C.DataError(
            f"{where}: must be a dict or a tuple ({', '.join(FIELDS)}), got "
            f"{type(episode).__name__}{count}"
        )
    return dict(zip(FIELDS, episode, strict=True))


def _numbers(value: Any, where: str, shape: str) -> np.ndarray:
    """A float32 array of finite numbers, of as many dimensions as ``shape`` names."""
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise _C.DataError(f"{where}: not an array {shape}: {error}") from error
    rank = 2 if "dim" in shape else 1
    if array.ndim != rank or 0 in array.shape[1:]:
        raise _C.DataError(f"{where}: must be {shape}, got {array.shape}")
    if array.dtype.kind not in "fiu":
        raise _C.DataError(f"{where}: must be real numbers, got {array.dtype}")
    with np.errstate(over="ignore"):
        converted = array.astype(np.float32)
    bad = np.argwhere(~np.isfinite(converted))
    if len(bad):
        place = ", ".join(map(str, bad[0]))
        raise _C.DataError(
            f"{where}[{place}] is {array[tuple(bad[0])]}, which is no finite float32 "
            f"({len(bad)} such values)"
        )
    return converted


def _flags(value: Any, where: str) -> np.ndarray:
    array = np.asarray(value)
    if array.ndim != 1:
        raise _C.DataError(f"{where}: must be (N,), got {array.shape}")
    if array.dtype.kind not in "biuf" or not np.isin(array, (0, 1)).all():
        raise _C.DataError(f"{where}: must be bool, or 0 and 1, got {array.dtype}")
    return array.astype(bool)


def _flag(value: Any, where: str) -> bool:
    array = np.asarray(value)
    if array.ndim != 0 or array.dtype.kind != "b":
        raise _C.DataError(
            f"{where}: must be one bool for the whole episode, got {array.dtype} of shape "
            f"{array.shape}"
        )
    return bool(array)


def _require_rows(found: int, allowed: tuple[int, ...], where: str) -> None:
    if found not in allowed:
        wanted = " or ".join(map(str, allowed))
        raise _C.DataError(
            f"{where}: {found} rows, must be {wanted}: there are {allowed[0]} rewards"
        )


def _require_sum(rewards: np.ndarray, where: str) -> None:
    sums = np.abs(np.cumsum(rewards[::-1], dtype=np.float64))
    if sums.max() > np.finfo(np.float32).max:
        raise _C.DataError(f"{where}: their sum leaves the range of float32; scale them down")
