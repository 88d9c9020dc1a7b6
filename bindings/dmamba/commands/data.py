"""``dmamba data``: look at datasets."""

from __future__ import annotations

import argparse

from dmamba import data

HELP = "Show what a dataset holds: dmamba data info PATH."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("action", choices=("info",), help="info: sizes, lengths, returns, scores")
    parser.add_argument("paths", nargs="+", metavar="PATH", help="a file, or a dataset's name")


def run(arguments: argparse.Namespace) -> int:
    """Prints one block per dataset."""
    for number, path in enumerate(arguments.paths):
        text = data.format_info(data.info(path))
        print(text if number == 0 else f"\n{text}", flush=True)
    return 0
