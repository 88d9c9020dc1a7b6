"""Runs a function in a forked child: imports are done, and a kill hits nothing but the child."""

from __future__ import annotations

import json
import os
import select
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from faults import Fault, Seen, read_state

HANGS_SECONDS = 240.0


@dataclass(frozen=True)
class Outcome:
    """How a child has ended.

    Attributes:
        signal: What killed it; 0 where it ended by itself.
        error: Type and text of the exception that ended it; empty after its end.
        expected: Whether the exception is one that users are shown as one line.
        seconds: How long it lived.
        seen: What the faults have done.
        output: The end of what it printed.
        hung: Whether it had to be killed because it did not end.
    """

    signal: int
    error: str
    expected: bool
    seconds: float
    seen: Seen
    output: str
    hung: bool

    @property
    def done(self) -> bool:
        """Whether it has come to its end."""
        return not (self.signal or self.error or self.hung)


def run(
    function: Callable[[], None],
    scratch: Path,
    watch: Path,
    *,
    fault: Fault | None = None,
    trace: Path | None = None,
    after: float | None = None,
    group: bool = False,
    first: int = 0,
) -> Outcome:
    """Runs a function in a child, and waits for its end.

    Args:
        function: What the child does.
        scratch: A folder for what the child says; not watched.
        watch: The folder whose calls are counted.
        fault: What happens there.
        trace: As for :meth:`Fault.arm`.
        after: Seconds after which the child is killed.
        group: Whether the processes that it has started are killed with it.
        first: A signal that is sent then; the kill follows a tenth of a second later.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    state, said, output = (scratch / name for name in ("state", "said.json", "output"))
    for path in (state, said, output):
        path.unlink(missing_ok=True)
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _child(function, fault or Fault(), watch, state, trace, said, output)
    hung = False
    descriptor = os.pidfd_open(pid)
    try:
        if after is not None and not _ends(descriptor, after):
            if first:
                os.kill(pid, first)
                _ends(descriptor, 0.1)
            (os.killpg if group else os.kill)(pid, signal.SIGKILL)
        if not _ends(descriptor, HANGS_SECONDS):
            hung = True
            os.killpg(pid, signal.SIGKILL)
    finally:
        os.close(descriptor)
    _, status = os.waitpid(pid, 0)
    try:
        told = json.loads(said.read_text())
    except (FileNotFoundError, ValueError):  # killed before or while it was written
        told = {"error": "", "expected": False}
    return Outcome(
        signal=os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0,
        seconds=time.monotonic() - started,
        seen=read_state(state),
        output=output.read_text(errors="replace")[-3000:] if output.exists() else "",
        hung=hung,
        **told,
    )


def _ends(descriptor: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def _child(
    function: Callable[[], None],
    fault: Fault,
    watch: Path,
    state: Path,
    trace: Path | None,
    said: Path,
    output: Path,
) -> None:
    """Does not return."""
    import dmamba

    told = {"error": "", "expected": True}
    try:
        os.setsid()
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        fault.arm(watch, state, trace)
        function()
    except (dmamba.Error, OSError, KeyboardInterrupt) as error:
        traceback.print_exc()
        told = {"error": f"{type(error).__name__}: {error}", "expected": True}
    except BaseException as error:
        traceback.print_exc()
        told = {"error": f"{type(error).__name__}: {error}", "expected": False}
    finally:
        said.write_text(json.dumps(told))
        os._exit(0 if not told["error"] else 1)
