"""An environment that fails on purpose; worker processes import it, too, so not dmamba."""

import ctypes
import os
import signal
import time

import gymnasium
import numpy as np

KINDS = {  # what goes wrong, and a part of what is said of it
    "raises": "raised ZeroDivisionError: by design",
    "raises in reset": "raised ValueError: no such maze",
    "raises what cannot be printed": "raised Rude: whose text cannot be had",
    "exits": "raised SystemExit: 3",
    "out of memory": "raised MemoryError",
    "recursion": "raised RecursionError",
    "nan observation": "non-finite observation (value 1: nan)",
    "inf observation": "non-finite observation (value 1: inf)",
    "huge observation": "non-finite observation (value 1: inf)",
    "nan in reset": "non-finite observation (value 1: nan)",
    "nan reward": "non-finite reward (nan)",
    "inf reward": "non-finite reward (-inf)",
    "scalar": "an observation of shape () and type float64, not (2,) real numbers",
    "one value": "an observation of shape (1,) and type float64",
    "matrix": "an observation of shape (1, 2)",
    "text": "an observation of shape (2,) and type <U1",
    "complex": "type complex128",
    "none": "an observation of shape () and type object",
    "no reward": "returned the reward None, which is no number",
    "no flag": "returned None for terminated, which is neither True nor False",
    "short answer": "raised ValueError: not enough values to unpack (expected 5, got 4)",
    "no answer": "raised TypeError: cannot unpack",
    "short reset": "returned ndarray from reset(), not a tuple of 2",
}
DEADLY = {  # what ends the process, too
    "dies": "died with exit code 7",
    "segmentation fault": "died of SIGSEGV",
    "killed": "died of SIGKILL",
    "aborts": "died of SIGABRT",
    "dies in reset": "died with exit code 8",
}
HANGING = {
    "hangs": "hung: step took longer than",
    "hangs in reset": "hung: reset took longer than",
    "hangs in C": "hung: step took longer than",
    "raises and hangs in close": "raised ZeroDivisionError",
}


class Rude(Exception):  # noqa: N818
    """Cannot be printed."""

    def __str__(self):
        raise RuntimeError("nor this")


class Faulty(gymnasium.Env):
    """Length and rewards follow from the seed and the actions, unless something goes wrong.

    Args:
        faults: (seed, kind) of the episodes that fail, at their second step or in their reset.
        unmade: The how many-th environment of a process cannot be made; 0: all can.
    """

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
    made = 0

    def __init__(self, faults=(), unmade=0):
        self.faults = dict(faults)
        self.kind = ""
        Faulty.made += 1
        if Faulty.made == unmade:
            raise OSError("no licence")

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.kind = self.faults.get(seed, "")
        self.length = int(self.np_random.integers(4, 12))
        self.position, self.t = float(self.np_random.normal()), 0
        state = np.array([self.position, 0.0])
        if self.kind == "raises in reset":
            raise ValueError("no such maze")
        if self.kind == "dies in reset":
            os._exit(8)
        if self.kind == "hangs in reset":
            time.sleep(600)
        if self.kind == "nan in reset":
            state[1] = np.nan
        return state if self.kind == "short reset" else (state, {})

    def step(self, action):
        self.t += 1
        self.position += float(action[0])
        answer = [
            np.array([self.position, self.t]),
            self.position,
            self.t >= self.length,
            False,
            {},
        ]
        if self.t == 2 and self.kind:
            return self._break(answer)
        return tuple(answer)

    def close(self):
        if self.kind == "raises and hangs in close":
            time.sleep(600)

    def _break(self, answer):
        state, kind = answer[0], self.kind
        if kind in ("raises", "raises and hangs in close"):
            raise ZeroDivisionError("by design")
        if kind == "raises what cannot be printed":
            raise Rude
        if kind == "exits":
            raise SystemExit(3)
        if kind == "out of memory":
            raise MemoryError
        if kind == "recursion":
            self._break(answer)
        if kind == "dies":
            os._exit(7)
        if kind in ("segmentation fault", "killed", "aborts"):
            os.kill(
                os.getpid(),
                {"s": signal.SIGSEGV, "k": signal.SIGKILL, "a": signal.SIGABRT}[kind[0]],
            )
        if kind == "hangs":
            while True:
                pass
        if kind == "hangs in C":
            ctypes.PyDLL(None).sleep(600)  # with the interpreter's lock
        if kind.endswith("observation"):
            state[1] = {"nan": np.nan, "inf": np.inf, "huge": 1e300}[kind.split()[0]]
        shapes = {"scalar": state[0], "one value": state[:1], "matrix": state[None], "none": None}
        others = {"text": np.array(["a", "b"]), "complex": state + 1j}
        answer[0] = {**shapes, **others}.get(kind, state)
        rewards = {"nan reward": np.nan, "inf reward": -np.inf, "no reward": None}
        answer[1] = rewards.get(kind, answer[1])
        answer[2] = None if kind == "no flag" else answer[2]
        if kind == "no answer":
            return None
        return tuple(answer[:4] if kind == "short answer" else answer)
