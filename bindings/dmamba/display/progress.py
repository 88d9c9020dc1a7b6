"""The progress bar: live on a terminal and in a notebook, a rare line in a log file.

In a notebook the bar is tqdm's widget where ipywidgets is installed, else a line that is replaced.
"""

from __future__ import annotations

import io
import sys
import weakref
from typing import Any

from tqdm.std import tqdm

from dmamba.display import notebook

_open: weakref.WeakSet[Any] = weakref.WeakSet()  # bars of notebooks


def bar(
    total: int,
    description: str,
    unit: str,
    *,
    initial: int = 0,
    enabled: bool = True,
    scale: bool = False,
) -> Any:
    """A tqdm bar that does not flood a log file.

    In a notebook a bar that is drawn while another one is goes when it has ended.

    Args:
        total: Where the bar ends, in ``unit``.
        description: What is going on.
        unit: What is counted.
        initial: Where it starts, for a run that continues.
        enabled: False gives a bar that shows nothing.
        scale: Whether to write 12.3M for 12,300,000.
    """
    in_notebook = notebook.inside()
    live = sys.stderr.isatty() or in_notebook
    kind = _notebook_bar() if in_notebook and enabled else tqdm
    leaves = not any(not shown.disable for shown in _open)  # tqdm disables a closed one
    shown = kind(
        total=total,
        initial=initial,
        desc=description,
        unit=unit,
        unit_scale=scale,
        disable=not enabled,
        leave=leaves,
        dynamic_ncols=live,
        mininterval=0.2 if live else 10.0,
        maxinterval=1.0 if live else 10.0,
        smoothing=0.1,
    )
    if in_notebook:
        _open.add(shown)
    return shown


def _notebook_bar() -> type[Any]:
    from tqdm import notebook as widgets  # slow to import where ipywidgets is installed

    return Line if widgets.IProgress is None else widgets.tqdm


class Line(tqdm):  # type: ignore[type-arg]
    """A bar in a notebook without ipywidgets; arguments as of tqdm."""

    def __init__(self, **options: Any) -> None:
        self._shown = notebook.Shown()
        # The file takes what tqdm writes around its bars: the ends of lines.
        super().__init__(file=io.StringIO(), **{**options, "dynamic_ncols": False, "ncols": 100})

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Shows the state of the bar; an empty ``msg`` removes it."""
        if msg == "":
            self._shown.replace("", "")
            return True
        state = self.format_dict
        beside = "{l_bar}{n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
        html = notebook.bars(
            [(self.n, self.total, self.format_meter(**{**state, "bar_format": beside}))]
        )
        self._shown.replace(self.format_meter(**state), html)
        return True

    def clear(self, nolock: bool = False) -> None:
        """Nothing to clear: the line is replaced."""


def note(text: str, *, enabled: bool = True) -> None:
    """Writes a line, above the bars that are being drawn."""
    if enabled:
        tqdm.write(text)


class ReadingBar:
    """A bar that learns its total with the first update; without one, as of what is cached, none.

    Args:
        description: What is read.
        enabled: Whether to show anything.
    """

    def __init__(self, description: str, enabled: bool) -> None:
        self._description, self._enabled = description, enabled
        self._bar: Any = None

    def __enter__(self) -> ReadingBar:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, done: int, total: int) -> None:
        """Shows ``done`` of ``total`` bytes; nothing while the total is 0, not known yet."""
        if total == 0:
            return
        if self._bar is None:
            self._bar = bar(total, self._description, "B", enabled=self._enabled, scale=True)
        self._bar.update(done - self._bar.n)
