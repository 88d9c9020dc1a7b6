"""``dmamba sweep``: train every point of a grid of settings and seeds, and compare them."""

from __future__ import annotations

import argparse

from dmamba import _C, engines
from dmamba.sweeping import sweep
from dmamba.training import recipes

HELP = "Train a grid of settings and seeds, several runs at a time, and compare the points."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument(
        "config", metavar="CONFIG", help=f"a YAML file, or one of: {', '.join(recipes())}"
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=v1,v2,...",
        help="lists such as K=5,10,20 and ranges such as seed=0:5 (0 to 4) span the grid; one "
        "value is for all runs; commas inside brackets belong to the value",
    )
    parser.add_argument("--output", metavar="DIR", help="folder of the sweep (runs/sweep-NAME)")
    parser.add_argument(
        "--jobs", type=int, metavar="N", help="runs at a time (4 on a GPU, else half the cores)"
    )
    parser.add_argument(
        "--engine", default=engines.HERE, metavar="E", help=f"{', '.join(engines.ENGINES)} (local)"
    )
    parser.add_argument(
        "--ray", metavar="k=v,...", help="address=, and of each run cpus=, gpus= (a fraction: 0.25)"
    )
    parser.add_argument(
        "--slurm", metavar="k=v,...", help="submitit's parameters: time=60 (minutes), partition=gpu"
    )
    parser.add_argument("--no-progress", action="store_true", help="print nothing but errors")


def run(arguments: argparse.Namespace) -> int:
    """Sweeps; 0 if every run has finished."""
    result = sweep(
        arguments.config,
        arguments.overrides,
        output=arguments.output,
        jobs=arguments.jobs,
        progress=not arguments.no_progress,
        engine=arguments.engine,
        engine_options=_engine_options(arguments),
    )
    return 1 if result.failures else 0


def _engine_options(arguments: argparse.Namespace) -> dict[str, object]:
    """The options of the chosen engine; those of another are refused."""
    given = {"ray": arguments.ray, "slurm": arguments.slurm}
    for name, text in given.items():
        if text is not None and name != arguments.engine:
            raise _C.ConfigError(f"--{name} is for --engine {name}, not {arguments.engine}")
    return engines.parse_options(given.get(arguments.engine) or "")
