"""Batches of gymnasium environments in which each slot starts and rests on its own.

gymnasium's autoreset is switched off: the evaluation decides which episode a slot plays next, with
which seed. A slot that has nothing left to do is parked: it costs no simulation.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from dmamba import _C


class Parkable(gymnasium.Wrapper):
    """An environment that can rest: ``reset(options={"park": True})`` until the next plain reset.

    A parked environment returns its last observation and reward 0, without simulating anything.
    """

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self._parked = False
        self._last: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Starts an episode, or parks."""
        options = dict(options or {})
        self._parked = bool(options.pop("park", False))
        if self._parked:
            return self._last, {}
        self._last, info = self.env.reset(seed=seed, options=options or None)
        return self._last, info

    def step(self, action: Any) -> Any:
        """Takes a step, or rests."""
        if self._parked:
            return self._last, 0.0, False, False, {}
        self._last, reward, terminated, truncated, info = self.env.step(action)
        return self._last, reward, terminated, truncated, info


def make(environment: str, max_episode_steps: int = 0) -> gymnasium.Env:
    """Makes one environment.

    Args:
        environment: gymnasium id.
        max_episode_steps: Time limit; 0, or one above the environment's own, leaves that.

    Raises:
        ConfigError: Unknown id, missing simulator, or spaces that are not plain vectors.
    """
    with warnings.catch_warnings():
        # The -v4 environments are chosen on purpose: they reproduce the rewards of D4RL's v2 sets.
        warnings.filterwarnings("ignore", message=".*is out of date", category=DeprecationWarning)
        try:
            env = gymnasium.make(environment)
        except (gymnasium.error.Error, ImportError) as error:
            raise _C.ConfigError(f"environment {environment!r} cannot be made: {error}") from error
    _check_spaces(environment, env)
    own = None if env.spec is None else env.spec.max_episode_steps
    if own is None and max_episode_steps <= 0:
        raise _C.ConfigError(
            f"environment {environment!r} has no time limit, so an episode may never end; "
            "set dataset.max_episode_length"
        )
    if max_episode_steps > 0 and (own is None or max_episode_steps < own):
        env = gymnasium.wrappers.TimeLimit(env, max_episode_steps)
    return env


def make_vector(
    environment: str,
    num_envs: int,
    max_episode_steps: int = 0,
    factory: Callable[..., VectorEnv] = SyncVectorEnv,
) -> VectorEnv:
    """Makes ``num_envs`` copies of an environment, without autoreset."""

    def single() -> gymnasium.Env:
        return Parkable(make(environment, max_episode_steps))

    return factory([single] * num_envs, autoreset_mode=AutoresetMode.DISABLED)


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
