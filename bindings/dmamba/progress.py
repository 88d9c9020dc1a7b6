"""The progress bar: a live line on a terminal or in a notebook, a rare line in a log file."""

from __future__ import annotations

import sys
from typing import Any

from tqdm.auto import tqdm


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

    Args:
        total: Where the bar ends, in ``unit``.
        description: What is going on.
        unit: What is counted.
        initial: Where it starts, for a run that continues.
        enabled: False gives a bar that shows nothing.
        scale: Whether to write 12.3M for 12,300,000.
    """
    live = sys.stderr.isatty() or "ipykernel" in sys.modules
    return tqdm(
        total=total,
        initial=initial,
        desc=description,
        unit=unit,
        unit_scale=scale,
        disable=not enabled,
        dynamic_ncols=live,
        mininterval=0.2 if live else 10.0,
        maxinterval=1.0 if live else 10.0,
        smoothing=0.1,
    )


def note(text: str, *, enabled: bool = True) -> None:
    """Writes a line, above the bars that are being drawn."""
    if enabled:
        tqdm.write(text)
