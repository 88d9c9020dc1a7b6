"""Datasets by name: where their files lie on this machine, and where D4RL keeps them.

Minari's, whose names have slashes, have their own folder; see :mod:`dmamba.data.minari_folders`.

D4RL (J. Fu and others, arXiv 2004.07219) has recordings of four MuJoCo tasks, five qualities each,
in versions of which -v0 and -v2 are in use. Its server's names (d4rl/infos.py, d4rl/gym_mujoco):

    hopper-medium-v2          gym_mujoco_v2/hopper_medium-v2.hdf5
    hopper-medium-v0          gym_mujoco/hopper_medium.hdf5
    walker2d-medium-replay-v0 gym_mujoco/walker_mixed.hdf5
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmamba import _C
from dmamba.data import downloading, minari_download, minari_folders
from dmamba.data.episodes import MEMORY
from dmamba.envs import games

PACKAGE_FOLDER = Path(__file__).parents[1]
D4RL_URL = "http://rail.eecs.berkeley.edu/datasets/offline_rl"
TASKS = ("hopper", "halfcheetah", "walker2d", "ant")
QUALITIES = ("random", "medium", "medium-replay", "medium-expert", "expert")


@dataclass(frozen=True)
class Source:
    """A dataset that can be downloaded.

    Attributes:
        name: D4RL's name, such as ``hopper-medium-v2``.
        file_name: Its file in the cache; the version is always part of it.
        url_path: Its address below the server's root.
    """

    name: str
    file_name: str
    url_path: str

    @property
    def url(self) -> str:
        """The whole address: below ``$DMAMBA_D4RL_URL`` where that is set, else D4RL's server."""
        root = os.environ.get("DMAMBA_D4RL_URL") or D4RL_URL
        return f"{root.rstrip('/')}/{self.url_path}"


def _source(task: str, quality: str, version: int) -> Source:
    stem = f"{task}_{quality.replace('-', '_')}"
    file_name = f"{stem}-v{version}.hdf5"
    if version == 2:
        path = f"gym_mujoco_v2/{file_name}"
    elif quality == "medium-replay":
        path = f"gym_mujoco/{'walker' if task == 'walker2d' else task}_mixed.hdf5"
    else:
        path = f"gym_mujoco/{stem}.hdf5"
    return Source(f"{task}-{quality}-v{version}", file_name, path)


SOURCES: dict[str, Source] = {
    source.name: source
    for version in (2, 0)
    for task in TASKS
    for quality in QUALITIES
    for source in (_source(task, quality, version),)
}


def cache_folders() -> list[Path]:
    """Folders in which a dataset's name is looked up: ``$DMAMBA_DATA``, then the user's cache.

    Downloads go to the first.
    """
    folders = [Path.home() / ".cache" / "dmamba" / "datasets"]
    if os.environ.get("DMAMBA_DATA"):
        folders.insert(0, Path(os.environ["DMAMBA_DATA"]).expanduser())
    return folders


def locate(path_or_name: str | os.PathLike[str]) -> Path:
    """Finds the file or folder of a dataset on this machine; downloads nothing.

    Looked at, in this order: the path as it is; the package's samples (``hopper-medium``, or
    ``samples/hopper-medium.hdf5``); in ``$DMAMBA_DATA`` and then in ``~/.cache/dmamba/datasets``
    NAME, NAME.hdf5 and D4RL's own file name (hopper_medium-v2.hdf5 for hopper-medium-v2); then
    Minari's folder of that name. Files come before folders, which are those of Minari's datasets
    and of recorded games.

    Raises:
        DataError: None of them exists; the message lists them all.
    """
    name = os.fspath(path_or_name)
    candidates = _candidates(name)
    found = find(name)
    if found is not None:
        return found
    looked = "\n  ".join(str(candidate) for candidate in candidates)
    hint = ""
    if games.find(name):
        hint = "\n`dmamba data list` says how recordings of games are obtained"
    if name in SOURCES:
        hint = f"\n`dmamba data download {name}` downloads it"
    elif name.startswith(TASKS) and os.sep not in name and not name.endswith(".hdf5"):
        hint = "\n`dmamba data list` shows the names that can be downloaded"
    raise _C.DataError(f"dataset {name!r} not found; looked for\n  {looked}{hint}")


