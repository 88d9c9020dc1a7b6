"""Evaluation of a trained model in its environment: returns, lengths, normalised scores.

All target returns are evaluated together in one batch of environments, see ``rollout.py``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dmamba import _C, envs, nn, scores
from dmamba.progress import bar
from dmamba.rollout import ArrayPolicy, Job, make_jobs, play
from dmamba.run import Run, locate_checkpoint

# Fewer episodes than this don't pay for the start of a worker: on two cores that other programs
# use, 40 episodes took 4.5 s without and 5.4 s with two workers; on quieter ones 3.6 and 3.3 s.
EPISODES_PER_WORKER = 24
# Environments at a time. On a CPU enough rows to keep the matrix products busy; more would rest
# while the last episodes end. A GPU takes hundreds of rows in the time of one.
DEFAULT_NUM_ENVS = {"cpu": 32, "cuda": 512}


def evaluate_model(
    model: nn.DMamba,
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
    max_episode_length: int = 0,
    dataset: str = "",
    weights: str = "fp32",
    progress: bool = True,
    check: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Evaluates a model that is in memory; :func:`evaluate` says what comes back.

    Args:
        model: The model, on the device where it is to compute; its training mode stays what it is.
        info: ``step``, ``state_mean``, ``state_std``, ``rtg_scale``, as ``dmamba.nn.load`` gives.
        environment: gymnasium id.
        targets: Raw returns to ask for.
        episodes: Per target.
        policy: ``windowed`` or ``recurrent``.
        seed: Of the environments and of the bootstrap.
        confidence: Of the intervals.
        num_envs: Environments at a time; None: 512 for a model on a GPU, 32 for one on the CPU, or
            fewer if there are fewer episodes.
        workers: Processes that step them; None: by the cores, see :func:`default_workers`.
        max_episode_length: Time limit in steps; 0, or one above the environment's own, leaves that.
        dataset: The training set's name or path, to label the score's constants.
        weights: ``fp32`` or ``bf16``; see :class:`ArrayPolicy`.
        progress: Whether to show a bar.
        check: Called after every step; may raise to stop.
    """
    _check_request(targets, episodes, seed, num_envs, workers)
    started = time.perf_counter()
    vector = import_vector()
    check_dimensions(
        environment,
        vector.dimensions(environment, max_episode_length),
        (model.state_dim, model.act_dim),
        "the model",
    )
    jobs = make_jobs(targets, episodes, seed)
    device = model_device(model)
    slots = min(num_envs or DEFAULT_NUM_ENVS[device.type], len(jobs))
    workers = min(workers or default_workers(len(jobs), slots), slots)
    returns = np.full((len(targets), episodes), np.nan)
    lengths: np.ndarray = np.zeros((len(targets), episodes), dtype=np.int64)
    with (
        vector.Environments(environment, slots, max_episode_length, workers) as environments,
        bar(len(jobs), f"evaluating {environment}", "episode", enabled=progress) as shown,
    ):

        def on_episode(job: Job, total: float, length: int) -> None:
            returns[job.target_index, job.episode] = total
            lengths[job.target_index, job.episode] = length
            shown.update()

        play(
            ArrayPolicy(model, policy, slots, info, weights), environments, jobs, on_episode, check
        )
    constants = envs.score_constants(environment, dataset)
    return {
        "environment": environment,
        "dataset": dataset,
        "policy": policy,
        "weights": weights,
        "checkpoint_step": int(info["step"]),
        "seed": seed,
        "num_envs": slots,
        "workers": workers,
        "device": device_name(device),
        "confidence": confidence,
        "targets": [
            _target_result(environment, float(target), returns[i], lengths[i], confidence, seed)
            for i, target in enumerate(targets)
        ],
        "constants": constants,
        "time_seconds": time.perf_counter() - started,
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
) -> dict[str, Any]:
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
            out, as many as there are cores where the evaluation is long enough to gain by it.

    Returns:
        A dict with ``environment``, ``policy``, ``weights``, ``checkpoint_step``, ``device`` (its
        name), ``constants`` (of the score, and whether they are borrowed), ``time_seconds`` and
        ``targets``: one dict per target with
        ``target``, ``episodes``, ``return_mean``, ``return_std``, ``return_stderr``,
        ``return_interval``, ``length_mean``, ``score_mean``, ``score_interval``, ``returns`` and
        ``lengths`` (arrays). Scores are None for an environment without reference constants.

    Raises:
        ConfigError: Impossible arguments, an environment that cannot be made, or no GPU where
            ``cuda`` was asked for.
        CheckpointError: There is no usable checkpoint.
        DataError: The environment's sizes are not the model's.

    Example:
        >>> result = dmamba.evaluate("runs/hopper-sample-seed0", targets=[1800, 3600], episodes=100)
        >>> result["targets"][0]["score_mean"], result["targets"][0]["score_interval"]
    """
    folder, checkpoint = locate_checkpoint(run.folder if isinstance(run, Run) else Path(run))
    model, info = nn.load(checkpoint)
    config = info["config"] if folder is None else Run(folder).config
    if device is None:
        device = "cpu" if config.training.device == "cpu" else "auto"
    model.to(_C.resolve_device(device, "evaluation device"))
    if not config.dataset.environment:
        raise _C.ConfigError(
            f"{checkpoint}: the run names no environment; train with dataset.environment=ID, "
            "for example dataset.environment=Hopper-v4"
        )
    defaults = config.evaluation
    return evaluate_model(
        model,
        info,
        environment=config.dataset.environment,
        targets=defaults.targets if targets is None else targets,
        episodes=defaults.episodes if episodes is None else episodes,
        policy=defaults.policy if policy is None else policy,
        seed=defaults.seed if seed is None else seed,
        confidence=defaults.confidence,
        num_envs=num_envs,
        workers=workers,
        max_episode_length=config.dataset.max_episode_length,
        dataset=config.dataset.path,
        weights=weights,
        progress=progress,
    )


def default_workers(jobs: int, slots: int) -> int:
    """Processes that step the environments where the caller doesn't say: one a core, at most.

    Args:
        jobs: Episodes in all.
        slots: Environments at a time.
    """
    from dmamba.envs.processes import usable_cores

    return max(1, min(usable_cores(), slots, jobs // EPISODES_PER_WORKER))


def model_device(model: nn.DMamba) -> torch.device:
    """Where the model's parameters are."""
    return next(model.parameters()).device


