"""Minari's datasets on this machine: their names, their folders, what their metadata says.

A dataset ``mujoco/hopper/medium-v0`` lies in ROOT/mujoco/hopper/medium-v0/data (Minari 0.5,
https://minari.farama.org): ``metadata.json`` and, by its format, ``main_data.hdf5`` or a folder for
each episode (arrow, parquet). ROOT is ``$MINARI_DATASETS_PATH``, else ``~/.minari/datasets``.
Nothing here needs the minari package.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dmamba import _C
from dmamba.envs import ids

METADATA_FILE = "metadata.json"
HDF5_FILE = "main_data.hdf5"
FORMATS = ("hdf5", "arrow", "parquet")
PARTIAL = ".dmamba-partial"  # of downloads; hidden, so that Minari doesn't take it for a dataset

# A name with a namespace; one without could be anybody's.
_REMOTE_ID = re.compile(r"[-\w][-\w/]*[-\w]+/[-\w]+-v\d+")
_NESTED = {"Dict": dict, "Tuple": list}  # how the spaces in these are written
# What metadata.json may say that a store repeats.
_FACTS = ("dataset_id", "algorithm_name", "minari_version", "ref_min_score", "ref_max_score")


def root() -> Path:
    """The folder of all of Minari's datasets."""
    named = os.environ.get("MINARI_DATASETS_PATH")
    return Path(named).expanduser() if named else Path.home() / ".minari" / "datasets"


def is_remote_id(name: str) -> bool:
    """Whether a name may be that of a dataset on Minari's server: NAMESPACE/NAME-vN."""
    return _REMOTE_ID.fullmatch(name) is not None


def data_folder(path: Path) -> Path | None:
    """The folder in which a dataset's ``metadata.json`` belongs.

    Args:
        path: The folder of a dataset, its folder ``data``, or ``main_data.hdf5`` in that.

    Returns:
        The folder, whether or not the dataset is whole; None where ``path`` is none of Minari's.
    """
    if path.is_file():
        return path.parent if path.name == HDF5_FILE else None
    inner = path / "data"
    if root() in path.absolute().parents and inner.is_dir():
        return inner
    for folder in (inner, path):
        if (folder / HDF5_FILE).is_file() or _describes_set(folder / METADATA_FILE):
            return folder
    return None


def is_namespace(folder: Path) -> bool:
    """Whether a folder below :func:`root` holds datasets, or nothing, but is none."""
    return root() in folder.absolute().parents and data_folder(folder) is None


def read_metadata(folder: Path) -> dict[str, Any]:
    """What ``metadata.json`` says.

    Args:
        folder: Of :func:`data_folder`.

    Raises:
        DataError: It is not there, damaged, or lacks what every version of Minari writes.
    """
    path = folder / METADATA_FILE
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _C.DataError(
            f"{folder}: there is no {METADATA_FILE}, so the dataset is incomplete, as after a "
            "download that was interrupted; remove the folder and download it again"
        ) from None
    except (ValueError, OSError, RecursionError) as error:
        raise _C.DataError(f"{path}: cannot be read: {error}") from error
    wanted = ("total_episodes", "total_steps")
    if not isinstance(metadata, dict) or not all(
        isinstance(metadata.get(key), int) for key in wanted
    ):
        raise _C.DataError(f"{path}: lacks {' and '.join(wanted)}, which Minari always writes")
    form = metadata.get("data_format", "hdf5")  # versions before 0.5 knew no other
    if form not in FORMATS:
        raise _C.DataError(f"{path}: data_format is {form!r}, known are {', '.join(FORMATS)}")
    return metadata


def facts(metadata: dict[str, Any]) -> dict[str, str]:
    """What a store says of itself: the environment's id, the dataset's, who played."""
    found = {key: str(metadata[key]) for key in _FACTS if metadata.get(key) not in (None, "")}
    recorded = _environment(metadata.get("env_spec"))
    intended = _environment(metadata.get("eval_env_spec")) or recorded
    if intended:
        found["environment"] = intended
    if recorded != intended:
        found["recorded_in"] = recorded
    return found


def check_spaces(metadata: dict[str, Any], where: str) -> None:
    """Refuses what is no vector of real numbers, by what ``metadata.json`` says of the spaces.

    Observations may be dictionaries and tuples of vectors. Where it says nothing, the reader goes
    by the data.

    Args:
        metadata: What the file says.
        where: Begins messages.

    Raises:
        DataError: Discrete actions, pictures, texts; the message names the key and the space.
    """
    for key, space in _parts("observations", space_of(metadata, "observation_space", where)):
        if space["type"] != "Box" or len(space["shape"]) > 1:
            raise _C.DataError(
                f"{where}: {key} are {_name(space)}; observations must be vectors of numbers "
                "(Box of at most one dimension), or dictionaries or tuples of such"
            )
    for key, space in _parts("actions", space_of(metadata, "action_space", where)):
        if key != "actions" or space["type"] != "Box" or len(space["shape"]) != 1:
            kind = _name(space) if key == "actions" else "a dictionary or a tuple"
            raise _C.DataError(
                f"{where}: actions are {kind}; they must be a vector of real numbers (Box of one "
                "dimension). Only models of Atari games choose among discrete actions, and "
                "recordings for those are in the DQN-replay layout"
            )


