"""The processes that train one model together, as torchrun starts them.

Rank 0 leads: it alone writes the run's folder, evaluates, draws, and says how many steps come next.
The others follow. Three ways lead from one to another:

    data       sums of gradients, in the trainer: NCCL between GPUs, gloo between CPUs
    control    a few numbers before every burst, gloo: who waits there may wait for days
    store      torchrun's: signs of life, and the last words of a rank that fails
"""

from __future__ import annotations

import datetime
import hashlib
import os
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from dmamba import _C
from dmamba.common.signals import StopSignals
from dmamba.common.watch import Watch

T = TypeVar("T")
AnyTeam = TypeVar("AnyTeam", bound="Team")

BURST_SECONDS = 0.2
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
JOIN_TIMEOUT = datetime.timedelta(minutes=10)
DATA_TIMEOUT = datetime.timedelta(minutes=10)
CONTROL_TIMEOUT = datetime.timedelta(days=30)

_joined = 0  # teams that this process has been in: the store's keys are not used again


def several() -> bool:
    """Whether this process is one of several that torchrun has started."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def leads() -> bool:
    """Whether this process is rank 0 of several, or alone: the one that writes and speaks."""
    return not several() or os.environ.get("RANK") == "0"


def join() -> Team:
    """This process's team: what torchrun has started, or this process alone."""
    return Ranks() if several() else Team()


class Team:
    """One process that trains alone, and what is asked of several.

    Attributes:
        rank: This process's number; rank 0 leads.
        world: How many there are.
        core: What the trainer takes.
    """

    rank = 0
    world = 1
    core: _C.Ranks | None = None

    def __enter__(self: AnyTeam) -> AnyTeam:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    @property
    def leads(self) -> bool:
        """Whether this process writes, draws and evaluates."""
        return self.rank == 0

    def together(self, work: Callable[[], T]) -> T:
        """Does some work here, and raises on every rank where it fails on one.

        Raises:
            Error: It failed on another rank; the message names it.
        """
        return work()

    def in_turn(self, work: Callable[[], T]) -> T:
        """The same on one rank of each machine first, for work that fills a cache on its disk."""
        return work()

    def begin(self, config: _C.Config, store: _C.TrajectoryStore | _C.FrameStore) -> None:
        """Makes sure that all ranks train the same, and connects their devices.

        Args:
            config: Resolved.
            store: Its data.

        Raises:
            ConfigError: They do not; on every rank.
        """

    def connect(self, trainer: _C.Trainer) -> None:
        """Gives every rank rank 0's parameters, moments and step."""

    def burst(self, trainer: _C.Trainer, most: int, signals: StopSignals) -> list[dict[str, Any]]:
        """Trains for a fraction of a second, and at most so many steps; rank 0 calls it.

        Returns:
            The rows of metrics that fell due.

        Raises:
            Interrupted: A rank has received a signal; no step was done.
            LostRankError: A rank does not answer.
        """
        return trainer.run(seconds=BURST_SECONDS, max_steps=most)

    def follow(self, trainer: _C.Trainer, signals: StopSignals) -> None:
        """Does what rank 0 says, to the end; the other ranks call it.

        Raises:
            Interrupted: A rank has received a signal, and rank 0 has saved.
            LostRankError: A rank does not answer.
        """
        raise AssertionError("one process has nobody to follow")

    def end(self, signum: int = 0) -> None:
        """Rank 0 lets the others go: it has saved what there is to save."""

    def explain(self, error: _C.LostRankError) -> str:
        """Who is lost, and why as far as it has said so; takes some seconds."""
        return str(error)


