"""How far the runs of a sweep are: a line per running run, and one over all.

Read from the run folders (config.yaml, metrics.csv), so it does not matter which process, on which
machine, trains there. On a terminal the lines are bars; elsewhere there is a line for each run that
has ended and at most one overall line a minute. In a notebook the bars are replaced in place.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm.std import tqdm

from dmamba import _C
from dmamba.display import notebook
from dmamba.engines.runner import STOPPED
from dmamba.runs import Run

TICK_SECONDS = 1.0
OVERALL_SECONDS = 60.0  # between two overall lines where there is no terminal
_TAIL_BYTES = 4096  # some rows of metrics.csv
_OBSERVATIONS = 20  # of the step, for the speed


@dataclass(frozen=True)
class State:
    """A running run.

    Attributes:
        name: Of its folder.
        step: Of its last row in metrics.csv.
        steps: Where it ends.
        loss: Of the last row.
        steps_per_s: None before the second row since it was first seen.
        eta: Seconds to the last step; the evaluation after it is not in it. None where unknown.
    """

    name: str
    step: int
    steps: int
    loss: float
    steps_per_s: float | None
    eta: float | None

    def line(self) -> str:
        """The state in a line."""
        text = f"{self.name}: step {self.step} of {self.steps}, loss {self.loss:.4f}"
        if self.step >= self.steps:
            return f"{text}, evaluating"
        if self.steps_per_s is None or self.eta is None:
            return text
        return f"{text}, {self.steps_per_s:.1f} steps/s, {duration(self.eta)} to go"


class Watch:
    """Follows one run by its files.

    Args:
        folder: The run's; need not exist yet.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._old = self._stamp()  # rows of an earlier process are no sign of life
        self._steps = 0
        self._seen: deque[tuple[float, int]] = deque(maxlen=_OBSERVATIONS)
        self.first_step = 0

    def state(self, now: float) -> State | None:
        """The run's state; None while it has not written a row.

        Args:
            now: Seconds on any clock that does not jump.
        """
        stamp = self._stamp()
        if stamp is None or stamp == self._old:
            return None
        row = _last_row(self.folder / "metrics.csv")
        if row is None:
            return None
        step, loss = row
        if not self._steps:
            try:
                self._steps = Run(self.folder).config.training.steps
            except _C.Error:
                return None  # not yet written, or just removed
        if not self._seen:
            self.first_step = step
        if not self._seen or step > self._seen[-1][1]:
            self._seen.append((now, step))
        speed = eta = None
        (since, first), (until, last) = self._seen[0], self._seen[-1]
        if until > since:
            speed = (last - first) / (until - since)
            eta = max(0.0, (self._steps - last) / speed - (now - until))
        return State(self.folder.name, step, self._steps, loss, speed, eta)

    def _stamp(self) -> tuple[int, int] | None:
        try:
            found = (self.folder / "metrics.csv").stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size


