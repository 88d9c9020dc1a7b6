"""The environments of one process, and the program of a worker process.

``processes.py`` starts this file as a program, so it imports neither dmamba nor torch: a worker is
there in half a second and small. Parent and workers share an array with one row a slot, see
:func:`row_type`. A worker sleeps until its eventfd is written, does what the rows order, and writes
the eventfd that the parent waits on. What goes wrong in a slot it tells on standard output, and
goes on with the next. It ends when its standard input does, which is when the parent closes it, and
is killed when the thread that has started it ends: no hanging environment outlives its parent.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import pickle
import select
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import IO, Any

import gymnasium
import numpy as np

REST, STEP, RESET = 0, 1, 2  # what a row orders
_LONGEST = 1000  # characters of an exception's own text
_PR_SET_PDEATHSIG = 1
_OOM_SCORE = "500"  # of 1000: where memory runs out, a worker goes first, not its parent


class SlotError(Exception):
    """A slot was asked for what it cannot do.

    Attributes:
        slot: Index of the row.
        what: What happened, to follow a subject: ``was given action 7, ...``.
    """

    def __init__(self, slot: int, what: str) -> None:
        super().__init__(slot, what)
        self.slot = slot
        self.what = what


def row_type(observations: gymnasium.spaces.Box, actions: gymnasium.spaces.Box) -> np.dtype:
    """The type of a slot's row: an order to the slot, and what came of it.

    ``order`` is REST, STEP or RESET, with ``seed`` for RESET and ``action`` (act_dim,) for STEP; it
    becomes REST when it has been obeyed. ``begun`` is when that began, on the system's monotonic
    clock. ``state`` (state_dim,), ``reward``, ``ended`` and ``terminated`` (it was the environment
    that ended the episode, no time limit) are the environment's answer.
    """
    return np.dtype(
        [
            ("order", np.uint8),
            ("ended", np.bool_),
            ("terminated", np.bool_),
            ("seed", np.int64),
            ("begun", np.float64),
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

    An environment is made when its slot begins its first episode, and made anew after a failure.

    Args:
        spec: As for :func:`build`.
        max_episode_steps: As for :func:`build`.
        rows: (n,) of :func:`row_type`; read and written by every :meth:`work`.
        render_mode: As for :func:`build`.

    Attributes:
        envs: The environments; None where there is none yet.
    """

    def __init__(
        self,
        spec: Any,
        max_episode_steps: int,
        rows: np.ndarray,
        render_mode: str | None = None,
    ) -> None:
        self._arguments = spec, max_episode_steps, render_mode
        self._rows = rows
        self.envs: list[gymnasium.Env | None] = [None] * len(rows)

    def work(self, fail: Callable[[int, str], None]) -> None:
        """Does what each row orders; a row that rests costs nothing.

        Args:
            fail: Called with a slot, and what went wrong there: its episode is over.
        """
        orders, begun = self._rows["order"], self._rows["begun"]
        for slot in np.flatnonzero(orders).tolist():
            begun[slot] = time.monotonic()
            try:
                if orders[slot] == RESET:
                    self._reset(slot)
                else:
                    self._step(slot)
            except (Exception, SystemExit) as error:
                fail(slot, _describe(error))
                self._discard(slot)
            orders[slot] = REST

    def close(self) -> None:
        """Closes the environments."""
        for slot in range(len(self.envs)):
            self._discard(slot)

    def _reset(self, slot: int) -> None:
        env = self.envs[slot]
        if env is None:
            env = self.envs[slot] = build(*self._arguments)
        state, _ = _parts("reset", env.reset(seed=int(self._rows["seed"][slot])), 2)
        self._rows["state"][slot] = self._state(state)

    def _step(self, slot: int) -> None:
        rows, env = self._rows, self.envs[slot]
        if env is None:
            raise WrongAnswer("was not reset after its last episode had failed")
        # A copy: the row is written again, and an environment may keep its action.
        answer = env.step(rows["action"][slot].copy())
        state, reward, terminated, truncated, _ = _parts("step", answer, 5)
        rows["state"][slot] = self._state(state)
        rows["reward"][slot] = _reward(reward)
        over = _flag("terminated", terminated)
        rows["ended"][slot] = _flag("truncated", truncated) or over
        rows["terminated"][slot] = over

    def _state(self, state: Any) -> np.ndarray:
        """An observation; numpy would stretch one of a single value over the row."""
        values, shape = np.asarray(state), self._rows.dtype["state"].shape
        if values.shape != shape or values.dtype.kind not in "fiub":
            raise WrongAnswer(
                f"returned an observation of shape {values.shape} and type {values.dtype}, not "
                f"{shape} real numbers"
            )
        return values

    def _discard(self, slot: int) -> None:
        env, self.envs[slot] = self.envs[slot], None
        if env is not None:
            with contextlib.suppress(Exception, SystemExit):  # it has failed, or is not needed
                env.close()


