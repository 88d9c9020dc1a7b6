"""Batches of MuJoCo environments by envpool: C++ threads of this process in place of workers.

envpool's MuJoCo environments move as gymnasium's do, but the same seed begins another episode: its
generator is another. Its seeds belong to environments, not to episodes; so every episode gets an
environment of its own here, which plays it and nothing after. An episode then follows from its seed
alone, as with workers, whatever slot it is played in and however many there are.

Rewards are float32 where gymnasium's are float64. What crashes or hangs does so in this process.
"""

from __future__ import annotations

from collections import defaultdict, deque
from typing import Any

import envpool
import numpy as np

from dmamba import _C
from dmamba.envs import ids, vector
from dmamba.envs.failures import Failure


def check(environment: str) -> None:
    """Finds out whether envpool plays an environment as gymnasium does.

    Raises:
        ConfigError: It has none, or one with arguments, or with other observations or actions.
    """
    name, arguments = ids.split(environment)
    entry = vector.find_spec(environment).entry_point
    mujoco = isinstance(entry, str) and entry.startswith("gymnasium.envs.mujoco")
    if not mujoco or arguments or name not in envpool.list_all_envs():
        raise _C.ConfigError(
            "evaluation.engine: envpool plays gymnasium's MuJoCo environments, such as Hopper-v4, "
            f"without arguments, but not {environment}; choose workers"
        )
    spec = envpool.make_spec(name)
    found = spec.observation_space.shape, spec.action_space.shape
    expected = tuple((size,) for size in vector.dimensions(environment))
    if found != expected:
        raise _C.ConfigError(
            f"evaluation.engine: envpool's {environment} has observations and actions of shapes "
            f"{found}, gymnasium's of {expected}; choose workers"
        )


class Environments:
    """``num_envs`` slots of a MuJoCo environment; as :class:`dmamba.envs.vector.Environments`.

    Args:
        environment: gymnasium id.
        num_envs: Slots.
        seeds: Of all episodes that will be played, each as often as it is.
        max_episode_steps: Time limit; 0, or one above the environment's own, leaves that.
        threads: Of envpool.

    Attributes:
        failures: Always empty: environments of envpool's do not fail alone.
        replaced: 0, likewise.
    """

    def __init__(
        self,
        environment: str,
        num_envs: int,
        seeds: np.ndarray,
        max_episode_steps: int = 0,
        threads: int = 1,
    ) -> None:
        check(environment)
        self.num_envs = num_envs
        self.failures: dict[int, Failure] = {}
        self.replaced = 0
        env = vector.make(environment, max_episode_steps)
        self.low, self.high = env.action_space.low, env.action_space.high  # type: ignore[attr-defined]
        env.close()
        self._pool: Any = envpool.make_gymnasium(
            environment,
            num_envs=len(seeds),
            env_seed=[int(seed) for seed in seeds],
            num_threads=threads,
            max_episode_steps=_limit(environment, max_episode_steps),
        )
        self._unplayed: dict[int, deque[int]] = defaultdict(deque)
        for place, seed in enumerate(seeds):
            self._unplayed[int(seed)].append(place)
        self._playing: np.ndarray = np.zeros(num_envs, dtype=np.int32)
        self._states = np.zeros((num_envs, *self._pool.observation_space.shape))
        self._rewards = np.zeros(num_envs)
        self._ended: np.ndarray = np.zeros(num_envs, dtype=bool)
        self.terminated: np.ndarray = np.zeros(num_envs, dtype=bool)

    def __enter__(self) -> Environments:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def reset(self, mask: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        """As :meth:`dmamba.envs.vector.Environments.reset`; the seeds are some of those given."""
        starting = np.flatnonzero(mask)
        for slot in starting:
            self._playing[slot] = self._unplayed[int(seeds[slot])].popleft()
        states, info = self._pool.reset(self._playing[starting])
        self._states[self._slots(info, starting)] = states
        return self._states

    def step(
        self, actions: np.ndarray, active: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As :meth:`dmamba.envs.vector.Environments.step`."""
        stepped = np.flatnonzero(active)
        if not len(stepped):
            return self._states, self._rewards, self._ended
        clipped = np.clip(actions[stepped], self.low, self.high).astype(np.float64)
        states, rewards, terminated, truncated, info = self._pool.step(
            clipped, self._playing[stepped]
        )
        slots = self._slots(info, stepped)
        self._states[slots], self._rewards[slots] = states, rewards
        self._ended[slots], self.terminated[slots] = terminated | truncated, terminated
        return self._states, self._rewards, self._ended

    def close(self) -> None:
        """Ends envpool's threads; may be called again."""
        self._pool = None

    def _slots(self, info: dict[str, Any], asked: np.ndarray) -> np.ndarray:
        """The slots that envpool has answered for, in its order."""
        order = np.argsort(self._playing[asked])
        found = np.searchsorted(self._playing[asked], info["env_id"], sorter=order)
        return asked[order[found]]


def _limit(environment: str, max_episode_steps: int) -> int:
    """The shorter of gymnasium's time limit and the one that is asked for, if any is."""
    own = vector.find_spec(environment).max_episode_steps
    limits = [limit for limit in (own, max_episode_steps) if limit]
    return min(limits)
