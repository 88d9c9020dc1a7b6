"""``dmamba data record``: play whole episodes and keep them as a dataset."""

from __future__ import annotations

import argparse
from pathlib import Path

from dmamba import _C, data
from dmamba.commands.answers import Answer

OPTIONS = (
    *("output", "episodes", "transitions", "environment", "target", "policy", "temperature"),
    *("seed", "num_envs", "workers", "device", "timeout", "max_failed"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of ``record``; all default to None."""
    group = parser.add_argument_group(
        "record",
        "dmamba data record RUN --output PATH, or record --random --environment ID; "
        "Ctrl-C keeps the first episodes",
    )
    group.add_argument(
        "--output", metavar="PATH", help="file to make; for a game, the folder of its folder"
    )
    group.add_argument("--episodes", type=int, metavar="N", help="how many, or")
    group.add_argument(
        "--transitions", type=int, metavar="N", help="at least how many, in whole episodes"
    )
    group.add_argument("--random", action="store_true", help="random actions in place of a RUN")
    group.add_argument("--environment", metavar="ID", help="gymnasium id (the run's own)")
    group.add_argument("--target", type=float, metavar="R", help="raw return (the run's first)")
    group.add_argument("--policy", choices=("windowed", "recurrent"), help="(the run's own)")
    group.add_argument(
        "--temperature", type=float, metavar="T", help="of a game's actions (the run's own)"
    )
    group.add_argument("--seed", type=int, metavar="S", help="(0)")
    group.add_argument("--num-envs", type=int, metavar="N", help="environments at a time (16)")
    group.add_argument("--workers", type=int, metavar="N", help="processes (by the cores)")
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), help="as for evaluate")
    group.add_argument(
        "--timeout",
        type=float,
        metavar="S",
        help="seconds for one call (the run's own; 0: no limit)",
    )
    group.add_argument(
        "--max-failed", type=float, metavar="F", help="share of episodes that may fail (the run's)"
    )


def refuse(arguments: argparse.Namespace) -> None:
    """Raises ConfigError where an option of ``record`` was given to another action."""
    given = [name for name in OPTIONS if getattr(arguments, name) is not None]
    if given or arguments.random:
        name = given[0].replace("_", "-") if given else "random"
        raise _C.ConfigError(f"data {arguments.action} takes no --{name}; data record does")


def run(arguments: argparse.Namespace) -> Answer:
    """Records, and says what it has become."""
    if len(arguments.paths) != (not arguments.random):
        words = " ".join(arguments.paths) or "none"
        raise _C.ConfigError(f"data record: give one RUN, or none and --random; got {words}")
    if arguments.output is None:
        raise _C.ConfigError("data record: no --output given")
    path = data.record(
        None if arguments.random else arguments.paths[0],
        Path(arguments.output),
        episodes=arguments.episodes,
        transitions=arguments.transitions,
        environment=arguments.environment,
        target=arguments.target,
        kind=arguments.policy,
        temperature=arguments.temperature,
        seed=arguments.seed or 0,
        num_envs=arguments.num_envs,
        workers=arguments.workers,
        device=arguments.device,
        timeout=arguments.timeout,
        max_failed=arguments.max_failed,
        progress=not arguments.quiet,
    )
    found = data.info(path, progress=not arguments.quiet)
    return Answer(data.format_info(found), [found], note=True)