def device_name(device: str | torch.device) -> str:
    """The GPU's name, or ``cpu``."""
    device = torch.device(device)
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def import_vector() -> Any:
    """The module that makes environments; gymnasium is needed from here on only."""
    try:
        from dmamba.envs import vector
    except ImportError as error:
        raise _C.Error(
            f"evaluation needs gymnasium and MuJoCo ({error}): pip install 'gymnasium[mujoco]>=1.1'"
        ) from error
    return vector


def check_dimensions(
    environment: str, expected: tuple[int, int], found: tuple[int, int], whose: str
) -> None:
    """Raises DataError where (state, action) sizes are not the environment's."""
    if found != expected:
        raise _C.DataError(
            f"{whose} has states of {found[0]} values and actions of {found[1]}, but environment "
            f"{environment} has {expected[0]} and {expected[1]}; name the environment in which the "
            "dataset was recorded with dataset.environment=ID"
        )


def format_result(result: dict[str, Any], dataset_mean: float | None = None) -> str:
    """The table of an evaluation, beside the dataset's own mean return where it is given."""
    scored = result["constants"] is not None
    percent = f"{100 * result['confidence']:g} % interval"
    header = ["target", "return", "std error", percent]
    header += (["D4RL score", percent] if scored else []) + ["length"]
    rows = [header]
    for row in result["targets"]:
        error = row["return_stderr"]
        cells = [
            f"{row['target']:g}",
            f"{row['return_mean']:.1f}",
            "-" if error is None else f"± {error:.1f}",
            scores.format_interval(row["return_interval"]),
        ]
        if scored:
            cells += [f"{row['score_mean']:.1f}", scores.format_interval(row["score_interval"])]
        rows.append([*cells, f"{row['length_mean']:.0f}"])
    if dataset_mean is not None:
        cells = ["dataset mean", f"{dataset_mean:.1f}", "", ""]
        if scored:
            cells += [f"{envs.normalized_score(result['environment'], dataset_mean):.1f}", ""]
        rows.append([*cells, ""])
    episodes = result["targets"][0]["episodes"]
    return "\n".join(
        [
            f"{result['environment']}, step {result['checkpoint_step']}, "
            f"{result['policy']} policy, {episodes} episodes a target, "
            f"seed {result['seed']}, {result['time_seconds']:.0f} s",
            scores.format_table(rows),
            "  " + envs.describe_constants(result["constants"]),
        ]
    )


def _check_request(
    targets: Sequence[float],
    episodes: int,
    seed: int,
    num_envs: int | None,
    workers: int | None,
) -> None:
    if len(targets) == 0:
        raise _C.ConfigError("evaluation.targets is empty: give at least one target return")
    if not np.isfinite(np.asarray(targets, dtype=np.float64)).all():
        raise _C.ConfigError(f"evaluation.targets must be finite, got {list(targets)}")
    if episodes < 1:
        raise _C.ConfigError(f"evaluation.episodes must be at least 1, got {episodes}")
    if seed < 0:
        raise _C.ConfigError(f"evaluation.seed must not be negative, got {seed}")
    for name, value in (("num_envs", num_envs), ("workers", workers)):
        if value is not None and value < 1:
            raise _C.ConfigError(f"{name} must be at least 1, got {value}")


def _target_result(
    environment: str,
    target: float,
    returns: np.ndarray,
    lengths: np.ndarray,
    confidence: float,
    seed: int,
) -> dict[str, Any]:
    summary = scores.describe(returns, confidence, seed)
    interval = summary["interval"]
    score_interval = None
    if interval is not None and envs.find(environment) is not None:
        score_interval = tuple(envs.normalized_score(environment, bound) for bound in interval)
    return {
        "target": target,
        "episodes": len(returns),
        "return_mean": summary["mean"],
        "return_std": summary["std"],
        "return_stderr": summary["stderr"],
        "return_interval": interval,
        "length_mean": float(lengths.mean()),
        "score_mean": envs.normalized_score(environment, summary["mean"]),
        "score_interval": score_interval,
        "returns": returns.copy(),
        "lengths": lengths.copy(),
    }