def listing() -> list[dict[str, Any]]:
    """The datasets below :func:`root`, in the form of ``dmamba.data.listing``.

    One without its ``metadata.json``, which an interrupted download leaves behind, has no ``path``.
    """
    rows = []
    for folder in sorted(_datasets(root())):
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        whole = (folder / "data" / METADATA_FILE).is_file()
        rows.append(
            {
                "name": folder.relative_to(root()).as_posix(),
                "url": None,
                "path": str(folder) if whole else None,
                "bytes": size if whole else 0,
                "partial_bytes": 0 if whole else size,
            }
        )
    return rows


def _datasets(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        return
    for child in folder.iterdir():
        if child.is_dir() and not child.name.startswith("."):
            if (child / "data").is_dir():
                yield child
            else:
                yield from _datasets(child)


def _describes_set(path: Path) -> bool:
    """Whether a file is a ``metadata.json`` of Minari's, even of a dataset that is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and "total_episodes" in content


def space_of(metadata: dict[str, Any], key: str, where: str) -> dict[str, Any] | None:
    """``observation_space`` or ``action_space`` as Minari writes it; None where it says nothing.

    Raises:
        DataError: It cannot be read; ``where`` begins the message.
    """
    text = metadata.get(key)
    if text is None:
        return None
    try:
        return _checked(json.loads(text))
    except (TypeError, ValueError, KeyError, RecursionError) as error:
        raise _C.DataError(f"{where}: {key} is damaged: {error!r}") from error


def _checked(space: Any) -> dict[str, Any]:
    """A space, and those in it, with what the rest relies on: a type, and in a Box a shape."""
    if not isinstance(space, dict) or not isinstance(space["type"], str):
        raise TypeError(f"a space is {type(space).__name__}, or its type no text")
    if space["type"] == "Box" and not isinstance(space.setdefault("shape", []), list):
        raise TypeError("the shape of a Box is no list")
    if space["type"] in _NESTED:
        inner = space["subspaces"]
        if not isinstance(inner, _NESTED[space["type"]]):
            raise TypeError(f"the subspaces of a {space['type']} are {type(inner).__name__}")
        for part in inner.values() if isinstance(inner, dict) else inner:
            _checked(part)
    return space


def _parts(key: str, space: dict[str, Any] | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """The spaces that are neither dictionary nor tuple, with their keys."""
    if space is None:
        return
    if space["type"] == "Dict":
        for name, part in space["subspaces"].items():
            yield from _parts(f"{key}/{name}", part)
    elif space["type"] == "Tuple":
        for index, part in enumerate(space["subspaces"]):
            yield from _parts(f"{key}/{index}", part)
    else:
        yield key, space


def _name(space: dict[str, Any]) -> str:
    said = [f"{key} {space[key]}" for key in ("shape", "n", "nvec", "dtype") if key in space]
    return f"{space['type']} ({', '.join(said)})" if said else str(space["type"])


def _environment(spec: str | None) -> str:
    """The id of an EnvSpec as gymnasium writes it in JSON, with what differs from its defaults."""
    if not spec:
        return ""
    try:
        content = json.loads(spec)
        name, found = str(content["id"]), dict(content.get("kwargs") or {})
        arguments = {str(key): value for key, value in found.items()}
        module = str(content.get("entry_point") or "").partition(":")[0].partition(".")[0]
    except (TypeError, ValueError, KeyError, RecursionError):
        return ""
    if module not in ("", "gymnasium") and ":" not in name:
        name = f"{module}:{name}"  # gymnasium imports it, which registers the environment
    arguments.pop("render_mode", None)
    return ids.join(name, _unusual(name, arguments))


def _unusual(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments that are not those with which the environment is registered."""
    module = name.rpartition(":")[0].partition(".")[0]
    if not arguments or (module and module not in sys.modules):
        return arguments  # what a file says is no reason to import a module
    try:
        import gymnasium
    except ImportError:
        return arguments
    from dmamba.envs import vector

    try:
        usual = vector.find_spec(name).kwargs
    except (ImportError, ValueError, gymnasium.error.Error):  # nothing is known of it
        return arguments
    missing = object()
    return {key: value for key, value in arguments.items() if usual.get(key, missing) != value}
