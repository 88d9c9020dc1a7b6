"""Gymnasium wrappers that reset a policy and feed the rewards back to it.

A policy that is asked for a return has to know what has been earned. With these around the
environment, a loop that calls nothing but ``agent.act`` is a whole evaluation.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode

from dmamba import _C, envs
from dmamba.evaluation.policies import Agent


def wrap(env: Any, agent: Agent) -> Feedback | VectorFeedback:
    """The wrapper for an environment, or for a batch of them; see :meth:`Agent.wrap`."""
    several = isinstance(env, gymnasium.vector.VectorEnv)
    found = env.num_envs if several else None
    if not several and not isinstance(env, gymnasium.Env):
        raise _C.ConfigError(f"wrap: not a gymnasium environment: {type(env).__name__}")
    if found != agent.num_envs:
        raise _C.ConfigError(
            f"wrap: the policy acts in {_number(agent.num_envs)}, this is {_number(found)}; load "
            f"it with num_envs={found}"
        )
    _check_spaces(
        env.single_observation_space if several else env.observation_space,
        env.single_action_space if several else env.action_space,
        agent,
    )
    return VectorFeedback(env, agent) if several else Feedback(env, agent)


def _number(count: int | None) -> str:
    return "one environment" if count is None else f"a batch of {count}"


def _check_spaces(observations: Any, actions: Any, agent: Agent) -> None:
    if not hasattr(agent.model, "state_dim"):  # of a game; act() looks at every observation
        return
    wanted = ((agent.model.state_dim,), (agent.model.act_dim,))
    if (observations.shape, actions.shape) != wanted:
        raise _C.DataError(
            f"wrap: the model has states {list(wanted[0])} and actions {list(wanted[1])}, the "
            f"environment {observations} and {actions}"
        )


class _Played:
    """What has become of the episodes."""

    def __init__(self, environment: str, agent: Agent, count: int) -> None:
        self._environment, self._agent = environment, agent
        self._returns: np.ndarray = np.zeros(count)
        self._lengths: np.ndarray = np.zeros(count, dtype=np.int64)
        self._targets = agent.targets.copy()
        self.episodes: list[dict[str, Any]] = []

    def begin(self, which: np.ndarray) -> None:
        self._returns[which], self._lengths[which] = 0.0, 0
        self._targets[which] = self._agent.targets[which]

    def step(self, rewards: np.ndarray, active: np.ndarray, ended: np.ndarray) -> None:
        self._returns[active] += rewards[active]
        self._lengths[active] += 1
        for slot in np.flatnonzero(ended & active):
            total = float(self._returns[slot])
            self.episodes.append(
                {
                    "target": float(self._targets[slot]),
                    "return": total,
                    "score": envs.normalized_score(self._environment, total),
                    "length": int(self._lengths[slot]),
                }
            )


class Feedback(gymnasium.Wrapper):
    """One environment.

    Args:
        env: The environment; actions are clipped to its bounds, as in an evaluation.
        agent: The policy.

    Attributes:
        episodes: A dict for each that has ended: ``target``, ``return``, ``score`` (normalised;
            None for an environment without reference constants) and ``length``.
    """

    def __init__(self, env: gymnasium.Env, agent: Agent) -> None:
        super().__init__(env)
        self._agent = agent
        self._played = _Played(env.spec.id if env.spec else "", agent, 1)
        self.episodes = self._played.episodes

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begins an episode of the environment, and of the policy, with its last target."""
        result = self.env.reset(seed=seed, options=options)
        self._agent.reset(seed=seed)
        self._played.begin(np.ones(1, dtype=bool))
        return result

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """A step of the environment, whose reward the policy observes."""
        observation, reward, terminated, truncated, info = self.env.step(
            _clipped(action, self.env.action_space)
        )
        self._agent.observe(float(reward))
        always: np.ndarray = np.ones(1, dtype=bool)
        self._played.step(np.array([float(reward)]), always, always & (terminated or truncated))
        return observation, float(reward), terminated, truncated, info


class VectorFeedback(gymnasium.vector.VectorWrapper):
    """Several environments; arguments and attributes as of :class:`Feedback`.

    Whatever the batch's autoreset mode, the policy begins anew where an episode does; without
    autoreset, ``reset(options={"reset_mask": mask})`` says where.
    """

    def __init__(self, env: gymnasium.vector.VectorEnv, agent: Agent) -> None:
        super().__init__(env)
        self._agent = agent
        self._mode = env.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP)
        self._ended: np.ndarray = np.zeros(env.num_envs, dtype=bool)
        self._played = _Played(env.spec.id if env.spec else "", agent, env.num_envs)
        self.episodes = self._played.episodes

    def reset(
        self, *, seed: Any = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begins episodes of the environments, and of the policy, with its last targets."""
        mask = (options or {}).get("reset_mask")
        result = self.env.reset(seed=seed, options=options)
        which = np.ones(self.num_envs, dtype=bool) if mask is None else np.asarray(mask, dtype=bool)
        self._begin(which, seed if isinstance(seed, int) else None)
        self._ended &= ~which
        return result

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """A step of all, whose rewards the policy observes."""
        observations, rewards, terminated, truncated, info = self.env.step(
            _clipped(actions, self.env.single_action_space)
        )
        resting, ended = self._ended, np.asarray(terminated) | np.asarray(truncated)
        counted = np.where(resting, 0.0, rewards)
        self._agent.observe(counted)
        self._played.step(counted, ~resting, ended)
        if self._mode == AutoresetMode.NEXT_STEP:  # the step of those that had ended was a reset
            self._begin(resting)
            self._ended = ended
        elif self._mode == AutoresetMode.SAME_STEP:
            self._begin(ended)
        else:
            self._ended = resting | ended
        return observations, rewards, terminated, truncated, info

    def _begin(self, which: np.ndarray, seed: int | None = None) -> None:
        if which.any():
            self._agent.reset(which=which, seed=seed)
            self._played.begin(which)


def _clipped(action: Any, space: Any) -> Any:
    """Within the bounds, where there are any; of games actions are numbers."""
    if not isinstance(space, gymnasium.spaces.Box):
        return action
    return np.clip(action, space.low, space.high)
