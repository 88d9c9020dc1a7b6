"""Recording datasets: a policy plays, and every step is written down.

What an evaluation plays is played here, too (``rollout.play``), through environments that note each
step. MuJoCo episodes become a file of D4RL's layout, games of the Arcade Learning Environment a
folder of the DQN-replay layout. Everything is written at the end, under a temporary name first.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dmamba import _C, evaluation, hdf5, nn, rollout
from dmamba.progress import bar
from dmamba.replay_files import Game, write_shards
from dmamba.run import Run, write_json

NUM_ENVS = 16  # environments at a time


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

    @property
    def total(self) -> float:
        """Sum of the rewards."""
        return float(np.sum(self.rewards))


class _Noted:
    """Environments that note what is played in them; all else is theirs.

    Args:
        environments: What is played in.
        new: Makes an empty :class:`Episode` or :class:`Played`.
        on_reset: Called with what :meth:`reset` is given.
    """

    def __init__(
        self,
        environments: Any,
        new: Callable[[], Any],
        on_reset: Callable[[np.ndarray, np.ndarray], None],
    ) -> None:
        self._environments, self._new, self._on_reset = environments, new, on_reset
        self._open: list[Any] = [None] * environments.num_envs
        self._states = np.empty(0)
        self.finished: deque[Any] = deque()  # in the order of their ends, slots ascending

    def __getattr__(self, name: str) -> Any:
        return getattr(self._environments, name)

    def reset(self, mask: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        states: np.ndarray = self._environments.reset(mask, seeds)
        for slot in np.flatnonzero(mask):
            self._open[slot] = self._new()
        self._on_reset(mask, seeds)
        self._states = states.copy()
        return states

    def step(
        self, actions: np.ndarray, active: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        states, rewards, ended = self._environments.step(actions, active)
        for slot in np.flatnonzero(active):
            episode = self._open[slot]
            episode.add(self._states[slot], actions[slot], rewards[slot])
            if ended[slot]:
                episode.close(bool(self._environments.terminated[slot]))
                self.finished.append(episode)
        self._states = states.copy()
        return states, rewards, ended


class _Enough(Exception):  # noqa: N818  # no error
    """As much has been played as was asked for."""


class _Kept:
    """Episodes in the order of their numbers, however they end.

    With a number of transitions, episodes 0 to n are kept, n being the first with which there are
    so many: which ones, does not depend on how many are played at a time, and long ones count.
    """

    def __init__(self, wanted: int, by_transitions: bool, shown: Any) -> None:
        self._wanted, self._by_transitions, self._shown = wanted, by_transitions, shown
        self._waiting: dict[int, Any] = {}
        self.episodes: list[Any] = []
        self._count = 0

    def add(self, number: int, episode: Any) -> None:
        self._waiting[number] = episode
        while self._count < self._wanted and len(self.episodes) in self._waiting:
            kept = self._waiting.pop(len(self.episodes))
            self.episodes.append(kept)
            more = len(kept) if self._by_transitions else 1
            self._shown.update(min(more, self._wanted - self._count))
            self._count += more

    def check(self) -> None:
        if self._count >= self._wanted:
            raise _Enough


class RandomPolicy:
    """Draws actions uniformly; an episode's follow from its seed, whatever slot plays it.

    Args:
        num_envs: Slots.
        draw: Draws one action.
    """

    def __init__(self, num_envs: int, draw: Callable[[np.random.Generator], Any]) -> None:
        self._draw = draw
        self._random = [np.random.default_rng(0)] * num_envs

    def seed(self, mask: np.ndarray, seeds: np.ndarray) -> None:
        """Begins episodes where ``mask`` (num_envs,) bool is True, with ``seeds`` (num_envs,)."""
        for slot in np.flatnonzero(mask):
            self._random[slot] = np.random.default_rng([int(seeds[slot]), 1])

    def reset(self, mask: np.ndarray, targets: np.ndarray) -> None:
        """A target is nothing to it."""

    def act(self, states: np.ndarray) -> np.ndarray:
        """An action for each slot."""
        return np.stack([self._draw(random) for random in self._random])

    def observe(self, rewards: np.ndarray) -> None:
        """Nor are rewards."""


def record(
    policy: Run | str | os.PathLike[str] | None,
    output: str | os.PathLike[str],
    *,
    episodes: int | None = None,
    transitions: int | None = None,
    environment: str | None = None,
    target: float | None = None,
    kind: str | None = None,
    temperature: float | None = None,
    seed: int = 0,
    num_envs: int | None = None,
    workers: int | None = None,
    device: str | None = None,
    progress: bool = True,
) -> Path:
    """Plays whole episodes and writes them down as a dataset.

    Args:
        policy: A run, its folder, or a checkpoint's folder; None: random actions.
        output: A file to be made, of D4RL's layout; for a game the folder in which the folder of
            the game is to be made.
        episodes: How many to play, or
        transitions: at least how many, in whole episodes.
        environment: gymnasium id; None: the run's own. Random actions need it.
        target: Raw return to ask for; None: the run's first.
        kind: ``windowed`` or ``recurrent``; None: the run's own.
        temperature: Of the softmax that a game's actions are drawn from; None: the run's own.
        seed: Of the environments and of random actions. The same seed gives the same episodes.
        num_envs: Environments at a time; None: 16.
        workers: Processes that step them; None: by the cores.
        device: ``cpu``, ``cuda``, ``auto``, as for :func:`dmamba.evaluate`.
        progress: Whether to show a bar.

    Returns:
        The file; or the game's folder, in which ``rollout.json`` has the raw returns: those of the
        layout are sums of clipped rewards.

    Raises:
        ConfigError: Arguments that cannot be used, an environment that cannot be made.
        CheckpointError: There is no usable checkpoint.
        DataError: The environment's sizes are not the model's, or the output exists.
        OSError: The output cannot be written.

    Example:
        >>> path = dmamba.data.record("runs/hopper-sample-seed0", "mine.hdf5", episodes=100)
        >>> dmamba.train("hopper-sample", overrides=[f"dataset.path={path}"])
    """
    _check_amount(episodes, transitions, seed)
    player = _Player(policy, environment, target, kind, device)
    place = Path(output) / player.game if player.game else Path(output)
    if place.exists():
        raise _C.DataError(f"{place} exists; remove it, or choose another --output")
    slots = num_envs or NUM_ENVS
    played = _play(player, slots, workers, episodes, transitions, seed, progress)
    facts = {**player.facts, "seed": str(seed)}
    place.parent.mkdir(parents=True, exist_ok=True)
    if player.game:
        _write_games(place, played, player.game, facts)
    else:
        _write_episodes(place, played, facts)
    return place


class _Player:
    """Who plays, and where: what :func:`record` is asked for, resolved.

    Attributes:
        game: The game's name; "" for an environment of vectors.
        facts: What the dataset will say of its origin.
        target: Raw return to ask for; 0 for random actions.
    """

    def __init__(
        self,
        policy: Run | str | os.PathLike[str] | None,
        environment: str | None,
        target: float | None,
        kind: str | None,
        device: str | None,
    ) -> None:
        self.facts: dict[str, str] = {}
        self._model: nn.DMamba | None = None
        self.target, self._limit = 0.0, 0
        if policy is None:
            if not environment:
                raise _C.ConfigError("random actions need an environment: give its gymnasium id")
            if target is not None or kind is not None:
                raise _C.ConfigError("random actions have neither target nor kind of policy")
            self.environment, self.facts["policy"] = environment, "random"
        else:
            self._load(policy, environment, target, kind, device)
        self.facts["environment"] = self.environment
        self.game = ""

    def _load(
        self,
        policy: Run | str | os.PathLike[str],
        environment: str | None,
        target: float | None,
        kind: str | None,
        device: str | None,
    ) -> None:
        path = policy.folder if isinstance(policy, Run) else Path(policy)
        self._model, self._info, config = evaluation.load_model(path, device)
        self.environment = environment or config.dataset.environment
        if not self.environment:
            raise _C.ConfigError(f"{path}: the run names no environment; give environment=ID")
        if target is None and not config.evaluation.targets:
            raise _C.ConfigError(f"{path}: the run has no targets; give a target return")
        self.target = float(config.evaluation.targets[0] if target is None else target)
        self._kind = kind or config.evaluation.policy
        if environment in (None, config.dataset.environment):
            self._limit = config.dataset.max_episode_length
        self.facts |= {
            "policy": str(path),
            "checkpoint_step": str(self._info["step"]),
            "policy_kind": self._kind,
            "target": f"{self.target:g}",
        }

    def environments(self, slots: int, workers: int) -> Any:
        """``slots`` environments, stepped by ``workers`` processes."""
        vector = evaluation.import_vector()
        if self._model is not None:
            sizes = (self._model.state_dim, self._model.act_dim)
            found = vector.dimensions(self.environment, self._limit)
            evaluation.check_dimensions(self.environment, found, sizes, "the model")
        return vector.Environments(self.environment, slots, self._limit, workers)

    def policy(self, environments: Any) -> tuple[rollout.Policy, Callable[..., None]]:
        """What acts in them, and what wants to know of every reset."""
        slots = environments.num_envs
        if self._model is not None:
            model = rollout.ArrayPolicy(self._model, self._kind, slots, self._info)
            return model, lambda mask, seeds: None
        low, high = environments.low, environments.high
        random = RandomPolicy(slots, lambda r: r.uniform(low, high).astype(low.dtype))
        return random, random.seed


def _check_amount(episodes: int | None, transitions: int | None, seed: int) -> None:
    if (episodes is None) == (transitions is None):
        raise _C.ConfigError("say how much to record: either episodes or transitions")
    for name, value in (("episodes", episodes), ("transitions", transitions)):
        if value is not None and value < 1:
            raise _C.ConfigError(f"{name} must be at least 1, got {value}")
    if seed < 0:
        raise _C.ConfigError(f"seed must not be negative, got {seed}")


def _play(
    player: _Player,
    slots: int,
    workers: int | None,
    episodes: int | None,
    transitions: int | None,
    seed: int,
    progress: bool,
) -> list[Any]:
    """The episodes, by number."""
    numbers = itertools.count() if episodes is None else iter(range(episodes))
    slots = slots if episodes is None else min(slots, episodes)
    workers = workers or evaluation.default_workers(episodes or slots, slots)
    wanted = episodes or transitions or 0
    unit = "episode" if episodes else "transition"
    with (
        player.environments(slots, min(workers, slots)) as environments,
        bar(wanted, f"recording {player.environment}", unit, enabled=progress) as shown,
    ):
        policy, on_reset = player.policy(environments)
        noted = _Noted(environments, Game if player.game else Episode, on_reset)
        kept = _Kept(wanted, transitions is not None, shown)

        def on_episode(job: rollout.Job, total: float, length: int) -> None:
            kept.add(job.episode, noted.finished.popleft())

        try:
            rollout.play(policy, noted, _jobs(numbers, player.target, seed), on_episode, kept.check)
        except _Enough:
            pass
    return kept.episodes


def _jobs(numbers: Iterator[int], target: float, seed: int) -> Iterator[rollout.Job]:
    for number in numbers:
        yield rollout.Job(0, target, number, rollout.episode_seed(seed, number))


def _write_episodes(path: Path, episodes: list[Episode], facts: dict[str, str]) -> None:
    last = [np.arange(len(episode)) == len(episode) - 1 for episode in episodes]
    ended = [episode.terminated for episode in episodes]
    arrays = {
        "observations": np.concatenate([episode.observations for episode in episodes]),
        "actions": np.concatenate([episode.actions for episode in episodes]),
        "rewards": np.concatenate([episode.rewards for episode in episodes]).astype(np.float32),
    }
    for name, wanted in (("terminals", True), ("timeouts", False)):
        marks = [mark & (end == wanted) for mark, end in zip(last, ended, strict=True)]
        arrays[name] = np.concatenate(marks).astype(np.uint8)
    hdf5.write(path, arrays, facts)


def _write_games(place: Path, games: list[Game], game: str, facts: dict[str, str]) -> None:
    temporary = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    try:
        shards = write_shards(temporary / "1", games)
        write_json(temporary / "rollout.json", [{"game": game, **row, **facts} for row in shards])
        os.rename(temporary, place)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
