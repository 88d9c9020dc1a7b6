"""``dmamba export``: a run's policy as a folder in the Hugging Face form."""

from __future__ import annotations

import argparse
from pathlib import Path

from dmamba.commands.answers import Answer
from dmamba.common.files import read_json
from dmamba.evaluation.exporting import export

HELP = "Write a run's policy as a folder with parameters, configuration and model card."
EXAMPLES = (
    ("dmamba export runs/hopper-sample-seed0 hopper-policy", "the latest checkpoint"),
    ("dmamba export runs/pretrain-seed0 hopper --set hopper-medium", "one of several sets"),
)
JSON = "a dict with folder and files"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("run", metavar="RUN", help="a run folder, or one checkpoint folder")
    parser.add_argument(
        "folder", metavar="FOLDER", help="to be made; one that was exported before is replaced"
    )
    parser.add_argument(
        "--set", default="", metavar="NAME", help="of a run on several sets, the one that is meant"
    )
    parser.add_argument(
        "--evaluation",
        metavar="FILE",
        help="what dmamba evaluate --output wrote, for the card (the run's own of this step)",
    )


def run(arguments: argparse.Namespace) -> Answer:
    """Exports, and says what can be done with the folder."""
    evaluation = read_json(Path(arguments.evaluation)) if arguments.evaluation else None
    folder = export(arguments.run, arguments.folder, set=arguments.set, evaluation=evaluation)
    files = sorted(path.name for path in Path(folder).iterdir())
    text = f"{folder}: {', '.join(files)}\nevaluate it: dmamba evaluate {arguments.folder}"
    return Answer(text, {"folder": folder, "files": files}, note=True)
