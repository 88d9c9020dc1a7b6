"""Evaluation of a trained model in its environment: returns, lengths, normalised scores.

All target returns are evaluated together in one batch of environments, see ``rollout.py``.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dmamba import _C, envs, nn
from dmamba.common import scores
from dmamba.data import pretraining
from dmamba.display.describing import Evaluation
from dmamba.display.progress import bar
from dmamba.envs.failures import Guard, Tally
from dmamba.envs.jobs import Job, make_jobs
from dmamba.evaluation import suites
from dmamba.evaluation.rollout import play
from dmamba.nn.external import ExternalModel, Model, seeded
from dmamba.runs import Run, locate_checkpoint

if TYPE_CHECKING:
    from dmamba.nn.external import Factory


def evaluate_model(
    model: Model,
    info: dict[str, Any],
    *,
    environment: str,
    targets: Sequence[float],
    episodes: int,
    policy: str = "windowed",
    seed: int = 0,
    confidence: float = 0.95,
    num_envs: int | None = None,
    workers: int | None = None,
    most_workers: int | None = None,
    max_episode_length: int = 0,
    dataset: str = "",
    weights: str = "fp32",
    temperature: float = 1.0,
    rtg_rewards: str = "raw",
    sticky_actions: float = 0.0,
    context_length: int = 0,
    forget_after: int = 0,
    first_episode: int = 0,
    engine: str = "workers",
    timeout: float = 60.0,
    max_failed: float = 0.1,
    progress: bool = True,
    check: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Evaluates a model that is in memory; :func:`evaluate` says what comes back.

    Args:
        model: The model, one of games, or a user's own, on the device where it is to compute; its
            training mode stays what it is.
        info: ``step``, ``state_mean``, ``state_std``, ``rtg_scale`` and ``context_length``, as
            ``dmamba.nn.load`` gives.
        environment: gymnasium id.
        targets: Raw returns to ask for.
        episodes: Per target.
        policy: ``windowed`` or ``recurrent``.
        seed: Of the environments and of the bootstrap.
        confidence: Of the intervals.
        num_envs: Environments at a time; None: 512 (128 games) for a model on a GPU, 32 for one on
            the CPU, or fewer if there are fewer episodes.
        workers: Processes that step them, or threads that play games; None: by the cores. 1: this
            process steps them, which a crash or a hanging environment then ends or holds up; None
            leaves that to gymnasium's own environments.
        most_workers: At most so many where ``workers`` is None.
        max_episode_length: Time limit in steps; 0, or one above the environment's own, leaves that.
        dataset: The training set's name or path, to label the score's constants.
        weights: ``fp32`` or ``bf16``; as for :func:`evaluate`.
        rtg_rewards: ``raw``, ``clipped`` or ``none``: what returns-to-go go down by.
        temperature: Of games alone, as the next: of the softmax that actions are drawn from.
        sticky_actions: Probability that a frame repeats the action before.
        context_length: K of the windowed policy; 0: the one that a schedule or a bandit has chosen
            while the model was trained, else the model's.
        forget_after: Steps after which the recurrent policy begins anew; 0: never.
        first_episode: Number of the first episode; an episode's seed follows from its number.
        engine: ``workers`` or ``envpool``; see :func:`evaluate`.
        timeout: Seconds that one make, reset or step may take in a worker process; 0: no limit.
        max_failed: The share of a target's episodes that may fail.
        progress: Whether to show a bar.
        check: Called after every step; may raise to stop.

    Returns:
        As :func:`evaluate`.

    Raises:
        ConfigError: Impossible arguments, or an environment that cannot be made.
        DataError: The environment's sizes, or a game's actions, are not the model's.
        Error: gymnasium or ale-py is missing, or too many episodes failed.
    """
    check_request(targets, episodes, seed, num_envs, workers)
    started = time.perf_counter()
    if policy == "windowed":
        context_length = context_length or info.get("context_length", 0)
    choices = suites.Choices(
        policy,
        weights,
        rtg_rewards,
        temperature,
        sticky_actions,
        max_episode_length,
        context_length,
        forget_after,
        engine,
    )
    suite = suites.choose(model, info, environment, choices)
    environment = suite.environment
    jobs = make_jobs(targets, episodes, seed, first_episode)
    seeds = np.array([job.seed for job in jobs])
    device = suites.model_device(model)
    slots = min(num_envs or suite.num_envs[device.type], len(jobs))
    guard = Guard(timeout, check, isolated=workers is None and suite.isolates)
    usual = suite.default_workers(len(jobs), slots)
    workers = min(workers or min(usual, most_workers or slots), slots)
    tally = Tally(environment, targets, episodes, max_failed)
    returns = np.full((len(targets), episodes), np.nan)
    lengths: np.ndarray = np.zeros((len(targets), episodes), dtype=np.int64)
    with (
        # A user's own model may draw numbers.
        seeded(seed, device) if isinstance(model, ExternalModel) else contextlib.nullcontext(),
        suite.environments(slots, workers, seeds, guard=guard) as environments,
        bar(len(jobs), f"evaluating {environment}", "episode", enabled=progress) as shown,
    ):

        def on_episode(job: Job, total: float, length: int) -> None:
            returns[job.target_index, job.episode] = total
            lengths[job.target_index, job.episode] = length
            shown.update()

        def on_failure(job: Job, what: str, step: int) -> None:
            tally.add(job, what, step)
            shown.update()

        play(suite.policy(slots), environments, jobs, on_episode, check, on_failure)
        replaced = environments.replaced
    tally.warn()
    constants = envs.score_constants(environment, dataset)
    found = {
        "environment": environment,
        "dataset": dataset,
        "policy": policy,
        "weights": weights,
        "context_length": context_length or model.config.context_length,
        "trained_context_length": model.config.context_length,
        "forget_after": forget_after,
        **suite.describe(),
        "checkpoint_step": int(info["step"]),
        "seed": seed,
        "num_envs": slots,
        "workers": workers,
        "replaced_workers": replaced,
        "device": device_name(device),
        "confidence": confidence,
        "targets": [
            _target_result(
                environment,
                float(target),
                returns[i],
                lengths[i],
                tally.of_target(float(target)),
                confidence,
                seed,
            )
            for i, target in enumerate(targets)
        ],
        "failures": tally.describe(),
        "constants": constants,
        "time_seconds": time.perf_counter() - started,
    }
    return Evaluation(found)


