"""``dmamba evaluate``: play episodes with a trained model."""

from __future__ import annotations

import argparse
from pathlib import Path

from dmamba.evaluation import evaluate, format_result
from dmamba.run import Run, locate_checkpoint, write_json

HELP = "Evaluate a run's latest checkpoint, or one checkpoint folder, in its environment."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("run", metavar="RUN", help="a run folder, or one checkpoint folder")
    parser.add_argument(
        "--targets", nargs="+", type=float, metavar="R", help="raw target returns (the run's own)"
    )
    parser.add_argument("--episodes", type=int, metavar="N", help="per target (the run's own)")
    parser.add_argument("--policy", choices=("windowed", "recurrent"), help="(the run's own)")
    parser.add_argument("--seed", type=int, metavar="S", help="of the environments (the run's own)")
    parser.add_argument(
        "--num-envs", type=int, metavar="N", help="environments at a time (512 on a GPU, else 32)"
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes that step them (by cores and episodes)"
    )
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        help="where the model computes (cpu for a run with training.device=cpu, else auto)",
    )
    parser.add_argument(
        "--weights",
        choices=("fp32", "bf16"),
        default="fp32",
        help="bf16: for the recurrent policy on the CPU",
    )
    parser.add_argument("--output", metavar="FILE", help="write the result as JSON, too")


def run(arguments: argparse.Namespace) -> int:
    """Evaluates and prints the table."""
    result = evaluate(
        arguments.run,
        targets=arguments.targets,
        episodes=arguments.episodes,
        policy=arguments.policy,
        seed=arguments.seed,
        num_envs=arguments.num_envs,
        device=arguments.device,
        weights=arguments.weights,
        workers=arguments.workers,
    )
    if arguments.output:
        write_json(Path(arguments.output), result)
    folder, _ = locate_checkpoint(Path(arguments.run))
    print(format_result(result, None if folder is None else Run(folder).dataset_mean()))
    return 0
