"""An environment whose observations are dictionaries, in a module that workers import quickly."""

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict


class Reach(gymnasium.Env):
    """Observes a dictionary, declared in another order than that of its keys."""

    observation_space = Dict([("z", Box(-9, 9, (2,))), ("a", Box(-9, 9, (1,)))])
    action_space = Box(-1, 1, (1,))

    def __init__(self, start: float = 1.0):
        self._start = start

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        return self._observe(self._start), {}

    def step(self, action):
        return self._observe(float(action[0])), 1.0, False, False, {}

    def _observe(self, value):
        return {"z": np.float32([value, 2.0]), "a": np.float32([3.0])}
