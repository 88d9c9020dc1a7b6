"""Evaluation of a trained model in its environment: returns, lengths, normalised scores.

All target returns are evaluated together in one batch of environments. Each slot of the batch works
through a common queue of (target, episode) pairs, so episodes of different length cost no waiting.
Episode e has the same seed under every target, whatever slot plays it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from dmamba import _C, envs, nn, scores
from dmamba.progress import bar
from dmamba.run import Run, locate_checkpoint

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv

# Enough rows to keep the matrix products busy; more would rest while the last episodes end.
DEFAULT_NUM_ENVS = 32


class Policy(Protocol):
    """What acts: one slot per environment, each with its own history and target."""

    def reset(self, mask: np.ndarray, targets: np.ndarray) -> None:
        """Starts new episodes where mask (num_envs,) bool is True; targets (num_envs,) raw."""

    def act(self, states: np.ndarray) -> np.ndarray:
        """Actions (num_envs, act_dim) for raw observations (num_envs, state_dim) float32."""

    def observe(self, rewards: np.ndarray) -> None:
        """Takes the rewards (num_envs,) of the actions just played, raw."""


class ArrayPolicy:
    """A model's policy with arrays in place of tensors.

    Args:
        model: The model; its training mode stays what it is.
        kind: ``windowed`` or ``recurrent``.
        num_envs: Slots.
        info: ``state_mean``, ``state_std``, ``rtg_scale``, as ``dmamba.nn.load`` gives.
        weights: ``fp32`` or, for the recurrent kind on the CPU, ``bf16``: of the matrices, half as
            much to read; the arithmetic is float32.

    The model computes on the device where its parameters are.
    """

    def __init__(
        self,
        model: nn.DMamba,
        kind: str,
        num_envs: int,
        info: dict[str, Any],
        weights: str = "fp32",
    ) -> None:
        self._policy = _C.Policy(
            model.cpp_module,
            kind,
            num_envs,
            info["rtg_scale"],
            info["state_mean"],
            info["state_std"],
            weights,
        )

    def reset(self, mask: np.ndarray, targets: np.ndarray) -> None:
        """See :class:`Policy`."""
        self._policy.reset(torch.from_numpy(mask), torch.from_numpy(targets))

    def act(self, states: np.ndarray) -> np.ndarray:
        """See :class:`Policy`."""
        return self._policy.act(torch.from_numpy(states)).numpy()

    def observe(self, rewards: np.ndarray) -> None:
        """See :class:`Policy`."""
        self._policy.observe(torch.from_numpy(rewards))


@dataclass(frozen=True)
class Job:
    """One episode to play: which target, which number, its seed."""

    target_index: int
    target: float
    episode: int
    seed: int


def episode_seed(seed: int, episode: int) -> int:
    """The environment's seed for one episode, 31 bits."""
    state = np.random.SeedSequence([seed, episode]).generate_state(1)
    return int(state[0] >> 1)


def play(
    policy: Policy,
    environments: VectorEnv,
    jobs: Sequence[Job],
    on_episode: Callable[[Job, float, int], None],
    check: Callable[[], None] = lambda: None,
) -> None:
    """Plays every job once, over as many slots as there are environments.

    Args:
        policy: Acts for all slots at once.
        environments: From :func:`dmamba.envs.vector.make_vector`; at most one slot per job.
        jobs: The episodes, in the order in which they are handed out.
        on_episode: Called with (job, raw return, length in steps) as episodes end.
        check: Called after every step; may raise to stop.

    Raises:
        Error: The environment or the policy returned NaN or infinity.
    """
    slots = environments.num_envs
    queue = deque(jobs)
    playing: list[Job | None] = [None] * slots
    active = np.zeros(slots, dtype=bool)
    targets = np.zeros(slots)
    returns = np.zeros(slots)
    lengths = np.zeros(slots, dtype=np.int64)
    low, high = environments.single_action_space.low, environments.single_action_space.high  # type: ignore[attr-defined]
    states = np.zeros((slots, *environments.single_observation_space.shape))  # type: ignore[misc]
    ended = np.ones(slots, dtype=bool)
    while True:
        starting = np.zeros(slots, dtype=bool)
        seeds: list[int | None] = [None] * slots
        for slot in np.flatnonzero(ended):
            if queue:
                job = playing[slot] = queue.popleft()
                starting[slot], seeds[slot], targets[slot] = True, job.seed, job.target
        parking = ended & ~starting
        active = (active | starting) & ~parking
        if not active.any():
            return
        if parking.any():
            states, _ = environments.reset(options={"reset_mask": parking, "park": True})
        if starting.any():
            states, _ = environments.reset(seed=seeds, options={"reset_mask": starting})
            policy.reset(starting, targets)
            returns[starting], lengths[starting] = 0.0, 0
            _check_finite("observation", states, starting, playing, lengths)
        actions = policy.act(np.ascontiguousarray(states, dtype=np.float32))
        _check_finite("action", actions, active, playing, lengths)
        states, rewards, terminated, truncated, _ = environments.step(np.clip(actions, low, high))
        lengths[active] += 1
        _check_finite("observation", states, active, playing, lengths)
        _check_finite("reward", rewards[:, None], active, playing, lengths)
        policy.observe(rewards)
        returns[active] += rewards[active]
        ended = active & (terminated | truncated)
        for slot in np.flatnonzero(ended):
            finished = playing[slot]
            assert finished is not None
            on_episode(finished, float(returns[slot]), int(lengths[slot]))
        check()


