"""Signs of life of processes that work together: that one of them is gone is noticed, and said."""

from __future__ import annotations

import os
import sys
import threading
import time

import torch.distributed as dist

BEAT_SECONDS = 0.5
SILENT_SECONDS = 3.0  # without a sign of life, once something has gone wrong
LOST_SECONDS = 10.0  # without one while all seems well; torchrun kills 30 s after a rank's death
GRACE_SECONDS = 10.0  # for the main thread to find its own way out


class Watch:
    """Each rank counts in a store, and looks whether the others go on counting.

    A rank that was killed closes its connections, which gloo notices at once; but NCCL, and a rank
    whose machine has gone, may leave the others waiting in a call that nothing ends. Then this
    thread ends the process.

    Args:
        store: What every rank can reach, and that outlives each of them.
        rank: This process's number.
        world: How many there are.
    """

    def __init__(self, store: dist.Store, rank: int, world: int) -> None:
        self.rank, self.world = rank, world
        # A connection for each thread: a call that waits holds its connection.
        self._store, self._words = store.clone(), store
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="dmamba-ranks", daemon=True)
        self._store.set(f"{rank}", "0")

    def start(self) -> None:
        """Begins to look; every rank must have made its watch."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the signs of life."""
        self._stopping.set()
        self._thread.join(GRACE_SECONDS)

    def leave_word(self, message: str) -> None:
        """Tells the others why this rank ends; the first word counts."""
        try:
            if not self._words.check(["word"]):
                self._words.set("word", f"rank {self.rank} of {self.world} has ended: {message}")
        except RuntimeError:  # the store is gone, and with it who would read
            pass

    def explain(self) -> str:
        """Waits until somebody has told why it ended, or has been silent for long enough."""
        beats = _Beats(self._words, [r for r in range(self.world) if r != self.rank])
        deadline = time.monotonic() + 2 * SILENT_SECONDS
        try:
            while time.monotonic() < deadline:
                if self._words.check(["word"]):
                    return self._words.get("word").decode()
                silent = beats.silent(SILENT_SECONDS)
                if silent:
                    return _names(silent, self.world)
                time.sleep(BEAT_SECONDS)
        except RuntimeError as error:
            return f"rank {self.rank} of {self.world}: torchrun's store does not answer: {error}"
        return ""

    def _run(self) -> None:
        # Rank 0 looks after all, the others after rank 0: what the store has to bear stays small.
        others = range(1, self.world) if self.rank == 0 else range(1)
        beats = _Beats(self._store, list(others))
        count, message = 0, ""
        while not message and not self._stopping.wait(BEAT_SECONDS):
            count += 1
            try:
                self._store.set(f"{self.rank}", f"{count}")
                silent = beats.silent(LOST_SECONDS)
                if silent and not self._store.check(["word"]):
                    self._store.set("word", _names(silent, self.world))
                if self._store.check(["word"]):
                    message = self._store.get("word").decode()
            except RuntimeError as error:
                message = f"rank {self.rank}: torchrun's store does not answer: {error}"
        if not message or self._stopping.wait(GRACE_SECONDS):
            return
        sys.stderr.write(
            f"dmamba: error: {message}; rank {self.rank} waits for it in vain and ends. Continue "
            "from the last checkpoint with --resume\n"
        )
        sys.stderr.flush()
        os._exit(2)


class _Beats:
    """When each of some ranks was last seen to count on."""

    def __init__(self, store: dist.Store, ranks: list[int]) -> None:
        self._store, self._ranks = store, ranks
        self._seen = {rank: (b"", time.monotonic()) for rank in ranks}

    def silent(self, seconds: float) -> list[int]:
        """The ranks that have not counted for so long."""
        now = time.monotonic()
        values = self._store.multi_get([f"{rank}" for rank in self._ranks])
        for rank, value in zip(self._ranks, values, strict=True):
            if value != self._seen[rank][0]:
                self._seen[rank] = (value, now)
        return [rank for rank, (_, since) in self._seen.items() if now - since > seconds]


def _names(ranks: list[int], world: int) -> str:
    who = f"rank {ranks[0]}" if len(ranks) == 1 else "ranks " + ", ".join(map(str, ranks))
    verb = "is" if len(ranks) == 1 else "are"
    return f"{who} of {world} {verb} lost: killed, or on a machine that does not answer"
