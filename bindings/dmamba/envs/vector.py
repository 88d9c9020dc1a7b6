"""Batches of gymnasium environments in which each slot starts and rests on its own.

There is no autoreset: the evaluation decides which episode a slot plays next, with which seed. A
slot that has nothing left to do costs no simulation. Every slot is an environment of its own, so
how many processes step them does not matter to the results.
"""

from __future__ import annotations

import copy
import importlib

import gymnasium
import numpy as np

from dmamba import _C
from dmamba.envs import ids, slots
from dmamba.envs.failures import Failure, Guard
from dmamba.envs.processes import Processes


class Environments:
    """``num_envs`` copies of an environment, in this process or in several workers.

    Args:
        environment: gymnasium id, as :mod:`dmamba.envs.ids` writes it.
        num_envs: Slots.
        max_episode_steps: Time limit; 0, or one above the environment's own, leaves that.
        workers: Processes that step a share of the slots each; 1: this process steps them all.
        render_mode: Of gymnasium, for :meth:`render`; with one worker.
        guard: Of the workers; what hangs or dies in this process cannot be guarded against.

    Attributes:
        low, high: Bounds of the actions, (act_dim,).
        failures: By slot, the episodes that the last call has ended: an environment raised,
            answered what it cannot mean, or took too long, or its worker died. What the call
            returned for these slots means nothing, and they have to be reset.
        frames_per_second: At which pictures of all steps show the environment at its own pace.

    Example:
        >>> with Environments("Hopper-v4", 64, workers=4) as environments:
        ...     states = environments.reset(np.ones(64, dtype=bool), np.arange(64))
        ...     states, rewards, ended = environments.step(actions, np.ones(64, dtype=bool))
    """

    def __init__(
        self,
        environment: str,
        num_envs: int,
        max_episode_steps: int = 0,
        workers: int = 1,
        render_mode: str | None = None,
        guard: Guard | None = None,
    ) -> None:
        guard = guard or Guard()
        env = make(environment, max_episode_steps)
        self.num_envs = num_envs
        self.low, self.high = env.action_space.low, env.action_space.high  # type: ignore[attr-defined]
        row_type = slots.row_type(env.observation_space, env.action_space)  # type: ignore[arg-type]
        self.frames_per_second = env.metadata.get("render_fps", 30)
        env.close()
        spec, workers = find_spec(environment), min(workers, num_envs)
        self.failures: dict[int, Failure] = {}
        self._engine: slots.Slots | Processes
        if workers > 1 or guard.isolated:
            self._engine = Processes(spec, max_episode_steps, row_type, num_envs, workers, guard)
            self._rows = self._engine.rows
        else:
            self._rows = np.zeros(num_envs, row_type)
            self._engine = slots.Slots(spec, max_episode_steps, self._rows, render_mode)

    def __enter__(self) -> Environments:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def terminated(self) -> np.ndarray:
        """(num_envs,) bool: where the last step ended the episode, and no time limit did."""
        return self._rows["terminated"]

    def reset(self, mask: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        """Starts episodes.

        Args:
            mask: (num_envs,) bool, where to start one.
            seeds: (num_envs,) int64, of those episodes.

        Returns:
            Observations of all slots, (num_envs, state_dim), overwritten by the next call.

        Raises:
            Error: Workers cannot make the environment known to them.
        """
        self._rows["order"] = np.where(mask, slots.RESET, slots.REST)
        self._rows["seed"] = seeds
        self._rows["ended"] &= ~mask
        self._work()
        return self._rows["state"]

    def step(
        self, actions: np.ndarray, active: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Takes a step where ``active``; the other slots rest and keep their row.

        Args:
            actions: (num_envs, act_dim); clipped to the bounds.
            active: (num_envs,) bool.

        Returns:
            Observations (num_envs, state_dim), rewards (num_envs,) float64 and whether the episode
            ended (num_envs,) bool, overwritten by the next call.

        Raises:
            Error: As :meth:`reset`.
        """
        self._rows["order"] = np.where(active, slots.STEP, slots.REST)
        self._rows["action"] = np.clip(actions, self.low, self.high)
        self._work()
        return self._rows["state"], self._rows["reward"], self._rows["ended"]

    @property
    def replaced(self) -> int:
        """Workers that have been replaced."""
        return self._engine.replaced if isinstance(self._engine, Processes) else 0

    def render(self) -> np.ndarray:
        """The first slot's picture (rows, columns, 3) uint8; needs ``render_mode="rgb_array"``."""
        assert isinstance(self._engine, slots.Slots) and self._engine.envs[0] is not None
        return self._engine.envs[0].render()  # type: ignore[return-value]

    def close(self) -> None:
        """Closes the environments and ends the workers; may be called again."""
        self._engine.close()

    def _work(self) -> None:
        if isinstance(self._engine, Processes):
            self._engine.work()
            self.failures = self._engine.failures
            return
        self.failures = {}
        self._engine.work(lambda slot, what: self.failures.update({slot: Failure(what)}))


def is_gymnasium_s_own(environment: str) -> bool:
    """Whether an environment's code comes with gymnasium, so that it neither hangs nor crashes."""
    entry = find_spec(environment).entry_point
    return isinstance(entry, str) and entry.startswith("gymnasium.envs.")


def find_spec(environment: str) -> gymnasium.envs.registration.EnvSpec:
    """Gymnasium's specification of an environment, with the arguments that its id names.

    Raises:
        gymnasium.error.Error: Unknown.
        ImportError: The module that the id names is not there.
        ValueError: The arguments in the id cannot be read.
    """
    name, arguments = ids.split(environment)
    module, colon, own = name.rpartition(":")
    if colon:
        importlib.import_module(module)  # which registers it
    spec = copy.deepcopy(gymnasium.spec(own))
    spec.kwargs.update(arguments)
    return spec


def make(environment: str, max_episode_steps: int = 0) -> gymnasium.Env:
    """Makes one environment.

    Args:
        environment: gymnasium id.
        max_episode_steps: Time limit; 0, or one above the environment's own, leaves that.

    Raises:
        ConfigError: Unknown id, missing simulator, or spaces that are not plain vectors.
    """
    try:
        env = slots.build(find_spec(environment), max_episode_steps)
    except (gymnasium.error.Error, ImportError, TypeError, ValueError) as error:
        # Constructors say with the last two what they think of their arguments.
        raise _C.ConfigError(f"environment {environment!r} cannot be made: {error}") from error
    _check_spaces(environment, env)
    if max_episode_steps <= 0 and (env.spec is None or env.spec.max_episode_steps is None):
        raise _C.ConfigError(
            f"environment {environment!r} has no time limit, so an episode may never end; "
            "set dataset.max_episode_length"
        )
    return env


def dimensions(environment: str, max_episode_steps: int = 0) -> tuple[int, int]:
    """State and action size of an environment."""
    env = make(environment, max_episode_steps)
    try:
        return env.observation_space.shape[0], env.action_space.shape[0]  # type: ignore[index]
    finally:
        env.close()


def _check_spaces(environment: str, env: gymnasium.Env) -> None:
    for what, space in (("observations", env.observation_space), ("actions", env.action_space)):
        if (
            not isinstance(space, gymnasium.spaces.Box)
            or len(space.shape) != 1
            or not np.issubdtype(space.dtype, np.floating)
        ):
            raise _C.ConfigError(
                f"environment {environment!r}: {what} must be a vector of real numbers, got {space}"
            )
