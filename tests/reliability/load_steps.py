"""A long training of a tiny model: memory, files and threads have to stay as they are.

A million steps are what a day of a small model's training takes. It is a run as any other: rows of
metrics, TensorBoard, checkpoints of which two are kept; without evaluations, which would be
other processes' memory. Samples are taken where a row is logged, in the thread that trains.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from measures import complaints, gpu, host, table

import dmamba

# A step of this model is the cost of its operators' calls, hardly that of their arithmetic.
MODEL = {"d_model": 8, "n_layer": 1, "context_length": 2, "d_state": 4}
BATCH_SIZE = 2
EPISODES, LENGTH, STATE_DIM, ACT_DIM = 40, 50, 3, 1
SAMPLES = 400  # about, in a run
ROW_BYTES = 120  # the most that a row of metrics may take, and four of its scalars in TensorBoard
EVENT_BYTES = 400


class Samples(dmamba.training.callbacks.Callback):
    """Measures at some of the rows of metrics."""

    def __init__(self, every: int, cuda: bool) -> None:
        self.every, self.cuda = every, cuda
        self.names = tuple(self._measure())
        self.count = 0
        self._rows = np.full((2 * SAMPLES, 1 + len(self.names)), -1)  # now: it must not grow later
        self._started = time.perf_counter()

    def _measure(self) -> dict[str, int]:
        return host() | (gpu() if self.cuda else {})

    def on_log(self, run: dmamba.Run, row: dict[str, Any]) -> None:
        """Takes a sample now and then."""
        step = int(row["step"])
        if step % self.every:
            return
        measured = self._measure()
        self._rows[self.count] = (step, *measured.values())
        self.count += 1
        if self.count % (SAMPLES // 20) == 0:
            rate = step / (time.perf_counter() - self._started)
            print(
                f"  step {step:,}: {rate:,.0f} steps/s, rss {measured['rss']:,} bytes, "
                f"anonymous {measured['anonymous']:,}",
                flush=True,
            )

    def after(self, step: int) -> list[dict[str, int]]:
        """The samples of later steps."""
        rows = self._rows[: self.count]
        return [
            dict(zip(self.names, map(int, row[1:]), strict=True)) for row in rows if row[0] > step
        ]


def dataset() -> Any:
    """Random walks."""
    rng = np.random.default_rng(0)
    rows = EPISODES * LENGTH
    ends = np.arange(rows) % LENGTH == LENGTH - 1
    return dmamba.data.from_arrays(
        rng.standard_normal((rows, STATE_DIM)),
        rng.uniform(-1, 1, (rows, ACT_DIM)),
        rng.uniform(0, 1, rows),
        np.zeros(rows, bool),
        ends,
        name="walks",
    )


def file_growth(folder: Path, steps: int, log_every: int) -> list[str]:
    """Complaints about files that have grown more than their rows say."""
    rows = steps // log_every
    found = []
    metrics = (folder / "metrics.csv").stat().st_size
    events = sum(path.stat().st_size for path in folder.glob("events.*"))
    print(f"metrics.csv {metrics / rows:.1f} bytes a row, TensorBoard {events / rows:.1f}")
    if metrics > ROW_BYTES * (rows + 1):
        found.append(f"metrics.csv: {metrics:,} bytes for {rows:,} rows")
    if events > EVENT_BYTES * (rows + 1):
        found.append(f"TensorBoard's file: {events:,} bytes for {rows:,} rows")
    if len(list((folder / "checkpoints").iterdir())) != 2:
        found.append(f"{folder / 'checkpoints'}: two must be kept")
    return found


def run(steps: int, device: str, warm_up: int, share: float) -> int:
    """Trains, compares what was measured after the warm-up; the exit status."""
    log_every = min(100, max(1, steps // 100))
    every = max(1, steps // SAMPLES // log_every) * log_every
    config = {
        "name": "load",
        "model": MODEL,
        "training": {
            "steps": steps,
            "batch_size": BATCH_SIZE,
            "log_every": log_every,
            "checkpoint_every": max(1, steps // 50),
            "threads": 1,
            "device": device,
        },
    }
    samples = Samples(every, device == "cuda")
    folder = Path(tempfile.mkdtemp(prefix="dmamba-load-"))
    try:
        print(f"{steps:,} steps on {device}, in {folder}", flush=True)
        trained = dmamba.train(
            config,
            dataset=dataset(),
            output=folder / "run",
            callbacks=[samples],
            progress=False,
            evaluate=False,
        )
        seconds = trained.summary()["times"]["training_seconds"]
        found = file_growth(folder / "run", steps, log_every)
    finally:
        shutil.rmtree(folder)
    kept = samples.after(warm_up)
    print(f"{seconds:.0f} s, {steps / seconds:,.0f} steps/s; {len(kept)} samples after {warm_up:,}")
    print(table(kept))
    found += complaints(kept, share)
    for line in found:
        print(f"FAILED {line}")
    print("constant" if not found else f"{len(found)} complaints")
    return 1 if found else 0