class Ranks(Team):
    """Several processes, one model.

    Raises:
        ConfigError: torchrun's variables are incomplete.
        LostRankError: The others did not come.
    """

    def __init__(self) -> None:
        missing = [name for name in VARIABLES if name not in os.environ]
        if missing:
            raise _C.ConfigError(
                f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {', '.join(missing)} is not set; "
                "start the processes with torchrun, or unset WORLD_SIZE"
            )
        self.local_rank = int(os.environ["LOCAL_RANK"])
        self.rank, self.world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self._groups: list[Any] = []
        self._trainer: _C.Trainer | None = None
        self._told = False  # whether the others know that it is over
        self._steps, self._pace = 1, 0.0  # of the last burst: steps, steps a second
        self._join()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, Exception) and not isinstance(error, _C.LostRankError):
            self._watch.leave_word(f"{type(error).__name__}: {error}")
        self.core = None
        if self._trainer is not None:
            self._trainer.release()
        if self._owns_default:
            dist.destroy_process_group()
        else:
            for group in self._groups:
                dist.destroy_process_group(group)
        self._watch.stop()  # last: where NCCL cannot close, it ends the process

    def together(self, work: Callable[[], T]) -> T:
        """Gathers what failed where."""
        failure: Exception | None = None
        result: Any = None
        try:
            result = work()
        except Exception as error:
            failure = error
        failures = self._gather("" if failure is None else f"{failure}")
        if failure is not None:
            raise failure
        for rank, message in enumerate(failures):
            if message:
                raise _C.Error(f"rank {rank} of {self.world}: {message}")
        return result

    def in_turn(self, work: Callable[[], T]) -> T:
        """The ranks whose number on their machine is 0, then the others."""
        first = self.local_rank == 0
        early = self.together(lambda: work() if first else None)
        late = self.together(lambda: None if first else work())
        return early if first else late  # type: ignore[return-value]

    def begin(self, config: _C.Config, store: _C.TrajectoryStore | _C.FrameStore) -> None:
        """Compares, chooses the GPU, opens NCCL or gloo."""
        device = self.together(lambda: _device(config.training.device, self.local_rank))
        self._compare(facts_of(config, store, device))
        backend = "nccl" if device == "cuda" else "gloo"
        data = dist.new_group(backend=backend, timeout=DATA_TIMEOUT)
        self._groups.append(data)
        self.core = _C.Ranks(data)

    def connect(self, trainer: _C.Trainer) -> None:
        """Sends them, and keeps the trainer: its graph has to go before the connection."""
        self._trainer = trainer
        trainer.synchronize()

    def burst(self, trainer: _C.Trainer, most: int, signals: StopSignals) -> list[dict[str, Any]]:
        """Rank 0 cuts by time, and tells the others how many steps that is."""
        # Time cuts a burst on one rank alone, and in steps: all have to do the same.
        wanted = min(2 * self._steps, int(self._pace * BURST_SECONDS))
        self._steps = max(1, min(wanted, most))
        # A signal that comes from now on is for the next burst: the others begin with this one.
        _, signum = self._agree(self._steps, signals.received)
        signals.stop_at(signum)
        started = time.perf_counter()
        rows = trainer.run(seconds=float("inf"), max_steps=self._steps)
        self._pace = self._steps / (time.perf_counter() - started)
        return rows

    def follow(self, trainer: _C.Trainer, signals: StopSignals) -> None:
        """Bursts until rank 0 says that there are none, or a signal has come."""
        while True:
            steps, signum = self._agree(0, signals.received)
            if steps == 0 or signum:
                break
            trainer.run(seconds=float("inf"), max_steps=steps)
        self._gather(None)  # until rank 0 has saved
        signals.stop_at(signum)

    def end(self, signum: int = 0) -> None:
        """Says so, unless a signal has, and waits until all have heard."""
        if not self._told:
            self._agree(0, signum)
        self._gather(None)

    def explain(self, error: _C.LostRankError) -> str:
        """From signs of life and last words."""
        return self._watch.explain() or str(error)

    def _agree(self, steps: int, signum: int) -> tuple[int, int]:
        """Rank 0's number of steps (0: the end), and a signal that some rank has received or 0."""
        mine = torch.tensor([steps, signum])
        ranks = [torch.empty_like(mine) for _ in range(self.world)]
        self._call(lambda: dist.all_gather(ranks, mine, group=self._control))
        signals = [int(theirs[1]) for theirs in ranks if theirs[1] != 0]
        leader = int(ranks[0][0])
        self._told = bool(signals) or leader == 0
        return leader, signals[0] if signals else 0

    def _compare(self, facts: dict[str, Any]) -> None:
        everyone = self._gather(facts)
        found = [
            f"{name} is {everyone[0].get(name)!r} on rank 0, {other.get(name)!r} on rank {rank}"
            for rank, other in enumerate(everyone)
            for name in other
            if other[name] != everyone[0].get(name)
        ]
        if found:
            more = f"; and {len(found) - 4} more" if len(found) > 4 else ""
            raise _C.ConfigError(
                f"the ranks do not train the same: {'; '.join(found[:4])}{more}. "
                "Start all of them with the same arguments, data and versions"
            )

    def _gather(self, value: Any) -> list[Any]:
        """The value that each rank gives, by rank."""
        values: list[Any] = [None] * self.world
        self._call(lambda: dist.all_gather_object(values, value, group=self._control))
        return values

    def _call(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except RuntimeError as error:
            raise _C.LostRankError(
                f"rank {self.rank} of {self.world} has lost touch with another: {error}"
            ) from error

    def _join(self) -> None:
        global _joined
        _joined += 1
        try:
            store, rank, world = next(rendezvous("env://", timeout=JOIN_TIMEOUT))
            self._owns_default = not dist.is_initialized()
            if self._owns_default:
                dist.init_process_group(
                    "gloo",
                    store=dist.PrefixStore(f"dmamba/{_joined}", store),
                    rank=rank,
                    world_size=world,
                    timeout=CONTROL_TIMEOUT,
                )
                self._control = dist.group.WORLD
            else:
                self._control = dist.new_group(backend="gloo", timeout=CONTROL_TIMEOUT)
                self._groups.append(self._control)
        except (RuntimeError, ValueError) as error:
            raise _C.LostRankError(
                f"rank {self.rank} of {self.world} could not join the others at "
                f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}: {error}"
            ) from error
        lives = dist.PrefixStore(f"dmamba/{_joined}/lives", store)
        self._watch = Watch(lives, self.rank, self.world)
        self._call(lambda: dist.barrier(group=self._control))
        self._watch.start()


