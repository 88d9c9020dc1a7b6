"""The environments of one process, and the program of a worker process.

``processes.py`` starts this file as a program, so it imports neither dmamba nor torch: a worker is
there in half a second and small. Parent and workers share an array with one row a slot, see
:func:`row_type`. A worker sleeps until its eventfd is written, does what the rows order, and adds
one to the eventfd that the parent waits on. It ends when its standard input does, which is when the
parent closes it or dies.
"""

from __future__ import annotations

import mmap
import os
import pickle
import select
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np

REST, STEP, RESET = 0, 1, 2  # what a row orders


class SlotError(Exception):
    """An environment raised, or the process that stepped it died.

    Attributes:
        slot: Index of the row.
        what: What happened, to follow a subject: ``raised ValueError: ...``.
    """

    def __init__(self, slot: int, what: str) -> None:
        super().__init__(slot, what)
        self.slot = slot
        self.what = what


def row_type(observations: gymnasium.spaces.Box, actions: gymnasium.spaces.Box) -> np.dtype:
    """The type of a slot's row: an order to the slot, and what came of it.

    ``order`` is REST, STEP or RESET, with ``seed`` for RESET and ``action`` (act_dim,) for STEP;
    ``state`` (state_dim,), ``reward``, ``ended`` and ``terminated`` (it was the environment that
    ended the episode, no time limit) are the environment's answer.
    """
    return np.dtype(
        [
            ("order", np.uint8),
            ("ended", np.bool_),
            ("terminated", np.bool_),
            ("seed", np.int64),
            ("reward", np.float64),
            ("action", actions.dtype, actions.shape),
            ("state", observations.dtype, observations.shape),
        ],
        align=True,
    )


def build(spec: Any, max_episode_steps: int, render_mode: str | None = None) -> gymnasium.Env:
    """Makes one environment.

    Args:
        spec: gymnasium's EnvSpec, or an id.
        max_episode_steps: Time limit; 0, or one above the environment's own, leaves that.
        render_mode: gymnasium's.
    """
    with warnings.catch_warnings():
        # The -v4 environments are chosen on purpose: they reproduce the rewards of D4RL's v2 sets.
        warnings.filterwarnings("ignore", message=".*is out of date", category=DeprecationWarning)
        renders = {} if render_mode is None else {"render_mode": render_mode}
        env = gymnasium.make(spec, disable_env_checker=True, **renders)
    own = None if env.spec is None else env.spec.max_episode_steps
    if max_episode_steps > 0 and (own is None or max_episode_steps < own):
        env = gymnasium.wrappers.TimeLimit(env, max_episode_steps)
    return Flattened(env) if Flattened.suits(env.observation_space) else env


class Flattened(gymnasium.ObservationWrapper):
    """An environment whose observations, dictionaries or tuples of vectors, become one vector.

    Their parts lie side by side, dictionaries in the order of their keys: that in which datasets
    are read, whatever the order in which the environment declares them.
    """

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        parts = list(_leaves(env.observation_space))
        low, high = (
            np.concatenate([np.ravel(getattr(part, side)) for part in parts])
            for side in ("low", "high")
        )
        self.observation_space = gymnasium.spaces.Box(low, high, dtype=low.dtype.type)

    @staticmethod
    def suits(space: gymnasium.Space) -> bool:
        """Whether a space is a dictionary or a tuple of vectors of real numbers alone."""
        return isinstance(space, (gymnasium.spaces.Dict, gymnasium.spaces.Tuple)) and all(
            isinstance(part, gymnasium.spaces.Box)
            and len(part.shape) <= 1
            and np.issubdtype(part.dtype, np.floating)
            for part in _leaves(space)
        )

    def observation(self, observation: Any) -> np.ndarray:
        """The parts, side by side."""
        return np.concatenate([np.ravel(part) for part in _leaves(observation)])


def _leaves(value: Any) -> Iterator[Any]:
    """The parts of an observation, or of its space, that are neither dictionary nor tuple."""
    if isinstance(value, (dict, gymnasium.spaces.Dict)):
        for key in sorted(value):
            yield from _leaves(value[key])
    elif isinstance(value, (tuple, gymnasium.spaces.Tuple)):
        for part in value:
            yield from _leaves(part)
    else:
        yield value


class Slots:
    """Environments stepped one after the other.

    Args:
        spec: As for :func:`build`.
        max_episode_steps: As for :func:`build`.
        rows: (n,) of :func:`row_type`; read and written by every :meth:`work`.
        render_mode: As for :func:`build`.

    Attributes:
        envs: The environments.
    """

    def __init__(
        self,
        spec: Any,
        max_episode_steps: int,
        rows: np.ndarray,
        render_mode: str | None = None,
    ) -> None:
        self.envs = [build(spec, max_episode_steps, render_mode) for _ in range(len(rows))]
        self._rows = rows

    def work(self) -> None:
        """Does what each row orders; a row that rests costs nothing.

        Raises:
            SlotError: An environment raised.
        """
        rows = self._rows
        states, rewards, ended = rows["state"], rows["reward"], rows["ended"]
        for slot in np.flatnonzero(rows["order"]).tolist():
            env = self.envs[slot]
            try:
                if rows["order"][slot] == RESET:
                    states[slot], _ = env.reset(seed=int(rows["seed"][slot]))
                    continue
                # A copy: the row is written again, and an environment may keep its action.
                state, reward, terminated, truncated, _ = env.step(rows["action"][slot].copy())
                states[slot], rewards[slot] = state, reward
                ended[slot], rows["terminated"][slot] = terminated or truncated, terminated
            except Exception as error:
                raise SlotError(slot, _describe(error)) from error

    def close(self) -> None:
        """Closes the environments."""
        for env in self.envs:
            env.close()


def _describe(error: Exception) -> str:
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"raised {type(error).__name__}: {error} ({where.filename}:{where.lineno})"


def _serve(setup: dict[str, Any]) -> None:
    """A worker's life: wait for the parent, work, say so."""
    memory = mmap.mmap(setup["memory"], 0)
    rows = np.frombuffer(memory, setup["row_type"])[setup["first"] : setup["last"]]
    slots = Slots(pickle.loads(setup["spec"]), setup["max_episode_steps"], rows)
    poll = select.poll()
    poll.register(setup["go"], select.POLLIN)
    poll.register(sys.stdin.fileno(), 0)  # nothing comes but its end
    while setup["go"] in dict(poll.poll()):
        os.eventfd_read(setup["go"])
        slots.work()
        os.eventfd_write(setup["done"], 1)


def main() -> int:
    """Reads from standard input what to do; reports a failure on standard output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    report = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what environments print
    setup = pickle.load(sys.stdin.buffer)
    try:
        _serve(setup)
    except SlotError as error:
        pickle.dump((setup["first"] + error.slot, error.what), report)
    except Exception as error:
        pickle.dump((setup["first"], _describe(error)), report)
    else:
        return 0
    report.flush()
    return 1


if __name__ == "__main__":
    sys.exit(main())
