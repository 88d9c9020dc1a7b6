"""``dmamba context``: a context length from the data, and from how far back a model looks."""

from __future__ import annotations

import argparse
from pathlib import Path

from dmamba import _C, data, nn
from dmamba.commands.answers import Answer
from dmamba.configuration import load_config
from dmamba.evaluation import horizon
from dmamba.runs import Run, locate_checkpoint

HELP = "Propose a context length from a dataset, or from a short run's memory as well."
EXAMPLES = (
    ("dmamba context hopper-medium-v2", "by its episodes alone"),
    ("dmamba context runs/hopper-sample-seed0", "and by how far back the model looks"),
    ("dmamba context hopper-sample --lengths 10 20 40", "of these"),
)
JSON = "the tables and the proposed K"
LENGTHS = (5, 10, 20, 30, 50, 100)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("what", metavar="RUN|CONFIG", help="a run's folder, or what train takes")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of CONFIG")
    parser.add_argument("--lengths", nargs="+", type=int, metavar="K", help=f"{LENGTHS}")


def run(arguments: argparse.Namespace) -> Answer:
    """Says the tables and the proposal."""
    path = Path(arguments.what)
    model: nn.DMamba | None = None
    info = None
    if path.is_dir():
        if arguments.overrides:
            raise _C.ConfigError("settings go with a CONFIG; a RUN has its own")
        folder, checkpoint = locate_checkpoint(path)
        loaded, info = nn.load(checkpoint)
        config = info["config"] if folder is None else Run(folder).config
        if not isinstance(loaded, nn.DMamba):
            raise _C.ConfigError(f"{path}: the memory horizon is for models of vectors, not games")
        model = loaded
    else:
        config = load_config(arguments.what, arguments.overrides)
    store = data.load_configured(config.dataset, progress=not arguments.quiet)
    lengths = sorted(set(arguments.lengths or (*LENGTHS, config.model.context_length)))
    result = horizon.describe(store, lengths, model, info)
    return Answer(horizon.format_result(result), horizon.to_document(result))
