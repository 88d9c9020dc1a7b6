"""``dmamba data``: look at datasets, see which can be had by name, download them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dmamba import _C, data
from dmamba.commands import record
from dmamba.commands.answers import Answer
from dmamba.data import downloading, minari_folders, replays
from dmamba.display import plots

HELP = "Show, download or record datasets: dmamba data info PATH, data list, download, record."
EXAMPLES = (
    ("dmamba data info samples/hopper-medium.hdf5", "a file's episodes, returns, scores"),
    ("dmamba data list", "which can be had by name"),
    ("dmamba data download hopper-medium-v2", "now, not at the first use"),
    ("dmamba data record RUN --episodes 100 --output mine.hdf5", "play becomes a dataset"),
)
JSON = "a list with a dict for each dataset"
ACTIONS = {
    "info": "sizes, lengths, returns, scores",
    "list": "names that can be downloaded, and which are here",
    "download": "D4RL's files and Minari's datasets; one that is here is checked again",
    "record": "whole episodes of a policy's play",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    text = "; ".join(f"{name}: {what}" for name, what in ACTIONS.items())
    parser.add_argument("action", choices=tuple(ACTIONS), help=text)
    what = "a file, a dataset's or a game's folder, a dataset's name; for record a run's folder"
    parser.add_argument("paths", nargs="*", metavar="PATH", help=what)
    group = parser.add_argument_group("info")
    group.add_argument("--plot", metavar="FILE", help="picture of the histograms: png, pdf or svg")
    group.add_argument("--buffers", type=int, metavar="N", help="the last so many shards of a game")
    group.add_argument("--game", metavar="NAME", help="of a folder that holds several")
    record.add_arguments(parser)


def run(arguments: argparse.Namespace) -> Answer:
    """Does what the action says, for each dataset."""
    if arguments.plot is not None:
        if arguments.action != "info":
            raise _C.ConfigError(f"data {arguments.action} takes no --plot; data info does")
        plots.check_format(Path(arguments.plot))  # before anything is read
    if arguments.action == "record":
        return record.run(arguments)
    record.refuse(arguments)
    if arguments.action == "list":
        if arguments.paths:
            raise _C.ConfigError(f"data list takes no names, got {' '.join(arguments.paths)}")
        return Answer(format_list(), data.listing())
    if not arguments.paths:
        raise _C.ConfigError(f"data {arguments.action}: no dataset given")
    shown = {"progress": not arguments.quiet}
    if arguments.action == "download":
        files = [_download(name, **shown) for name in arguments.paths]
        return Answer("\n".join(map(_format_download, files)), files, note=True)
    chosen = {"buffers": arguments.buffers or 0, "game": arguments.game or "", **shown}
    found = [data.info(path, **chosen) for path in arguments.paths]
    texts = [data.format_info(each) for each in found]
    if arguments.plot is not None:
        texts.append(f"histograms  {plots.plot_datasets(found, Path(arguments.plot))}")
    return Answer("\n\n".join(texts), found)


def format_list() -> str:
    """A line for each name, with size and path of those that are here."""
    rows = [["name", "MB", "path"]]
    for row in data.listing():
        if row["path"] is not None:
            rows.append([row["name"], f"{row['bytes'] / 1e6:.1f}", row["path"]])
        elif row["partial_bytes"]:
            rows.append([row["name"], f"{row['partial_bytes'] / 1e6:.1f}", "(interrupted)"])
        else:
            rows.append([row["name"], "", "-"])
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    lines = [
        f"{name.ljust(widths[0])}  {size.rjust(widths[1])}  {path}" for name, size, path in rows
    ]
    minari = (
        f"Minari's lie in {minari_folders.root()}; those of https://minari.farama.org come by id:"
        "\n  dmamba data download mujoco/hopper/medium-v0"
    )
    places = f"downloads of D4RL's go to {data.cache_folders()[0]}"
    return "\n".join([*lines, "", minari, "", replays.RECIPE, "", places])


def _download(name: str, progress: bool) -> dict[str, Any]:
    path = data.download(name, progress=progress)
    parts = [part for part in path.rglob("*") if part.is_file()] if path.is_dir() else [path]
    digest = None if path.is_dir() else downloading.recorded_sha256(path)
    size = sum(part.stat().st_size for part in parts)
    return {"name": name, "path": path, "bytes": size, "sha256": digest}


def _format_download(file: dict[str, Any]) -> str:
    checked = f"SHA-256  {file['sha256'] or 'not recorded: this file was put there by hand'}"
    if file["path"].is_dir():
        checked = "whole: read from beginning to end"
    return f"{file['name']}  {file['bytes'] / 1e6:.1f} MB  {file['path']}\n  {checked}"
