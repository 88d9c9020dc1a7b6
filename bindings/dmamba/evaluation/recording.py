"""Recording datasets: a policy plays, and every step is written down.

What an evaluation plays is played here, too (``rollout.play``), through environments that note each
step. MuJoCo episodes become a file of D4RL's layout, games of the Arcade Learning Environment a
folder of the DQN-replay layout. Everything is written at the end, under a temporary name first; the
end may be SIGINT's or SIGTERM's.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dmamba import _C, evaluation
from dmamba.common.files import replacing_folder, write_json
from dmamba.common.signals import Interrupted, NotedSignals
from dmamba.data import hdf5, replays
from dmamba.data.replay_files import Game, write_shards
from dmamba.display.progress import bar
from dmamba.envs import games
from dmamba.envs.failures import FailedEpisode, Guard
from dmamba.envs.jobs import Job, episode_seed
from dmamba.evaluation import rollout, suites
from dmamba.evaluation.noting import Episode, Noted, NotedGames, NotedVectors
from dmamba.runs import Run

if TYPE_CHECKING:
    from dmamba.nn.external import Factory

NUM_ENVS = 16  # environments at a time
_FEW = 20  # of fewer episodes it is too early to say what share fails


class _Enough(Exception):  # noqa: N818  # no error
    """As much has been played as was asked for, or a signal has come."""


class _Kept:
    """Episodes in the order of their numbers, however they end.

    With a number of transitions, episodes 0 to n are kept, n being the first with which there are
    so many: which ones, does not depend on how many are played at a time, and long ones count.
    """

    def __init__(
        self, episodes: int | None, transitions: int | None, signals: NotedSignals
    ) -> None:
        self._wanted, self._by_transitions = episodes or transitions or 0, episodes is None
        self._signals = signals
        self.shown: Any = None  # a bar
        self._waiting: dict[int, Any] = {}
        self.episodes: list[Any] = []
        self.failed: list[FailedEpisode] = []
        self._next = 0
        self._count = 0  # of what is wanted

    def add(self, number: int, episode: Any) -> None:
        self._waiting[number] = episode
        while self._count < self._wanted and self._next in self._waiting:
            kept = self._waiting.pop(self._next)
            self._next += 1
            if isinstance(kept, FailedEpisode):
                self.failed.append(kept)
                more = int(not self._by_transitions)
            else:
                self.episodes.append(kept)
                more = len(kept) if self._by_transitions else 1
            self.shown.update(min(more, self._wanted - self._count))
            self._count += more

    def fail(self, failed: FailedEpisode, max_failed: float) -> None:
        """Notes a failed episode, which is left out.

        Raises:
            Error: More than that share of the episodes have failed.
        """
        self.add(failed.episode, failed)
        seen = [*self.failed, *(e for e in self._waiting.values() if isinstance(e, FailedEpisode))]
        ended = self._next + len(self._waiting)
        total = max(ended, _FEW) if self._by_transitions else self._wanted
        if len(seen) > max_failed * total or len(seen) == total:
            raise _C.Error(
                f"recording: {len(seen)} of {ended} episodes failed, more than max_failed "
                f"{max_failed:g} allows, and nothing is written; the first: {seen[0]}"
            )

    def warn(self) -> None:
        """Warns of episodes that were left out."""
        if self.failed:
            warnings.warn(
                f"recording: {len(self.failed)} of {self._next} episodes failed and are left out; "
                f"the first: {self.failed[0]}",
                stacklevel=3,
            )

    def describe(self, place: Path) -> str:
        """What has become of a recording that was stopped."""
        if not self.episodes:
            return "nothing was kept, for the first episode had not ended"
        count = len(self.episodes)
        wanted = "" if self._by_transitions else f" of {self._wanted}"
        steps = sum(map(len, self.episodes))
        return f"{place} has the first {count}{wanted} episodes, {steps:,} transitions"

    def check(self) -> None:
        if self._count >= self._wanted or self._signals.received:
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

    def reset(self, mask: np.ndarray, targets: np.ndarray, seeds: np.ndarray) -> None:
        """Begins episodes where ``mask`` is True; targets are nothing to it."""
        for slot in np.flatnonzero(mask):
            self._random[slot] = np.random.default_rng([int(seeds[slot]), 1])

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
    model: torch.nn.Module | Factory | None = None,
    timeout: float | None = None,
    max_failed: float | None = None,
) -> Path:
    """Plays whole episodes and writes them down as a dataset.

    SIGINT (Ctrl-C) and SIGTERM end it early: the first episodes, up to one that is still being
    played, are kept, and the file is what a recording of so many would have been. (Of those that
    are played at a time the short ones end first; to keep these alone would favour them.)

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
        model: Of a run with a model of your own, as for :func:`dmamba.evaluate`.
        timeout: As for :func:`dmamba.evaluate`; None: the run's own.
        max_failed: The share of the episodes that may fail; None: the run's own. Those that fail
            are left out, with a warning; ``failed_episodes`` of the dataset says how many.

    Returns:
        The file; or the game's folder, in which ``rollout.json`` has the raw returns: those of the
        layout are sums of clipped rewards.

    Raises:
        ConfigError: Arguments that cannot be used, an environment that cannot be made.
        CheckpointError: There is no usable checkpoint.
        DataError: The environment's sizes are not the model's; the output exists or cannot be made.
        Error: Too many episodes failed; nothing is written.
        OSError: The output cannot be written.
        KeyboardInterrupt: A signal has come; what could be kept is written.

    Example:
        >>> path = dmamba.data.record("runs/hopper-sample-seed0", "mine.hdf5", episodes=100)
        >>> dmamba.train("hopper-sample", overrides=[f"dataset.path={path}"])
    """
    _check_amount(episodes, transitions, seed)
    evaluation.check_parallelism(num_envs, workers)
    if policy is None:
        player = _random_player(environment, target=target, kind=kind, temperature=temperature)
    else:
        path = policy.folder if isinstance(policy, Run) else Path(policy)
        player = _model_player(path, environment, target, kind, temperature, device, model)
    game = replays.game_of(player.environment)
    place = Path(output) / game if game else Path(output)
    if place.exists():
        raise _C.DataError(f"{place} exists; remove it, or choose another output")
    _make_folder(place.parent)  # before anything is played
    from dmamba.envs.host import usable_cores

    slots = min(num_envs or NUM_ENVS, episodes or transitions or 1)
    unit = "transition" if episodes is None else "episode"
    with NotedSignals() as signals:
        kept = _Kept(episodes, transitions, signals)
        guard = Guard(
            player.timeout if timeout is None else timeout, kept.check, isolated=workers is None
        )
        most = player.max_failed if max_failed is None else max_failed
        with (
            player.environments(slots, min(workers or usable_cores(), slots), guard) as batch,
            bar(
                episodes or transitions or 0,
                f"recording {player.environment}",
                unit,
                enabled=progress,
            ) as kept.shown,
        ):
            noted = NotedGames(batch) if game else NotedVectors(batch)
            jobs = _jobs(episodes, player.target, seed)
            _play(player.policy(batch), noted, jobs, kept, most)
        kept.warn()
        if kept.episodes:
            facts = {"environment": player.environment, **player.facts, "seed": str(seed)}
            if kept.failed:
                facts["failed_episodes"] = str(len(kept.failed))
            write = _write_games if game else _write_episodes
            write(place, kept.episodes, facts)
    if signals.received:
        stop = Interrupted(signals.received, place)
        if progress:
            print(f"{stop}: {kept.describe(place)}", file=sys.stderr, flush=True)
        raise stop
    return place


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _C.DataError(
            f"{folder}: cannot be made ({error.strerror}); choose another output"
        ) from None
    if not os.access(folder, os.W_OK):
        raise _C.DataError(f"{folder}: cannot be written to; choose another output")


def _check_amount(episodes: int | None, transitions: int | None, seed: int) -> None:
    if (episodes is None) == (transitions is None):
        raise _C.ConfigError("say how much to record: either episodes or transitions")
    for name, value in (("episodes", episodes), ("transitions", transitions)):
        if value is not None and value < 1:
            raise _C.ConfigError(f"{name} must be at least 1, got {value}")
    if seed < 0:
        raise _C.ConfigError(f"seed must not be negative, got {seed}")


def _play(
    policy: rollout.Policy,
    noted: Noted,
    jobs: Iterator[Job],
    kept: _Kept,
    max_failed: float,
) -> None:
    def on_failure(job: Job, what: str, step: int) -> None:
        kept.fail(FailedEpisode(job.target, job.episode, job.seed, step, what), max_failed)

    def on_episode(job: Job, total: float, length: int) -> None:
        kept.add(job.episode, noted.finished.popleft())

    with contextlib.suppress(_Enough):
        rollout.play(policy, noted, jobs, on_episode, kept.check, on_failure)


def _jobs(episodes: int | None, target: float, seed: int) -> Iterator[Job]:
    for number in itertools.count() if episodes is None else range(episodes):
        yield Job(0, target, number, episode_seed(seed, number))


@dataclass(frozen=True)
class _Player:
    """Who plays, and where: what :func:`record` is asked for, resolved.

    Attributes:
        environment: gymnasium id.
        target: Raw return to ask for; 0 for random actions.
        facts: What the dataset will say of its origin.
        environments: Makes so many environments with so many workers under a guard.
        policy: Makes what acts in them.
        timeout: Seconds for one call of an environment.
        max_failed: The share of the episodes that may fail.
    """

    environment: str
    target: float
    facts: dict[str, str]
    environments: Callable[[int, int, Guard], Any]
    policy: Callable[[Any], rollout.Policy]
    timeout: float
    max_failed: float


def _model_player(
    path: Path,
    environment: str | None,
    target: float | None,
    kind: str | None,
    temperature: float | None,
    device: str | None,
    own_model: torch.nn.Module | Factory | None,
) -> _Player:
    model, info, config = evaluation.load_model(path, device, model=own_model)
    own, settings = config.dataset.environment, config.evaluation
    if not (environment or own):
        raise _C.ConfigError(f"{path}: the run names no environment; give one")
    if target is None and not settings.targets:
        raise _C.ConfigError(f"{path}: the run has no target returns; give one")
    wanted = float(settings.targets[0] if target is None else target)
    choices = suites.Choices(
        policy=kind or settings.policy,
        temperature=settings.temperature if temperature is None else temperature,
        rtg_rewards=settings.rtg_rewards,
        sticky_actions=settings.sticky_actions,
        max_episode_length=config.dataset.max_episode_length if environment in (None, own) else 0,
    )
    suite = suites.choose(model, info, environment or own, choices)
    facts = {
        "policy": str(path),
        "checkpoint_step": str(info["step"]),
        "policy_kind": choices.policy,
        "target": f"{wanted:g}",
        **{name: str(value) for name, value in suite.describe().items()},
    }
    return _Player(
        suite.environment,
        wanted,
        facts,
        lambda slots, workers, guard: suite.environments(slots, workers, guard=guard),
        lambda environments: suite.policy(environments.num_envs),
        settings.timeout,
        settings.max_failed,
    )


def _random_player(environment: str | None, **not_for_it: Any) -> _Player:
    if not environment:
        raise _C.ConfigError("random actions need an environment: give its gymnasium id")
    for name, value in not_for_it.items():
        if value is not None:
            raise _C.ConfigError(f"random actions have no {name}")
    usual = _C.EvaluationConfig()
    game = games.find(environment)
    if game is not None:
        environment = game.gym_id

        def make(slots: int, workers: int, guard: Guard) -> Any:
            return suites.import_atari().Environments(game.gym_id, slots, 0, workers)

        def policy(environments: Any) -> RandomPolicy:
            count = environments.num_actions
            return RandomPolicy(environments.num_envs, lambda random: random.integers(count))
    else:

        def make(slots: int, workers: int, guard: Guard) -> Any:
            vector = suites.import_vector()
            return vector.Environments(environment, slots, 0, workers, guard=guard)

        def policy(environments: Any) -> RandomPolicy:
            low, high = environments.low, environments.high
            return RandomPolicy(environments.num_envs, lambda random: random.uniform(low, high))

    return _Player(
        environment,
        0.0,
        {"policy": "random"},
        make,
        policy,
        usual.timeout,
        usual.max_failed,
    )


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


def _write_games(place: Path, played: list[Game], facts: dict[str, str]) -> None:
    with replacing_folder(place) as temporary:
        shards = write_shards(temporary / "1", played)
        write_json(
            temporary / "rollout.json", [{"game": place.name, **row, **facts} for row in shards]
        )
