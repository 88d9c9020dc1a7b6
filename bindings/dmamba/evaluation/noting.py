"""Environments that note what is played in them, episode by episode."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np

from dmamba.data.replay_files import Game
from dmamba.envs.failures import Failure, finite_slots


class Episode:
    """One episode of vectors as it is being recorded.

    Attributes:
        observations, actions, rewards: By step, float32; an observation is what was seen before
            the action.
        terminated: Whether the environment ended it (False: the time limit did).
    """

    def __init__(self) -> None:
        self.observations: list[np.ndarray] = []
        self.actions: list[np.ndarray] = []
        self.rewards: list[float] = []
        self.terminated = False

    def __len__(self) -> int:
        return len(self.rewards)

    def add(self, observation: np.ndarray, action: np.ndarray, reward: float) -> None:
        """Appends a step; the arrays are copied."""
        self.observations.append(observation.astype(np.float32))
        self.actions.append(action.astype(np.float32))
        self.rewards.append(float(reward))

    def close(self, terminated: bool) -> None:
        """Ends the episode."""
        self.terminated = terminated


class Noted:
    """Environments that note what is played in them.

    Args:
        environments: What is played in.

    Attributes:
        num_envs: Slots.
        finished: Whole episodes in the order of their ends, those of one step by slot.
    """

    def __init__(self, environments: Any) -> None:
        self.num_envs: int = environments.num_envs
        self.finished: deque[Any] = deque()
        self._environments = environments
        self._open: list[Any] = [None] * self.num_envs
        self._states = np.empty(0)

    def reset(self, mask: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        """As of what is played in; what was open in these slots is forgotten."""
        states: np.ndarray = self._environments.reset(mask, seeds)
        for slot in np.flatnonzero(mask):
            self._open[slot] = self.new()
        self._states = states.copy()
        return states

    @property
    def failures(self) -> Mapping[int, Failure]:
        """As of what is played in."""
        return self._environments.failures

    def step(
        self, actions: np.ndarray, active: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As of what is played in, and notes it."""
        states, rewards, ended = self._environments.step(actions, active)
        good = active & finite_slots(states, rewards)
        good[list(self.failures)] = False  # the next reset of the slot forgets the episode
        for slot in np.flatnonzero(good).tolist():
            self.note(self._open[slot], self._states[slot], actions[slot], rewards[slot])
            if ended[slot]:
                self.close(self._open[slot], slot)
                self.finished.append(self._open[slot])
        self._states = states.copy()
        return states, rewards, ended

    def new(self) -> Any:
        """An empty episode."""
        raise NotImplementedError

    def note(self, episode: Any, state: np.ndarray, action: Any, reward: float) -> None:
        """Adds a step."""
        raise NotImplementedError

    def close(self, episode: Any, slot: int) -> None:
        """Ends the episode that a slot has played."""
        raise NotImplementedError


class NotedVectors(Noted):
    """Of vectors."""

    def new(self) -> Episode:
        """An empty episode."""
        return Episode()

    def note(self, episode: Episode, state: np.ndarray, action: Any, reward: float) -> None:
        """Adds a step."""
        episode.add(state, np.clip(action, self._environments.low, self._environments.high), reward)

    def close(self, episode: Episode, slot: int) -> None:
        """Ends the episode."""
        episode.close(bool(self._environments.terminated[slot]))


class NotedGames(Noted):
    """Of games."""

    def new(self) -> Game:
        """An empty episode."""
        return Game()

    def note(self, episode: Game, state: np.ndarray, action: Any, reward: float) -> None:
        """Adds a step."""
        episode.add(state[-1], action, reward)  # the newest of the stack

    def close(self, episode: Game, slot: int) -> None:
        """Ends the episode."""
        episode.close()
