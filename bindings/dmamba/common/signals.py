"""SIGINT and SIGTERM, noted for whoever can stop at a better moment than now."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, TypeVar

_Noted = TypeVar("_Noted", bound="NotedSignals")


class Interrupted(KeyboardInterrupt):
    """A run was stopped by a signal, and can be resumed.

    Attributes:
        signum: The signal's number.
        folder: The run's folder.
    """

    def __init__(self, signum: int, folder: Path) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum
        self.folder = folder


class NotedSignals:
    """While it is entered, SIGINT and SIGTERM do nothing but what :meth:`on_signal` says.

    Attributes:
        received: The last signal's number; 0: none has come.
    """

    def __init__(self) -> None:
        self.received = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self: _Noted) -> _Noted:
        if threading.current_thread() is threading.main_thread():  # Python allows it there only
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._previous[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def on_signal(self) -> None:
        """Called in the handler."""

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.received = signum
        self.on_signal()


class StopSignals(NotedSignals):
    """While it is entered, SIGINT and SIGTERM are noted, and raised where a run can stop.

    Args:
        folder: The run's.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def check(self) -> None:
        """Raises Interrupted if a signal has come."""
        self.stop_at(self.received)

    def stop_at(self, signum: int) -> None:
        """Raises Interrupted if there is such a signal."""
        if signum:
            raise Interrupted(signum, self.folder)
