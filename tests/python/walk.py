"""A light environment that worker processes import, too: it must not import dmamba."""

import os

import gymnasium
import numpy as np


class Walk(gymnasium.Env):
    """Length and rewards follow from the seed and the actions.

    It can break at step 2 (``broken``): give a non-finite observation or reward, raise, or end its
    process; in every episode, or in that of one seed.
    """

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
    total_steps = 0

    def __init__(self, broken="", seed=None):
        self.broken, self.broken_seed = broken, seed

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.breaks = self.broken if self.broken_seed in (None, seed) else ""
        self.length = int(self.np_random.integers(3, 12))
        self.position, self.t = float(self.np_random.normal()), 0
        return self._state(), {}

    def step(self, action):
        Walk.total_steps += 1
        self.t += 1
        self.position += float(action[0])
        if self.t == 2 and self.breaks == "raises":
            raise ZeroDivisionError("by design")
        if self.t == 2 and self.breaks == "exits":
            os._exit(7)
        reward = np.nan if self.breaks == "reward" and self.t == 2 else self.position
        return self._state(), reward, self.t >= self.length, False, {}

    def _state(self):
        broken = self.breaks == "observation" and self.t == 2
        return np.array([np.inf if broken else self.position, self.t])