def find(name: str) -> Path | None:
    """What :func:`locate` finds, or None."""
    candidates = _candidates(name)
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    if candidates[0].exists():  # a device, say: the reader says what is wrong with it
        return candidates[0]
    folders = (candidate for candidate in candidates if candidate.is_dir())
    return next((folder for folder in folders if not minari_folders.is_namespace(folder)), None)


def obtain(
    path_or_name: str | os.PathLike[str], *, progress: bool = True, verify: bool = False
) -> Path:
    """Finds a dataset, and downloads it if its name is D4RL's or Minari's and it is not here yet.

    A file with a record of its download is held against it: by size and time of change, and by
    its SHA-256 where those don't settle it.

    Args:
        path_or_name: What :func:`locate` takes.
        progress: Whether to show a bar.
        verify: Compute the SHA-256 in any case; a file without a record is then an error.

    Raises:
        DataError: Not found, not to be had, or not what was recorded; the message says what to do.
    """
    name = os.fspath(path_or_name)
    source, found = SOURCES.get(name), find(name)
    if found is None and source is None and minari_folders.is_remote_id(name):
        return minari_download.obtain(name, progress=progress)
    if found is None:
        if source is None:
            return locate(name)  # which says where it looked
        target = cache_folders()[0] / source.file_name
        return downloading.download(source.url, target, name=name, progress=progress)
    if not downloading.check(found, full=verify) and verify:
        raise _C.DataError(f"{found}: no SHA-256 to verify it by: it was not downloaded here")
    return found


def listing() -> list[dict[str, Any]]:
    """The datasets that can be had by name: D4RL's, and Minari's that are here.

    Returns:
        For each a dict with ``name``, ``url`` (None of Minari's), ``path`` (None: not here),
        ``bytes`` (of the files) and ``partial_bytes`` (of an interrupted download).
    """
    rows = []
    for source in SOURCES.values():
        files = [f for folder in cache_folders() for f in _named(folder, source.name)]
        path = next((file for file in files if file.is_file()), None)
        part = downloading.part_of(cache_folders()[0] / source.file_name)
        rows.append(
            {
                "name": source.name,
                "url": source.url,
                "path": None if path is None else str(path),
                "bytes": 0 if path is None else path.stat().st_size,
                "partial_bytes": part.stat().st_size if part.is_file() else 0,
            }
        )
    return rows + minari_folders.listing()


def _candidates(name: str) -> list[Path]:
    if not name:
        raise _C.DataError("no dataset given: set dataset.path to a file or to a dataset's name")
    if name.startswith(MEMORY):
        raise _C.DataError(
            f"{name}: the run was trained on arrays in memory, which no file holds; give them "
            "again, dmamba.train(..., dataset=store, resume=True), or keep them in a file with "
            "dmamba.data.from_episodes(..., save=PATH)"
        )
    candidates = [Path(name).expanduser()]
    if not candidates[0].is_absolute():
        relative = name.removeprefix("samples/")
        candidates += _named(PACKAGE_FOLDER / "samples", relative)
        for folder in cache_folders():
            candidates += _named(folder, name)
        candidates.append(minari_folders.root() / name)
    return candidates


def _named(folder: Path, name: str) -> list[Path]:
    candidates = [folder / name]
    if not name.endswith(".hdf5"):
        candidates.append(folder / f"{name}.hdf5")
    stem = name.removesuffix(".hdf5")
    task, dash, version = stem.rpartition("-v")
    if dash and version.isdigit() and "-" in task:
        candidates.append(folder / f"{task.replace('-', '_')}-v{version}.hdf5")
    return candidates
