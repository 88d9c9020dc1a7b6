"""``dmamba data``: look at datasets, see which can be had by name, download them."""

from __future__ import annotations

import argparse
from pathlib import Path

from dmamba import _C, data, download, minari_folders, plots, replays
from dmamba.commands import record

HELP = "Show, download or record datasets: dmamba data info PATH, data list, download, record."
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


def run(arguments: argparse.Namespace) -> int:
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
        print(format_list())
        return 0
    if not arguments.paths:
        raise _C.ConfigError(f"data {arguments.action}: no dataset given")
    if arguments.action == "download":
        for path in arguments.paths:
            print(_download(path), flush=True)
        return 0
    _show(arguments)
    return 0


def _show(arguments: argparse.Namespace) -> None:
    chosen = {"buffers": arguments.buffers or 0, "game": arguments.game or ""}
    results = []
    for number, path in enumerate(arguments.paths):
        results.append(data.info(path, **chosen))
        text = data.format_info(results[-1])
        print(text if number == 0 else f"\n{text}", flush=True)
    if arguments.plot is not None:
        print(f"\nhistograms  {plots.plot_datasets(results, Path(arguments.plot))}")


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


def _download(name: str) -> str:
    path = data.download(name)
    if path.is_dir():
        return f"{name}  {path}\n  whole: read from beginning to end"
    megabytes = path.stat().st_size / 1e6
    digest = download.recorded_sha256(path) or "not recorded: this file was put there by hand"
    return f"{name}  {megabytes:.1f} MB  {path}\n  SHA-256  {digest}"
