"""``dmamba train``: train a model, evaluate it, leave a run folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from dmamba import _C
from dmamba.commands.answers import Answer
from dmamba.common.ranks import leads
from dmamba.configuration import recipes
from dmamba.training import EVALUATE, train

HELP = "Train a model on a dataset and evaluate it in the dataset's environment."
EXAMPLES = (
    ("dmamba train hopper-sample", "a bundled dataset, minutes on two cores"),
    ("dmamba train hopper-medium seed=1 training.steps=20000", "settings as key=value"),
    ("dmamba train my.yaml dataset.path=mine.hdf5 --output runs/mine", "one's own"),
    ("dmamba train --resume runs/hopper-sample-seed0", "go on where it was stopped"),
    ("dmamba train hopper-sample --json > summary.json", "for a script"),
)
JSON = "the run's folder and its summary.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument(
        "config",
        nargs="?",
        metavar="CONFIG",
        help=f"a YAML file, or one of: {', '.join(recipes())}",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="settings, such as training.steps=1000 or evaluation.targets=[1800,3600]",
    )
    parser.add_argument("--output", metavar="DIR", help="run folder (runs/NAME-seedSEED)")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="RUN",
        help="continue the run in RUN, in --output, or in CONFIG's own folder",
    )
    parser.add_argument("--no-evaluate", action="store_true", help="train only")
    parser.add_argument(
        "--evaluate",
        choices=EVALUATE,
        default="auto",
        help="between the steps, or beside them in another process (auto: beside on a GPU)",
    )


def run(arguments: argparse.Namespace) -> Answer:
    """Trains; what came of it is printed at the end."""
    given = [word for word in (arguments.config, *arguments.overrides) if word is not None]
    resume, output = arguments.resume is not None, arguments.output
    if arguments.resume:
        if "=" in arguments.resume and not Path(arguments.resume).exists():
            given.append(arguments.resume)  # an override that followed a bare --resume
        elif output is not None:
            raise _C.ConfigError("--resume RUN names the run folder; --output must not, too")
        else:
            output = arguments.resume
    # Without CONFIG (a run that is resumed by its folder) the first word is an override already.
    config = given.pop(0) if given and "=" not in given[0] else None
    if config is None and output is None:
        raise _C.ConfigError(f"no CONFIG given: a YAML file, or one of {', '.join(recipes())}")
    made = train(
        config,
        given,
        output=output,
        resume=resume,
        progress=not arguments.quiet,
        evaluate=not arguments.no_evaluate and arguments.evaluate,
    )
    if not leads():
        return Answer()
    return Answer(document={"folder": made.folder, **made.summary()})
