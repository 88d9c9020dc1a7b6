"""``dmamba sweep``: train every point of a grid of settings and seeds, and compare them."""

from __future__ import annotations

import argparse

from dmamba import _C, engines
from dmamba.commands.answers import Answer
from dmamba.configuration import recipes
from dmamba.sweeps import sweep

HELP = "Train a grid of settings and seeds, several runs at a time, and compare the points."
EXAMPLES = (
    ("dmamba sweep hopper-medium K=5,10,20 seed=0:3", "three settings, three seeds each"),
    (
        "dmamba sweep hopper-medium learning_rate=log:1e-4..1e-2 dropout=0.0..0.3 K=5,10,20 "
        "seed=0:2 --trials 20 --target 3600",
        "a search; pip install 'dmamba[sweep]'",
    ),
    (
        "dmamba sweep hopper-medium K=5,10,20 seed=0:3 --engine ray "
        "--ray address=auto,cpus=4,gpus=0.25",
        "on a Ray cluster",
    ),
    (
        "dmamba sweep hopper-medium K=5,10,20 seed=0:3 --engine slurm "
        "--slurm time=60,partition=gpu,gpus_per_node=1,cpus_per_task=8",
        "on a Slurm cluster; pip install 'dmamba[slurm]'",
    ),
)
JSON = "the sweep's folder, a row for each point, and what failed"


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
        "value is for all runs; commas inside brackets belong to the value; with --trials also "
        "ranges learning_rate=log:1e-4..1e-2, dropout=0.0..0.3",
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
    parser.add_argument(
        "--trials", type=int, metavar="N", help="a search: Optuna chooses N settings"
    )
    parser.add_argument(
        "--sampler", metavar="S", help="how: tpe (default), random, cmaes, gp, qmc, grid"
    )
    parser.add_argument("--sampler-seed", type=int, metavar="N", help="seed of the choices (0)")
    parser.add_argument(
        "--target", metavar="T", help="score to make large: at a target return, mean, or best"
    )


def run(arguments: argparse.Namespace) -> Answer:
    """Sweeps; 0 if every run has finished."""
    given = {
        "sampler": arguments.sampler,
        "sampler_seed": arguments.sampler_seed,
        "target": arguments.target,
    }
    options = {name: value for name, value in given.items() if value is not None}
    if options and arguments.trials is None:
        name = next(iter(options)).replace("_", "-")
        raise _C.ConfigError(f"--{name} is for a search: say how many settings with --trials N")
    if "target" in options:
        options["target"] = _target(options["target"])
    result = sweep(
        arguments.config,
        arguments.overrides,
        output=arguments.output,
        jobs=arguments.jobs,
        progress=not arguments.quiet,
        engine=arguments.engine,
        engine_options=_engine_options(arguments),
        trials=arguments.trials,
        **options,
    )
    document = {"folder": result.folder, "rows": result.rows, "failures": result.failures}
    return Answer(document=document, code=1 if result.failures else 0)


def _engine_options(arguments: argparse.Namespace) -> dict[str, object]:
    """The options of the chosen engine; those of another are refused."""
    given = {"ray": arguments.ray, "slurm": arguments.slurm}
    for name, text in given.items():
        if text is not None and name != arguments.engine:
            raise _C.ConfigError(f"--{name} is for --engine {name}, not {arguments.engine}")
    return engines.parse_options(given.get(arguments.engine) or "")


def _target(text: str) -> float | str:
    """A number where it is one; what else there may be is the search's to say."""
    try:
        return float(text)
    except ValueError:
        return text