def _device(choice: str, local_rank: int) -> str:
    """Chooses this rank's GPU, or the CPU: ``cuda`` or ``cpu``."""
    kind = _C.resolve_device(choice, "training.device").partition(":")[0]
    if kind == "cpu":
        return kind
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise _C.ConfigError(
            f"training.device: {choice}, but this machine shows {count} GPU"
            f"{'s' * (count != 1)} and has a rank {local_rank} of its own; start torchrun with "
            f"--nproc-per-node {count}, or use training.device=cpu"
        )
    torch.cuda.set_device(local_rank)
    return "cuda"


def facts_of(
    config: _C.Config, store: _C.TrajectoryStore | _C.FrameStore, device: str
) -> dict[str, Any]:
    """What has to be the same on every rank, by what it is.

    Args:
        config: Resolved; where its data lie may differ.
        store: Its data.
        device: Where this rank trains: ``cuda`` or ``cpu``.
    """
    from dmamba import __version__
    from dmamba.configuration import flatten

    facts: dict[str, Any] = {"the kind of device": device}
    facts |= {"dmamba's version": __version__, "torch's version": torch.__version__}
    facts |= flatten(config.to_dict())
    for key in ("dataset.path", "dataset.cache"):
        del facts[key]
    facts["the data's digest"] = digest(store)
    if device == "cpu":
        facts["the number of threads"] = config.training.threads or torch.get_num_threads()
        facts["the instruction set"] = _C.cpu_capability()
    return facts


def digest(store: _C.TrajectoryStore | _C.FrameStore) -> str:
    """SHA-256 of what batches are drawn from; of a game's frames only of some."""
    found = hashlib.sha256()
    found.update(np.ascontiguousarray(store.episode_lengths))
    if isinstance(store, _C.FrameStore):
        some = np.linspace(0, store.num_transitions - 1, 256).astype(np.int64)
        for array in (store.actions, store.rewards, store.frames[some]):
            found.update(np.ascontiguousarray(array))
    else:
        for index in range(store.num_episodes):
            episode = store.episode(index)
            for name in ("observations", "actions", "rewards"):
                found.update(episode[name])
    return found.hexdigest()[:16]
