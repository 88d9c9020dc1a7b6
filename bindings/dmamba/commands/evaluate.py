"""``dmamba evaluate``: play episodes with a trained model."""

from __future__ import annotations

import argparse
from pathlib import Path

from dmamba._C import ConfigError, Error
from dmamba.commands.answers import Answer
from dmamba.common.files import write_json
from dmamba.data.pretraining import FOLDER
from dmamba.display import describing
from dmamba.evaluation import contexts, evaluate
from dmamba.evaluation.suites import ENGINES, RTG_REWARDS
from dmamba.evaluation.video import check_path, record_video
from dmamba.runs import Run, locate_checkpoint

HELP = "Evaluate a run's latest checkpoint, or one checkpoint folder, in its environment."
EXAMPLES = (
    ("dmamba evaluate runs/hopper-sample-seed0", "as the run's configuration says"),
    ("dmamba evaluate RUN --targets 1800 3600 --episodes 100", "other target returns"),
    ("dmamba evaluate RUN --context-length 5,10,20", "one checkpoint with several K"),
    ("dmamba evaluate RUN --video hopper.gif", "a film of it"),
    ("dmamba evaluate RUN --json | jq '.targets[0].return_mean'", "for a script"),
)
JSON = "the evaluation, with the return of every episode"


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
    parser.add_argument(
        "--temperature",
        type=float,
        metavar="T",
        help="of games: actions are drawn from softmax(logits / T); 0: the best (the run's own)",
    )
    parser.add_argument(
        "--rtg-rewards",
        choices=RTG_REWARDS,
        help="what returns-to-go go down by; clipped: of games (the run's own)",
    )
    parser.add_argument(
        "--sticky-actions",
        type=float,
        metavar="P",
        help="of games: probability that a frame repeats the action before (the run's own)",
    )
    parser.add_argument(
        "--context-length",
        metavar="K",
        help="of the windowed policy: a number, several with commas (a table), or auto: the best "
        "in half of the episodes, reported in the other half (the model's)",
    )
    parser.add_argument(
        "--forget-after",
        type=int,
        default=0,
        metavar="N",
        help="the recurrent policy begins anew every N steps (0: never)",
    )
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        help="what steps the environments; envpool's seeds begin other episodes (the run's own)",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        metavar="S",
        help="seconds that one call of an environment may take; 0: no limit (the run's own)",
    )
    parser.add_argument(
        "--max-failed",
        type=float,
        metavar="F",
        help="share of a target's episodes that may fail before the evaluation does (the run's)",
    )
    parser.add_argument(
        "--video",
        metavar="FILE",
        help="film episode 0 of the first target, too: a .mp4 (needs imageio[ffmpeg]) or a .gif",
    )
    parser.add_argument(
        "--set", default="", metavar="NAME", help="of a run on several sets, the one to play for"
    )
    parser.add_argument("--output", metavar="FILE", help="write the result as JSON, too")


def run(arguments: argparse.Namespace) -> Answer:
    """Evaluates; the answer is the table."""
    if arguments.video:
        check_path(Path(arguments.video))
    if arguments.video and arguments.set:
        raise Error("--video films runs on one set: leave it or --set out")
    if arguments.output and not Path(arguments.output).absolute().parent.is_dir():
        raise Error(f"{arguments.output}: its folder does not exist; make it first")
    if arguments.output and Path(arguments.output).is_dir():
        raise Error(f"{arguments.output}: a folder; give the file to write")
    wanted = contexts.parse(arguments.context_length) if arguments.context_length else None
    if arguments.video and (wanted is not None or arguments.forget_after):
        raise ConfigError(
            "--video films the run's own policy; leave --context-length, --forget-after out"
        )
    choices = {
        "policy": arguments.policy,
        "seed": arguments.seed,
        "device": arguments.device,
        "weights": arguments.weights,
        "temperature": arguments.temperature,
        "rtg_rewards": arguments.rtg_rewards,
        "sticky_actions": arguments.sticky_actions,
    }
    result = evaluate(
        arguments.run,
        targets=arguments.targets,
        episodes=arguments.episodes,
        num_envs=arguments.num_envs,
        workers=arguments.workers,
        set=arguments.set,
        context_length=wanted,
        forget_after=arguments.forget_after,
        engine=arguments.engine,
        timeout=arguments.timeout,
        max_failed=arguments.max_failed,
        progress=not arguments.quiet,
        **choices,
    )
    if arguments.output:
        write_json(Path(arguments.output), result)
    if isinstance(wanted, list):
        return Answer(describing.format_any(result), result)
    folder, _ = locate_checkpoint(Path(arguments.run))
    if folder is not None and arguments.set:
        folder = folder / FOLDER / arguments.set
    mean = None if folder is None else Run(folder).dataset_mean()
    lines = [describing.format_any(result, mean)]
    if arguments.video:
        target = result["targets"][0]["target"]
        film = record_video(arguments.run, arguments.video, target, **choices)
        lines.append(
            f"video       {film['path']}: target {target:g}, return {film['return']:.1f}, "
            f"{film['length']} steps at {film['frames_per_second']:g} a second"
        )
        result["video"] = film
    return Answer("\n".join(lines), result)
