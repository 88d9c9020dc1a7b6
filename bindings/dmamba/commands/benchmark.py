"""``dmamba benchmark``: what this machine reaches."""

from __future__ import annotations

import argparse

from dmamba import benchmarking
from dmamba.commands.answers import Answer

HELP = "Time the training step, the scan and a policy here, beside the same in plain PyTorch."
EXAMPLES = (
    ("dmamba benchmark", "less than a minute"),
    ("dmamba benchmark --quick", "a rough answer"),
    ("dmamba benchmark --device cuda --precision bf16", "on a GPU"),
    ("dmamba benchmark --json > machine.json", "for a script"),
)
JSON = "machine, versions, and every part's medians, quartiles and ratios"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="(a GPU where there is one)",
    )
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16", "tf32"),
        default="fp32",
        help="of the training step (fp32)",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="of the CPU (torch's own choice)")
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--seconds",
        type=float,
        metavar="S",
        default=benchmarking.SECONDS,
        help=f"for each of {len(benchmarking.PARTS)} parts, after the warm-up "
        f"({benchmarking.SECONDS:g})",
    )
    length.add_argument(
        "--quick",
        dest="seconds",
        action="store_const",
        const=benchmarking.QUICK_SECONDS,
        help=f"{benchmarking.QUICK_SECONDS:g} seconds a part: few rounds, so a rough answer",
    )


def run(arguments: argparse.Namespace) -> Answer:
    """Measures; the answer is the table."""
    result = benchmarking.benchmark(
        arguments.device,
        precision=arguments.precision,
        threads=arguments.threads,
        seconds=arguments.seconds,
        progress=not arguments.quiet,
    )
    return Answer(benchmarking.format_result(result), result)