class WrongAnswer(Exception):  # noqa: N818  # it says of an environment what it did
    """An environment returned what it cannot mean; the text follows a subject."""


def _parts(method: str, answer: Any, count: int) -> Any:
    if not isinstance(answer, tuple) or len(answer) != count:
        found = f"a tuple of {len(answer)}" if isinstance(answer, tuple) else type(answer).__name__
        raise WrongAnswer(f"returned {found} from {method}(), not a tuple of {count}")
    return answer


def _reward(reward: Any) -> Any:
    values = np.asarray(reward)
    if values.size != 1 or values.dtype.kind not in "fiub":
        raise WrongAnswer(f"returned the reward {reward!r:.80}, which is no number")
    return values.item()


def _flag(name: str, flag: Any) -> bool:
    values = np.asarray(flag)
    if values.size != 1 or values.dtype.kind not in "biu":
        raise WrongAnswer(f"returned {flag!r:.80} for {name}, which is neither True nor False")
    return bool(values.item())


def _describe(error: BaseException) -> str:
    try:
        text = str(error)[:_LONGEST]
    except Exception:  # an exception of a stranger's
        text = "whose text cannot be had"
    if isinstance(error, WrongAnswer):
        return text
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"raised {type(error).__name__}: {text} ({where.filename}:{where.lineno})"


def _tell(report: IO[bytes], slot: int | None, what: str) -> None:
    report.write(json.dumps([slot, what]).encode() + b"\n")
    report.flush()


def _serve(setup: dict[str, Any], report: IO[bytes]) -> None:
    """A worker's life: wait for the parent, work, say so."""
    memory = mmap.mmap(setup["memory"], 0)
    rows = np.frombuffer(memory, setup["row_type"])[setup["first"] : setup["last"]]
    slots = Slots(pickle.loads(setup["spec"]), setup["max_episode_steps"], rows)

    def fail(slot: int, what: str) -> None:
        _tell(report, setup["first"] + slot, what)

    poll = select.poll()
    poll.register(setup["go"], select.POLLIN)
    poll.register(sys.stdin.fileno(), 0)  # nothing comes but its end
    while setup["go"] in dict(poll.poll()):
        os.eventfd_read(setup["go"])
        slots.work(fail)
        os.eventfd_write(setup["done"], 1)


def main() -> int:
    """Reads from standard input what to do; reports failures on standard output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write(_OOM_SCORE)
    report = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what environments print
    try:
        setup = pickle.load(sys.stdin.buffer)
    except (EOFError, pickle.UnpicklingError):  # the parent has died
        return 1
    if os.getppid() != setup["parent"]:
        return 1
    try:
        _serve(setup, report)
    except Exception as error:
        _tell(report, None, _describe(error))
        return 1
    return 0


if __name__ == "__main__":
    # Python looks for modules beside this file first; environments mean theirs by the same names.
    beside = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [folder for folder in sys.path if folder != beside]
    sys.exit(main())