def settings(config: _C.Config) -> dict[str, Any]:
    """What :func:`evaluate_model` is asked for by a run's configuration."""
    asked = config.evaluation
    return {
        "environment": config.dataset.environment,
        "targets": asked.targets,
        "episodes": asked.episodes,
        "policy": asked.policy,
        "seed": asked.seed,
        "confidence": asked.confidence,
        "temperature": asked.temperature,
        "rtg_rewards": asked.rtg_rewards,
        "sticky_actions": asked.sticky_actions,
        "engine": asked.engine,
        "timeout": asked.timeout,
        "max_failed": asked.max_failed,
        "max_episode_length": config.dataset.max_episode_length,
        "dataset": config.dataset.path,
    }


def trainer_info(trainer: _C.Trainer, config: _C.Config) -> dict[str, Any]:
    """What :func:`evaluate_model` needs beside a trainer's model, as it is now."""
    return {
        "step": trainer.step,
        "state_mean": trainer.state_mean,
        "state_std": trainer.state_std,
        "rtg_scale": config.dataset.rtg_scale,
        "context_length": trainer.context_length,
    }


def evaluate(
    run: Run | str | Path,
    targets: Sequence[float] | None = None,
    episodes: int | None = None,
    policy: str | None = None,
    seed: int | None = None,
    num_envs: int | None = None,
    progress: bool = True,
    device: str | None = None,
    weights: str = "fp32",
    workers: int | None = None,
    temperature: float | None = None,
    rtg_rewards: str | None = None,
    sticky_actions: float | None = None,
    set: str = "",
    context_length: int | Sequence[int] | str | None = None,
    forget_after: int = 0,
    model: torch.nn.Module | Factory | None = None,
    engine: str | None = None,
    timeout: float | None = None,
    max_failed: float | None = None,
) -> Evaluation:
    """Evaluates a run's latest checkpoint in the environment of its dataset.

    What is left out is taken from the run's configuration.

    Args:
        run: A :class:`dmamba.Run`, a run folder, or one checkpoint folder.
        targets: Raw returns to ask for.
        episodes: Per target.
        policy: ``windowed`` re-reads the last K steps; ``recurrent`` carries a state.
        seed: Of the environments; episode e has the same seed under every target.
        num_envs: Environments at a time.
        progress: Whether to show a bar.
        device: ``cpu``, ``cuda``, or ``auto``: a GPU where there is one to use. Left out, ``cpu``
            for a run that was told to train there, else ``auto``: a run from a GPU can be evaluated
            anywhere. The arithmetic is float32, whatever precision the run was trained in.
        weights: ``fp32`` or, for the recurrent policy on the CPU, ``bf16``.
        workers: Processes that step the environments, with the same results for any number; left
            out, as many as there are cores where the evaluation is long enough to gain by it. Of
            games, threads that play them.
        rtg_rewards: ``raw``: returns-to-go go down by the rewards; ``none``: they stay the target,
            as with delayed rewards; ``clipped``: of games, by those clipped to [-1, 1], as in the
            recordings. Returns are always raw.
        temperature: Of games alone, as the next: of the softmax that actions are drawn from; 0
            takes the best.
        sticky_actions: Probability that a frame repeats the action before.
        set: Of a run on several sets, the one whose model acts in its own environment.
        context_length: K of the windowed policy; left out, the one that a schedule or a bandit has
            chosen (``training.context``), else the model's. A list, or ``auto``: see
            :mod:`dmamba.evaluation.contexts`, which says what comes back then.
        forget_after: Steps after which the recurrent policy begins anew; 0: never.
        model: Of a run with a model of your own: a module like it, which stays as it is, or a
            callable (state_dim, act_dim, config) -> module.
        engine: ``workers``: an environment for every episode, whose seed is its own; ``envpool``:
            envpool's MuJoCo environments, in which the same seeds begin other episodes.
        timeout: Seconds that one make, reset or step of an environment may take in a worker
            process, which is killed and replaced then; 0: no limit.
        max_failed: The share of a target's episodes that may fail: whose environment raises, hangs,
            answers NaN or another shape, or ends its process. The means are of the others.

    Returns:
        A dict, which a notebook shows as a table, with
        ``environment``, ``policy``, ``weights``, ``context_length``,
        ``trained_context_length``, ``forget_after``, ``checkpoint_step``, ``device`` (its name),
        ``constants`` (of the score, and whether they are borrowed), ``time_seconds``,
        ``engine``, ``failures`` (a dict for each failed episode: ``target``, ``episode``, ``seed``,
        ``step``, ``what``, and all that as ``text``), ``replaced_workers`` and
        ``targets``: one dict per target with
        ``target``, ``episodes``, ``failed`` (how many of them), ``failed_episodes`` (their
        numbers), and of the others ``return_mean``, ``return_std``, ``return_stderr``,
        ``return_interval``, ``length_mean``, ``score_mean``, ``score_interval``, ``returns`` and
        ``lengths`` (arrays, by number). Scores are D4RL's, of games the human-normalised one, and
        None for an environment without reference constants. Of games also ``temperature``,
        ``rtg_rewards`` and ``sticky_actions``.

    Raises:
        ConfigError: Impossible arguments, no environment or one that cannot be made, or no GPU
            where ``cuda`` was asked for.
        CheckpointError: There is no usable checkpoint.
        DataError: The environment's sizes, or a game's actions, are not the model's.
        Error: gymnasium or ale-py is missing, or too many episodes failed.

    Example:
        >>> result = dmamba.evaluate("runs/hopper-sample-seed0", targets=[1800, 3600], episodes=100)
        >>> result["targets"][0]["score_mean"], result["targets"][0]["score_interval"]
    """
    from dmamba.evaluation import contexts  # which evaluates with evaluate_model()

    folder = run.folder if isinstance(run, Run) else Path(run)
    loaded, info, config = load_model(folder, device, set, model)
    asked = {
        "targets": targets,
        "episodes": episodes,
        "policy": policy,
        "seed": seed,
        "temperature": temperature,
        "rtg_rewards": rtg_rewards,
        "sticky_actions": sticky_actions,
        "engine": engine,
        "timeout": timeout,
        "max_failed": max_failed,
    }
    return contexts.evaluate_lengths(
        loaded,
        info,
        context_length,
        config=config,
        **settings(config) | {key: value for key, value in asked.items() if value is not None},
        forget_after=forget_after,
        num_envs=num_envs,
        workers=workers,
        weights=weights,
        progress=progress,
    )