class SweepProgress:
    """The display of a sweep; a context manager that redraws once a second.

    Args:
        total: Runs in all.
        kept: Those that have finished before.
        enabled: False shows nothing but failures, on stderr.
        clock: Seconds.
        live: Whether to draw bars; None: on a terminal, or in a notebook.
    """

    def __init__(
        self,
        total: int,
        kept: int = 0,
        *,
        enabled: bool = True,
        clock: Callable[[], float] = time.monotonic,
        live: bool | None = None,
    ) -> None:
        self.total, self.done, self.failed = total, kept, 0
        self._kept, self._enabled, self._clock = kept, enabled, clock
        in_notebook = live is None and notebook.inside()
        self._live = in_notebook or (sys.stderr.isatty() if live is None else live)
        self._shown = notebook.Shown() if in_notebook else None
        self._started = self._last_line = clock()
        self._watches: dict[Path, Watch] = {}
        self._bars: dict[Path, Any] = {}
        self._overall: Any = None
        self._lock = threading.RLock()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> SweepProgress:
        if self._enabled:
            if self._live and self._shown is None:
                self._overall = _bar(0, self.total, "run")
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing.set()
        if self._thread is not None:
            self._thread.join()
        for shown in (*self._bars.values(), self._overall):
            if shown is not None:
                shown.close()
        if self._shown is not None and self._enabled:
            self._show(self._shown)

    def watch(self, folders: Iterable[Path]) -> None:
        """Runs that may begin from now on."""
        with self._lock:
            self._watches |= {folder: Watch(folder) for folder in folders}

    def ended(self, folder: Path, line: str, failure: str) -> None:
        """A run has come to its end.

        Args:
            folder: The run's.
            line: What came of it.
            failure: Empty where it has finished.
        """
        with self._lock:
            self._watches.pop(folder, None)
            self.done += not failure
            self.failed += bool(failure) and failure != STOPPED
            shown = self._bars.pop(folder, None)
            if shown is not None:
                shown.close()
            self.note(line, failure != "" and failure != STOPPED)
        self.tick()

    def skip(self, runs: int, line: str, failed: bool = False) -> None:
        """Runs that need not, or cannot, be done."""
        with self._lock:
            self.done += 0 if failed else runs
            self.failed += runs if failed else 0
            self.note(line, failed)

    def note(self, line: str, failed: bool) -> None:
        """A line that stays; of a failure also where nothing else is shown."""
        if self._enabled:
            tqdm.write(line)
            sys.stdout.flush()
        elif failed:
            print(line, file=sys.stderr, flush=True)

    def states(self) -> list[State]:
        """The runs that are running."""
        with self._lock:
            found = [watch.state(self._clock()) for watch in self._watches.values()]
        return [state for state in found if state is not None]

    def overall(self) -> str:
        """The line over all runs."""
        with self._lock:
            running = len(self.states())
            left = max(0, self.total - self.done - self.failed - running)
            text = f"{self.done} done, {self.failed} failed, {running} running, {left} left"
            eta = self._eta()
        return text if eta is None else f"{text}, {duration(eta)} to go"

    def tick(self) -> None:
        """Redraws, or writes the overall line if it is due."""
        if not self._enabled:
            return
        with self._lock:
            if self._shown is not None:
                self._show(self._shown)
            elif self._live:
                self._draw()
            elif self._clock() - self._last_line >= OVERALL_SECONDS:
                self._last_line = self._clock()
                print(f"sweep: {self.overall()}", flush=True)

    def _run(self) -> None:
        while not self._closing.wait(TICK_SECONDS):
            self.tick()

    def _eta(self) -> float | None:
        """From the share of the work that has been done since the sweep was started."""
        now = self._clock()
        done, rest = float(self.done + self.failed - self._kept), float(self.total)
        rest -= self.done + self.failed
        for watch in self._watches.values():
            state = watch.state(now)
            if state is not None:
                done += (state.step - watch.first_step) / state.steps
                rest -= state.step / state.steps
        elapsed = now - self._started
        return elapsed * max(0.0, rest) / done if done > 0 and elapsed > 0 else None

    def _show(self, shown: notebook.Shown) -> None:
        lines: list[tuple[float, float, str]] = [
            (self.done + self.failed, self.total, self.overall()),
            *((state.step, state.steps, state.line()) for state in self.states()),
        ]
        shown.replace("\n".join(text for _, _, text in lines), notebook.bars(lines))

    def _draw(self) -> None:
        if self._overall is None:
            return
        for folder, watch in self._watches.items():
            state = watch.state(self._clock())
            if state is None:
                continue
            if folder not in self._bars:
                taken = {-shown.pos for shown in self._bars.values()}
                place = next(row for row in range(1, len(taken) + 2) if row not in taken)
                self._bars[folder] = _bar(place, state.steps, "step")
            shown = self._bars[folder]
            shown.n = state.step
            shown.set_description_str(state.line(), refresh=False)
            shown.refresh()
        self._overall.n = self.done + self.failed
        self._overall.set_description_str(self.overall(), refresh=False)
        self._overall.refresh()


def duration(seconds: float) -> str:
    """``1:02:03``, or ``2:03`` under an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _bar(position: int, total: int, unit: str) -> Any:
    return tqdm(
        total=total,
        position=position,
        unit=unit,
        leave=False,
        dynamic_ncols=True,
        bar_format="{percentage:3.0f}%|{bar:12}| {desc}",
    )


def _last_row(path: Path) -> tuple[int, float] | None:
    """Step and loss of the last whole row; None where there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return None
    lines = text[: text.rfind("\n") + 1].splitlines()
    cells = lines[-1].split(",") if lines else []
    try:
        return int(cells[0]), float(cells[1])
    except (ValueError, IndexError):  # the header, or another file
        return None