def _check_finite(
    what: str,
    values: np.ndarray,
    active: np.ndarray,
    playing: Sequence[Job | None],
    lengths: np.ndarray,
) -> None:
    if np.isfinite(values).all():
        return
    for slot, column in np.argwhere(~np.isfinite(values)):
        job = playing[slot]
        if active[slot] and job is not None:
            whose = "the policy gave" if what == "action" else "the environment returned"
            raise _C.Error(
                f"evaluation: {whose} a non-finite {what} (value {column}: "
                f"{values[slot, column]}) at step {lengths[slot]} of episode {job.episode}, "
                f"target {job.target:g}, seed {job.seed}"
            )


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
        num_envs: Environments at a time; None: 32, or fewer if there are fewer episodes.
        max_episode_length: Time limit in steps; 0, or one above the environment's own, leaves that.
        dataset: The training set's name or path, to label the score's constants.
        weights: ``fp32`` or ``bf16``; see :class:`ArrayPolicy`.
        progress: Whether to show a bar.
        check: Called after every step; may raise to stop.
    """
    _check_request(targets, episodes, seed, num_envs)
    started = time.perf_counter()
    vector = import_vector()
    check_dimensions(
        environment,
        vector.dimensions(environment, max_episode_length),
        (model.state_dim, model.act_dim),
        "the model",
    )
    seeds = [episode_seed(seed, episode) for episode in range(episodes)]
    jobs = [
        Job(index, float(target), episode, seeds[episode])
        for episode in range(episodes)
        for index, target in enumerate(targets)
    ]
    slots = min(num_envs or DEFAULT_NUM_ENVS, len(jobs))
    returns = np.full((len(targets), episodes), np.nan)
    lengths: np.ndarray = np.zeros((len(targets), episodes), dtype=np.int64)
    environments = vector.make_vector(environment, slots, max_episode_length)
    try:
        actor = ArrayPolicy(model, policy, slots, info, weights)
        with bar(len(jobs), f"evaluating {environment}", "episode", enabled=progress) as shown:

            def on_episode(job: Job, total: float, length: int) -> None:
                returns[job.target_index, job.episode] = total
                lengths[job.target_index, job.episode] = length
                shown.update()

            play(actor, environments, jobs, on_episode, check)
    finally:
        environments.close()
    constants = envs.score_constants(environment, dataset)
    return {
        "environment": environment,
        "dataset": dataset,
        "policy": policy,
        "weights": weights,
        "checkpoint_step": int(info["step"]),
        "seed": seed,
        "num_envs": slots,
        "device": device_name(model_device(model)),
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
        max_episode_length=config.dataset.max_episode_length,
        dataset=config.dataset.path,
        weights=weights,
        progress=progress,
    )


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
    targets: Sequence[float], episodes: int, seed: int, num_envs: int | None
) -> None:
    if len(targets) == 0:
        raise _C.ConfigError("evaluation.targets is empty: give at least one target return")
    if not np.isfinite(np.asarray(targets, dtype=np.float64)).all():
        raise _C.ConfigError(f"evaluation.targets must be finite, got {list(targets)}")
    if episodes < 1:
        raise _C.ConfigError(f"evaluation.episodes must be at least 1, got {episodes}")
    if seed < 0:
        raise _C.ConfigError(f"evaluation.seed must not be negative, got {seed}")
    if num_envs is not None and num_envs < 1:
        raise _C.ConfigError(f"num_envs must be at least 1, got {num_envs}")


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