def load_model(
    path: Path,
    device: str | None = None,
    set: str = "",
    model: torch.nn.Module | Factory | None = None,
) -> tuple[Model, dict[str, Any], _C.Config]:
    """The model of a run's latest checkpoint or of one checkpoint, on the device where it acts.

    Args:
        path: A run's folder, or a checkpoint's.
        device: As for :func:`evaluate`.
        set: As for :func:`evaluate`.
        model: As for :func:`evaluate`.

    Returns:
        The model, what :func:`dmamba.nn.load` says of it, and the run's configuration as it is now.

    Raises:
        ConfigError: There is no such device.
        CheckpointError: There is no usable checkpoint.
    """
    folder, checkpoint = locate_checkpoint(path)
    try:
        loaded, info = nn.load(checkpoint, set=set, model=model)
    except _C.CheckpointError:
        if checkpoint == path or (checkpoint / "state.json").is_file():
            raise
        # The run goes on, and has removed it for newer ones since it was found.
        return load_model(path, device, set, model)
    if folder is None:
        config = pretraining.own_config(info["config"], set) if set else info["config"]
    else:
        config = Run(folder / pretraining.FOLDER / set if set else folder).config
    if device is None:
        device = "cpu" if config.training.device == "cpu" else "auto"
    return loaded.to(_C.resolve_device(device, "evaluation device")), info, config


