"""Playing episodes: a policy and a batch of environments work through a queue of episodes.

Each slot of the batch takes the next (target, episode) pair when its own episode has ended, so
episodes of different length cost no waiting. Episode e has the same seed under every target,
whatever slot plays it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch

from dmamba import _C, nn
from dmamba.envs.failures import Failure, finite_slots
from dmamba.envs.jobs import Job
from dmamba.nn.external import ExternalModel

_MOST_STARTS = 4  # of an episode whose worker has died of nobody knows what each time


class Policy(Protocol):
    """What acts: one slot per environment, each with its own history and target."""

    def reset(self, mask: np.ndarray, targets: np.ndarray, seeds: np.ndarray) -> None:
        """Starts new episodes where mask (num_envs,) bool is True.

        Args:
            mask: Where.
            targets: (num_envs,) raw returns to ask for.
            seeds: (num_envs,) int64 of the episodes, for a policy that draws.
        """

    def act(self, states: np.ndarray) -> np.ndarray:
        """Actions (num_envs, act_dim) for raw observations (num_envs, state_dim) float32.

        Of a game: (num_envs,) int64 for frames (num_envs, 4, 84, 84) uint8.
        """

    def observe(self, rewards: np.ndarray) -> None:
        """Takes the rewards (num_envs,) of the actions just played, raw."""


class ArrayPolicy:
    """A model's policy with arrays in place of tensors.

    Args:
        model: The model; its training mode stays what it is.
        kind: ``windowed`` or ``recurrent``; of a user's own model ``windowed``.
        num_envs: Slots.
        info: ``state_mean``, ``state_std``, ``rtg_scale``, as ``dmamba.nn.load`` gives.
        weights: ``fp32`` or, for the recurrent kind on the CPU, ``bf16``: of the matrices, half as
            much to read; the arithmetic is float32.
        rtg_rewards: ``raw``, or ``none``: returns-to-go stay the target, as with delayed rewards.
        context_length: K of the windowed kind; 0: the model's.
        forget_after: Steps after which the recurrent kind begins anew; 0: never.

    The model computes on the device where its parameters are.
    """

    def __init__(
        self,
        model: nn.DMamba | ExternalModel,
        kind: str,
        num_envs: int,
        info: dict[str, Any],
        weights: str = "fp32",
        rtg_rewards: str = "raw",
        context_length: int = 0,
        forget_after: int = 0,
    ) -> None:
        self._rtg_rewards = rtg_rewards
        self._policy = _C.Policy(
            model.cpp_module,
            kind,
            num_envs,
            info["rtg_scale"],
            info["state_mean"],
            info["state_std"],
            weights,
            context_length,
            forget_after,
        )

    def reset(self, mask: np.ndarray, targets: np.ndarray, seeds: np.ndarray) -> None:
        """See :class:`Policy`; nothing is drawn."""
        self._policy.reset(torch.from_numpy(mask), torch.from_numpy(targets))

    def act(self, states: np.ndarray) -> np.ndarray:
        """See :class:`Policy`."""
        return self._policy.act(torch.from_numpy(states)).numpy()

    def observe(self, rewards: np.ndarray) -> None:
        """See :class:`Policy`."""
        self._policy.observe(torch.from_numpy(counted(rewards, self._rtg_rewards)))


def counted(rewards: np.ndarray, rtg_rewards: str) -> np.ndarray:
    """What returns-to-go go down by.

    Args:
        rewards: (num_envs,) raw.
        rtg_rewards: ``raw``, ``clipped`` to [-1, 1], or ``none``.
    """
    if rtg_rewards == "none":
        return np.zeros_like(rewards)
    return np.clip(rewards, -1.0, 1.0) if rtg_rewards == "clipped" else rewards


class FramePolicy:
    """The policy of a model for games, with arrays in place of tensors.

    Args:
        model: The model; its training mode stays what it is.
        kind: ``windowed`` or ``recurrent``.
        num_envs: Slots.
        info: ``rtg_scale``, as ``dmamba.nn.load`` gives.
        temperature: Of the softmax that actions are drawn from; 0: the best.
        rtg_rewards: ``raw``: the return-to-go goes down by the rewards, as in the author's
            evaluation; ``clipped``: by those clipped to [-1, 1], as in the recordings; ``none``.
        context_length, forget_after: As of :class:`ArrayPolicy`.

    The model computes on the device where its parameters are. What is drawn follows from the
    episode's seed and the step, not from the slot.
    """

    def __init__(
        self,
        model: nn.AtariDMamba,
        kind: str,
        num_envs: int,
        info: dict[str, Any],
        temperature: float = 1.0,
        rtg_rewards: str = "raw",
        context_length: int = 0,
        forget_after: int = 0,
    ) -> None:
        self._policy = _C.AtariPolicy(
            model.cpp_module,
            kind,
            num_envs,
            info["rtg_scale"],
            temperature,
            context_length,
            forget_after,
        )
        self._rtg_rewards = rtg_rewards

    def reset(self, mask: np.ndarray, targets: np.ndarray, seeds: np.ndarray) -> None:
        """See :class:`Policy`."""
        self._policy.reset(
            torch.from_numpy(mask), torch.from_numpy(targets), torch.from_numpy(seeds)
        )

    def act(self, frames: np.ndarray) -> np.ndarray:
        """See :class:`Policy`."""
        return self._policy.act(torch.from_numpy(frames)).numpy()

    def observe(self, rewards: np.ndarray) -> None:
        """See :class:`Policy`."""
        self._policy.observe(torch.from_numpy(counted(rewards, self._rtg_rewards)))


class Batch(Protocol):
    """What is played: ``dmamba.envs.vector.Environments``, or ``dmamba.envs.atari``'s."""

    @property
    def num_envs(self) -> int:
        """Slots."""

    def reset(self, mask: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        """Starts episodes where mask (num_envs,) bool is True; observations of all slots."""

    def step(
        self, actions: np.ndarray, active: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Steps where active (num_envs,) bool; observations, rewards, whether episodes ended."""

    @property
    def failures(self) -> Mapping[int, Failure]:
        """By slot, the episodes that the last call has ended before their time."""


def play(
    policy: Policy,
    environments: Batch,
    jobs: Iterable[Job],
    on_episode: Callable[[Job, float, int], None],
    check: Callable[[], None] = lambda: None,
    on_failure: Callable[[Job, str, int], None] | None = None,
) -> None:
    """Plays every job once, over as many slots as there are environments.

    Args:
        policy: Acts for all slots at once.
        environments: At most one slot per job.
        jobs: The episodes, in the order in which they are handed out; taken as slots become free.
        on_episode: Called with (job, raw return, length in steps) as episodes end.
        check: Called after every step; may raise to stop.
        on_failure: Called with (job, what has happened, at which step) as episodes fail: their
            environment raised, hung, answered NaN or died, or the policy gave NaN. None: that is
            an error.

    Raises:
        Error: An episode failed, and there is no ``on_failure``; a slot was asked for what it
            cannot do.
    """
    from dmamba.envs.slots import SlotError  # gymnasium is needed from here on only

    slots = _Slots(environments.num_envs, jobs, on_failure or _refuse)
    try:
        _play(slots, policy, environments, on_episode, check)
    except SlotError as error:
        raise _C.Error(
            f"evaluation: the environment {error.what}, at step {slots.lengths[error.slot]} of "
            f"{slots.playing[error.slot]}"
        ) from error


def _refuse(job: Job, what: str, step: int) -> None:
    raise _C.Error(f"evaluation: {what}, at step {step} of {job}")


class _Slots:
    """What each slot is doing: its job and what has come of it, arrays (num_envs,).

    Args:
        num_envs: Slots.
        jobs: As for :func:`play`.
        on_failure: Likewise.
    """

    def __init__(
        self, num_envs: int, jobs: Iterable[Job], on_failure: Callable[[Job, str, int], None]
    ) -> None:
        self.playing: list[Job | None] = [None] * num_envs
        self.active: np.ndarray = np.zeros(num_envs, dtype=bool)
        self.targets = np.zeros(num_envs)
        self.seeds: np.ndarray = np.zeros(num_envs, dtype=np.int64)
        self.returns = np.zeros(num_envs)
        self.lengths: np.ndarray = np.zeros(num_envs, dtype=np.int64)
        self._queue, self._on_failure = iter(jobs), on_failure
        self._lost: deque[Job] = deque()
        self._starts: dict[Job, int] = {}  # of episodes that were lost

    def take(self) -> np.ndarray:
        """Gives the slots without an episode new jobs while there are; where it did."""
        starting = np.zeros_like(self.active)
        for slot, job in zip(np.flatnonzero(~self.active), self._next(), strict=False):
            self.playing[slot] = job
            starting[slot], self.seeds[slot], self.targets[slot] = True, job.seed, job.target
        self.active |= starting
        self.returns[starting], self.lengths[starting] = 0.0, 0
        return starting

    def _next(self) -> Iterator[Job]:
        while self._lost:
            yield self._lost.popleft()
        # Not `yield from`, which would end the queue together with this generator.
        for job in self._queue:  # noqa: UP028
            yield job

    def fail(self, slot: int, what: str) -> None:
        """Ends a slot's episode before its time."""
        job = self.playing[slot]
        assert job is not None
        self.active[slot] = False
        self._on_failure(job, what, int(self.lengths[slot]))

    def drop(self, failures: Mapping[int, Failure]) -> None:
        """Ends what a batch says has failed, and has played again what it says is lost."""
        for slot, failure in sorted(failures.items()):
            job = self.playing[slot]
            if not self.active[slot] or job is None:
                continue
            starts = self._starts[job] = self._starts.get(job, 1) + failure.unexplained
            if failure.again and starts <= _MOST_STARTS:
                self.active[slot] = False
                self._lost.append(job)
            else:
                times = f" (the {_MOST_STARTS}th time)" if failure.again else ""
                self.fail(slot, f"the environment {failure.what}{times}")

    def accept(self, states: np.ndarray, rewards: np.ndarray | None = None) -> np.ndarray:
        """Ends episodes with NaN or infinity in what they were answered.

        Args:
            states: (num_envs, ...).
            rewards: (num_envs,).

        Returns:
            What the policy is to see of the states, without either.
        """
        if np.issubdtype(states.dtype, np.floating):
            with np.errstate(over="ignore"):
                states = np.ascontiguousarray(states, dtype=np.float32)
        good = finite_slots(states, rewards)
        if good.all():
            return states
        for slot in np.flatnonzero(~good & self.active).tolist():
            row = states[slot].ravel()
            bad = np.flatnonzero(~np.isfinite(row))
            if len(bad):
                what = f"observation (value {bad[0]}: {row[bad[0]]})"
            else:
                what = f"reward ({rewards[slot]})"  # type: ignore[index]
            self.fail(slot, f"the environment returned a non-finite {what}")
        states[~finite_slots(states)] = 0
        return states

    def check_actions(self, actions: np.ndarray) -> None:
        """Ends episodes whose (num_envs, n) actions have NaN or infinity."""
        for slot in np.flatnonzero(~finite_slots(actions) & self.active).tolist():
            bad = np.flatnonzero(~np.isfinite(actions[slot]))[0]
            self.fail(
                slot,
                f"the policy gave a non-finite action (value {bad}: {actions[slot, bad]})",
            )
            actions[slot] = 0


def _play(
    slots: _Slots,
    policy: Policy,
    environments: Batch,
    on_episode: Callable[[Job, float, int], None],
    check: Callable[[], None],
) -> None:
    states = np.empty(0)
    while True:
        starting = slots.take()
        if not slots.active.any():
            return
        if starting.any():
            states = environments.reset(starting, slots.seeds)
            slots.drop(environments.failures)
            states = slots.accept(states)
            policy.reset(starting, slots.targets, slots.seeds)
            check()
            if not slots.active[starting].all():
                continue  # others for those that have failed at once
        actions = policy.act(states)
        slots.check_actions(actions)
        states, rewards, ended = environments.step(actions, slots.active)
        slots.lengths += slots.active
        slots.drop(environments.failures)
        rewards = np.where(slots.active, rewards, 0.0)
        states = slots.accept(states, rewards)
        rewards[~slots.active] = 0.0
        policy.observe(rewards)
        slots.returns += rewards
        for slot in np.flatnonzero(slots.active & ended):
            job = slots.playing[slot]
            assert job is not None
            on_episode(job, float(slots.returns[slot]), int(slots.lengths[slot]))
            slots.active[slot] = False
        check()
