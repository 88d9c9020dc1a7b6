"""Reading Minari's datasets into stores.

HDF5 is read by our own reader, which leaves out the infos and needs no other package: 300 episodes
of 1,000 steps take it 0.61 s where Minari's ``iterate_episodes`` takes 3.55 s, on two busy cores
(``scripts/benchmark_minari.py``). Arrow and Parquet are read with pyarrow. Nothing here needs the
minari package.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dmamba import _C
from dmamba.data import episodes, minari_folders

FORMAT = "minari"
_FIELDS = ("observations", "actions", "rewards", "terminations", "truncations")


def is_set(path: Path) -> bool:
    """Whether a path is a dataset of Minari's: its folder, the folder ``data``, or its file."""
    return minari_folders.data_folder(path) is not None


def is_read_from(store: _C.EpisodeStore) -> bool:
    """Whether a store was read from a dataset of Minari's."""
    return "dataset_id" in store.metadata


def load(path: Path, **kept: Any) -> _C.TrajectoryStore:
    """Reads a dataset.

    Args:
        path: As for :func:`is_set`.
        **kept: Where transitions are: ``storage``, ``scratch`` and ``progress`` of
            ``_C.open_minari``; what pyarrow reads is in memory.

    Returns:
        A store with the metadata that :func:`dmamba.data.minari_folders.facts` gives, and, where
        they apply, ``episodes_without_end``, how many are neither terminated nor truncated, which
        count as cut, and, of HDF5, ``observation_parts``, the datasets of which an observation is
        put together, in their order.

    Raises:
        DataError: Incomplete, damaged, or of spaces that are not supported; the message names
            file, episode and key.
    """
    folder = minari_folders.data_folder(path)
    if folder is None:
        raise _C.DataError(f"{path}: not a dataset of Minari's: there is no metadata.json")
    metadata = minari_folders.read_metadata(folder)
    minari_folders.check_spaces(metadata, str(folder / minari_folders.METADATA_FILE))
    facts = minari_folders.facts(metadata)
    form = metadata.get("data_format", "hdf5")
    if form == "hdf5":
        store = _C.open_minari(str(folder / minari_folders.HDF5_FILE), facts, **kept)
    else:
        store = _load_tables(folder, form, metadata, facts)
    for what, found in (("episodes", store.num_episodes), ("steps", store.num_transitions)):
        told = metadata[f"total_{what}"]
        if found != told:
            raise _C.DataError(
                f"{store.name}: has {found} {what}, but {folder / minari_folders.METADATA_FILE} "
                f"says {told}; the dataset is incomplete or was changed by hand"
            )
    return store


def _load_tables(
    folder: Path, form: str, metadata: dict[str, Any], facts: dict[str, str]
) -> _C.TrajectoryStore:
    """Reads what Minari writes with pyarrow: a folder with tables for each episode."""
    try:
        import pyarrow as pa
        from pyarrow import dataset
    except ImportError as error:
        raise _C.DataError(
            f"{folder}: its data are in the format {form}, which is read with pyarrow ({error}): "
            "pip install pyarrow"
        ) from error
    found = []
    for number in range(metadata["total_episodes"]):
        place = folder / str(number)
        try:
            files = dataset.dataset(place, format=form, ignore_prefixes=["_", ".", "metadata.json"])
            table = files.to_table(columns=list(_FIELDS)).combine_chunks()
            steps = int(json.loads((place / "metadata.json").read_text("utf-8"))["total_steps"])
            found.append(_episode(table, steps, metadata, f"{folder}: episode {number}"))
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
            raise _C.DataError(
                f"{place}: cannot be read as {form}: {type(error).__name__}: {error}"
            ) from error
    cut = sum(not (episode["terminated"] or episode["truncated"]) for episode in found)
    if cut:
        facts["episodes_without_end"] = str(cut)
    arrays = episodes.collect(found, str(folder))
    return _C.create_store(**arrays, name=str(folder), metadata=facts)


def _episode(table: Any, steps: int, metadata: dict[str, Any], where: str) -> dict[str, Any]:
    """An episode as ``dmamba.data.from_episodes`` takes it.

    Its table has a row for each observation; of the other columns the last row is filling.
    """
    space = minari_folders.space_of(metadata, "observation_space", where)
    parts = list(_parts(table["observations"], space, f"{where}: observations"))
    ends = {key: table[key].to_numpy()[:steps] for key in ("terminations", "truncations")}
    for key, flags in ends.items():
        early = np.flatnonzero(flags[:-1])
        if len(early):
            raise _C.DataError(
                f"{where}: {key} row {early[0]} is set, but the episode goes on to row "
                f"{steps - 1}; it must end there, or be two episodes"
            )
    return {
        "observations": np.concatenate(parts, axis=1),
        "actions": _matrix(table["actions"], f"{where}: actions")[:steps],
        "rewards": table["rewards"].to_numpy()[:steps],
        "terminated": bool(ends["terminations"].any()),
        "truncated": bool(ends["truncations"].any()),
    }


def _parts(column: Any, space: dict[str, Any] | None, where: str) -> Iterator[np.ndarray]:
    """The parts (T + 1, n) of observations, in the order in which ``open_minari`` has them."""
    kind = None if space is None else space["type"]
    if space is None or kind not in ("Dict", "Tuple"):
        yield _matrix(column, where)
        return
    subspaces = space["subspaces"]
    keys = sorted(subspaces) if kind == "Dict" else range(len(subspaces))
    structure = _array(column)
    for key in keys:
        yield from _parts(structure.field(str(key)), subspaces[key], f"{where}/{key}")


def _matrix(column: Any, where: str) -> np.ndarray:
    """A column of lists of one length as (rows, n)."""
    lists = _array(column)
    size = getattr(lists.type, "list_size", None)
    if size is None:
        raise _C.DataError(f"{where} must be vectors, got {lists.type}")
    return lists.flatten().to_numpy(zero_copy_only=False).reshape(len(lists), size)


def _array(column: Any) -> Any:
    """A table's column, or a structure's, in one piece."""
    return column.combine_chunks() if hasattr(column, "combine_chunks") else column