def device_name(device: str | torch.device) -> str:
    """The GPU's name, or ``cpu``."""
    device = torch.device(device)
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def check_request(
    targets: Sequence[float],
    episodes: int,
    seed: int,
    num_envs: int | None = None,
    workers: int | None = None,
) -> None:
    """Raises ConfigError for arguments of :func:`evaluate_model` that are impossible."""
    if len(targets) == 0:
        raise _C.ConfigError("evaluation.targets is empty: give at least one target return")
    if not np.isfinite(np.asarray(targets, dtype=np.float64)).all():
        raise _C.ConfigError(f"evaluation.targets must be finite, got {list(targets)}")
    if episodes < 1:
        raise _C.ConfigError(f"evaluation.episodes must be at least 1, got {episodes}")
    if seed < 0:
        raise _C.ConfigError(f"evaluation.seed must not be negative, got {seed}")
    check_parallelism(num_envs, workers)


def check_parallelism(num_envs: int | None, workers: int | None) -> None:
    """Raises ConfigError for impossible numbers of environments and of what steps them."""
    for name, value in (("num_envs", num_envs), ("workers", workers)):
        if value is not None and value < 1:
            raise _C.ConfigError(f"{name} must be at least 1, got {value}")


def _target_result(
    environment: str,
    target: float,
    returns: np.ndarray,
    lengths: np.ndarray,
    failed: list[int],
    confidence: float,
    seed: int,
) -> dict[str, Any]:
    episodes = len(returns)
    returns, lengths = np.delete(returns, failed), np.delete(lengths, failed)
    summary = scores.describe(returns, confidence, seed)
    interval = summary["interval"]
    score_interval = None
    if interval is not None and envs.score_constants(environment) is not None:
        score_interval = tuple(envs.normalized_score(environment, bound) for bound in interval)
    return {
        "target": target,
        "episodes": episodes,
        "failed": len(failed),
        "failed_episodes": failed,
        "return_mean": summary["mean"],
        "return_std": summary["std"],
        "return_stderr": summary["stderr"],
        "return_interval": interval,
        "length_mean": float(lengths.mean()),
        "score_mean": envs.normalized_score(environment, summary["mean"]),
        "score_interval": score_interval,
        "returns": returns,
        "lengths": lengths,
    }
