"""Playing episodes: a policy and a batch of environments work through a queue of episodes.

Each slot of the batch takes the next (target, episode) pair when its own episode has ended, so
episodes of different length cost no waiting. Episode e has the same seed under every target,
whatever slot plays it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from dmamba import _C, nn
from dmamba.external import ExternalModel


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


@dataclass(frozen=True)
class Job:
    """One episode to play: which target, which number, its seed."""

    target_index: int
    target: float
    episode: int
    seed: int

    def __str__(self) -> str:
        return f"episode {self.episode}, target {self.target:g}, seed {self.seed}"


def episode_seed(seed: int, episode: int) -> int:
    """The environment's seed for one episode, 31 bits."""
    state = np.random.SeedSequence([seed, episode]).generate_state(1)
    return int(state[0] >> 1)


def make_jobs(
    targets: Sequence[float], episodes: int, seed: int, first_episode: int = 0
) -> list[Job]:
    """All episodes of an evaluation, the targets taking turns.

    Args:
        targets: Raw returns to ask for.
        episodes: Per target; they are numbered from 0.
        seed: Of the environments.
        first_episode: Number that the seed of episode 0 is made from: evaluations of disjoint
            ranges see different episodes.
    """
    seeds = [episode_seed(seed, first_episode + episode) for episode in range(episodes)]
    return [
        Job(index, float(target), episode, seeds[episode])
        for episode in range(episodes)
        for index, target in enumerate(targets)
    ]


def play(
    policy: Policy,
    environments: Batch,
    jobs: Iterable[Job],
    on_episode: Callable[[Job, float, int], None],
    check: Callable[[], None] = lambda: None,
) -> None:
    """Plays every job once, over as many slots as there are environments.

    Args:
        policy: Acts for all slots at once.
        environments: At most one slot per job.
        jobs: The episodes, in the order in which they are handed out; taken as slots become free.
        on_episode: Called with (job, raw return, length in steps) as episodes end.
        check: Called after every step; may raise to stop.

    Raises:
        Error: The environment or the policy returned NaN or infinity; an environment raised, or the
            process that stepped it died.
    """
    from dmamba.envs.slots import SlotError  # gymnasium is needed from here on only

    slots = _Slots(environments.num_envs)
    try:
        _play(slots, policy, environments, iter(jobs), on_episode, check)
    except SlotError as error:
        raise _C.Error(
            f"evaluation: the environment {error.what}, at step {slots.lengths[error.slot]} of "
            f"{slots.playing[error.slot]}"
        ) from error


class _Slots:
    """What each slot is doing: its job and what has come of it, arrays (num_envs,)."""

    def __init__(self, num_envs: int) -> None:
        self.playing: list[Job | None] = [None] * num_envs
        self.active: np.ndarray = np.zeros(num_envs, dtype=bool)
        self.targets = np.zeros(num_envs)
        self.seeds: np.ndarray = np.zeros(num_envs, dtype=np.int64)
        self.returns = np.zeros(num_envs)
        self.lengths: np.ndarray = np.zeros(num_envs, dtype=np.int64)

    def take(self, queue: Iterator[Job], free: np.ndarray) -> np.ndarray:
        """Gives the free slots (num_envs,) bool new jobs while there are; where it did."""
        starting = np.zeros_like(free)
        for slot, job in zip(np.flatnonzero(free), queue, strict=False):
            self.playing[slot] = job
            starting[slot], self.seeds[slot], self.targets[slot] = True, job.seed, job.target
        self.active = (self.active & ~free) | starting
        self.returns[starting], self.lengths[starting] = 0.0, 0
        return starting

    def check_finite(self, what: str, values: np.ndarray) -> None:
        """Refuses NaN and infinity in (num_envs, n) values of slots that are active."""
        if not np.issubdtype(values.dtype, np.floating) or np.isfinite(values).all():
            return
        for slot, column in np.argwhere(~np.isfinite(values)):
            if self.active[slot]:
                whose = "the policy gave" if what == "action" else "the environment returned"
                raise _C.Error(
                    f"evaluation: {whose} a non-finite {what} (value {column}: "
                    f"{values[slot, column]}) at step {self.lengths[slot]} of {self.playing[slot]}"
                )


def _play(
    slots: _Slots,
    policy: Policy,
    environments: Batch,
    queue: Iterator[Job],
    on_episode: Callable[[Job, float, int], None],
    check: Callable[[], None],
) -> None:
    states = np.empty(0)
    free: np.ndarray = np.ones(environments.num_envs, dtype=bool)
    while True:
        starting = slots.take(queue, free)
        if not slots.active.any():
            return
        if starting.any():
            states = environments.reset(starting, slots.seeds)
            slots.check_finite("observation", states)
            policy.reset(starting, slots.targets, slots.seeds)
        if np.issubdtype(states.dtype, np.floating):
            states = np.ascontiguousarray(states, dtype=np.float32)
        actions = policy.act(states)
        slots.check_finite("action", actions)
        states, rewards, ended = environments.step(actions, slots.active)
        slots.lengths += slots.active
        slots.check_finite("observation", states)
        slots.check_finite("reward", rewards[:, None])
        rewards = np.where(slots.active, rewards, 0.0)
        policy.observe(rewards)
        slots.returns += rewards
        free = slots.active & ended
        for slot in np.flatnonzero(free):
            job = slots.playing[slot]
            assert job is not None
            on_episode(job, float(slots.returns[slot]), int(slots.lengths[slot]))
        check()
