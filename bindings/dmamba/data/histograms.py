"""Histograms of a dataset's returns and lengths: their bins, and as text for a terminal.

Bins follow Freedman and Diaconis (1981), a width of 2 IQR n^(-1/3), or the square root of n where
that gives more.
"""

from __future__ import annotations

import math
import shutil
import sys
from typing import Any

import numpy as np

from dmamba import _C

MOST_BINS = 40
FEW_INTEGERS = 20  # so many get a bin each
HEIGHT, WIDEST_BAR = 5, 6  # lines and columns
_EIGHTHS = " ▁▂▃▄▅▆▇█"
_GAP = 4  # between two histograms side by side


def of_episodes(store: _C.EpisodeStore) -> dict[str, dict[str, Any]]:
    """Of a dataset's ``return`` and ``length``, by these names."""
    return {
        "return": histogram(store.episode_returns),
        "length": histogram(store.episode_lengths),
    }


def histogram(values: np.ndarray) -> dict[str, Any]:
    """Counts values in bins of equal width.

    Args:
        values: (n,) finite, at least one. Bins of integers hold the same number of integers each.

    Returns:
        ``edges`` (bins + 1), ascending, ``counts`` (bins), and the least and greatest value as
        ``min`` and ``max``. The last bin holds its upper edge, too; of integers no bin does.

    Example:
        >>> histogram(np.array([1, 1, 2, 4]))
        {'edges': [1, 2, 3, 4, 5], 'counts': [2, 1, 0, 1], 'min': 1, 'max': 4}
    """
    low, high, bins = values.min(), values.max(), _number_of_bins(values)
    if np.issubdtype(values.dtype, np.integer):
        width = -(-(int(high) - int(low) + 1) // bins)
        edges: np.ndarray = np.arange(int(low), int(high) + width + 1, width)
    elif low == high:
        margin = 0.5 * max(abs(float(low)), 1.0) * 1e-3
        edges = np.array([low - margin, high + margin])
    else:
        edges = np.linspace(low, high, bins + 1)
    counts, _ = np.histogram(values, edges)
    return {
        "edges": edges.tolist(),
        "counts": counts.tolist(),
        "min": low.item(),
        "max": high.item(),
    }


def format_histograms(
    histograms: dict[str, dict[str, Any]],
    *,
    what: str = "episodes",
    width: int = 0,
    blocks: bool | None = None,
) -> str:
    """Draws histograms with characters, side by side where there is room.

    Args:
        histograms: What :func:`histogram` gives, by the name of what was measured.
        what: Whose measure it is.
        width: Columns; 0: the terminal's.
        blocks: Whether to draw with Unicode's blocks; False: with ``#``; None: as standard output
            can show.
    """
    width = width or shutil.get_terminal_size().columns
    blocks = _shows_blocks() if blocks is None else blocks
    half = (width - 2 - _GAP) // 2
    titles = [f"{what} by {name}" for name in histograms]
    found = list(histograms.values())
    drawn = [_draw(*one, half, blocks) for one in zip(titles, found, strict=True)]
    if any(len(line) > half for lines in drawn for line in lines) or half < 30:
        drawn = [_draw(*one, width - 2, blocks) for one in zip(titles, found, strict=True)]
        return "\n\n".join("\n".join(f"  {line}".rstrip() for line in lines) for lines in drawn)
    rows = zip(*drawn, strict=True)
    return "\n".join(
        "  " + (" " * _GAP).join(part.ljust(half) for part in row).rstrip() for row in rows
    )


def _number_of_bins(values: np.ndarray) -> int:
    span = float(values.max()) - float(values.min())
    low, high = np.percentile(values, (25, 75))
    width = 2.0 * float(high - low) * len(values) ** (-1 / 3)
    wanted = math.ceil(math.sqrt(len(values)))
    if np.issubdtype(values.dtype, np.integer) and span < FEW_INTEGERS:
        wanted = int(span) + 1
    elif width > 0:
        wanted = max(wanted, math.ceil(min(span / width, MOST_BINS)))
    return min(wanted, MOST_BINS)


def _shows_blocks() -> bool:
    try:
        (_EIGHTHS + "│└─").encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _draw(title: str, found: dict[str, Any], width: int, blocks: bool) -> list[str]:
    """Lines of one histogram: its title, its bars, its axis, the numbers at the axis' ends."""
    counts = np.array(found["counts"])
    top = f"{counts.max():,}"
    margin = len(top) + 2
    counts = _merged(counts, max(1, width - margin))
    column = max(1, min(WIDEST_BAR, min(width - margin, 48) // len(counts)))
    top = f"{counts.max():,}"
    side, corner, floor = ("│", "└", "─") if blocks else ("|", "+", "-")
    lines = [title]
    for level in range(HEIGHT, 0, -1):
        bar = "".join(_cell(count / counts.max(), level, blocks) * column for count in counts)
        label = top if level == HEIGHT else ""
        lines.append(f"{label.rjust(margin - 2)} {side}{bar}")
    bars = column * len(counts)
    lines.append(f"{'0'.rjust(margin - 2)} {corner}{floor * bars}")
    lines.append(" " * margin + _ends(found, bars))
    return lines


def _cell(share: float, level: int, blocks: bool) -> str:
    """What a bar of ``share`` of the greatest height shows on a line, 1 the lowest.

    No bar that counts anything is invisible.
    """
    filled = share * HEIGHT - (level - 1)
    if blocks:
        eighths = min(8, max(0, round(8 * filled)))
        return _EIGHTHS[max(eighths, 1 if level == 1 and share > 0 else 0)]
    return "#" if filled >= 0.5 or (level == 1 and share > 0) else " "


def _merged(counts: np.ndarray, most: int) -> np.ndarray:
    """Neighbouring bins added up, so that there are at most so many."""
    together = -(-len(counts) // most)
    padded = np.pad(counts, (0, -len(counts) % together))
    return padded.reshape(-1, together).sum(1)


def _ends(found: dict[str, Any], width: int) -> str:
    """The least and the greatest value, to the left and to the right."""
    low, high = (
        f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"
        for value in (found["min"], found["max"])
    )
    return low if low == high else low + " " * max(2, width - len(low) - len(high)) + high
