"""SVG figures that stand in a page: same bytes for the same data, readable on light and dark.

Text and axes are drawn in one colour that the page replaces by its own text colour; the series'
colours are Okabe and Ito's (2008), which people with any common colour vision tell apart, without
their yellow and black, which vanish on white and on dark ground.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
STYLES = ("-", "--", ":", "-.")
GREY = "#808080"
_INK, _PAPER = "#1a1b1c", "#fefefd"  # no series has them, so they can be found and replaced
_SIZE = (5.8, 3.9)  # inches: a phone's 360 px leave 11 pt letters 9 px
_INKED = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
_SETTINGS: dict[str, Any] = {
    "svg.hashsalt": "dmamba",
    "svg.fonttype": "path",  # the reader's machine may not have the font
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 11.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": _PAPER,
    "axes.facecolor": _PAPER,
    "legend.framealpha": 0.0,
    "legend.fontsize": 10.0,
    "legend.title_fontsize": 10.0,
    "legend.handlelength": 2.4,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GREY,
    "grid.alpha": 0.25,
    **dict.fromkeys(_INKED, _INK),
}


@dataclass(frozen=True)
class Figure:
    """A picture.

    Attributes:
        name: For its file: letters, digits and dashes.
        caption: What is drawn, and what bars and bands are.
        alt: The same with the numbers, for those who don't see it.
        svg: A file of its own, on white.
    """

    name: str
    caption: str
    alt: str
    svg: str

    def inline(self, prefix: str) -> str:
        """The ``<svg>`` element for an HTML page.

        Args:
            prefix: Of its ids, which must differ from those of other figures of the page.
        """
        svg = self.svg[self.svg.index("<svg") :]
        svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.S)
        svg = svg.replace(_PAPER, "none").replace(_INK, "currentColor")
        svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
        svg = re.sub(r'(href="#|url\(#)', rf"\1{prefix}-", svg)
        return re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r' height="[\d.]+pt"', "", svg))


class Canvas:
    """A figure with one pair of axes, ``axes``; a context manager around matplotlib's settings.

    Args:
        height: Inches; None: the usual one.
    """

    axes: Axes

    def __init__(self, height: float | None = None) -> None:
        self._height = height or _SIZE[1]

    def __enter__(self) -> Canvas:
        import matplotlib
        from matplotlib.figure import Figure as MatplotlibFigure

        self._context = matplotlib.rc_context()
        self._context.__enter__()
        matplotlib.rcdefaults()  # not what a user's matplotlibrc says
        matplotlib.rcParams.update(_SETTINGS)
        self._figure = MatplotlibFigure(figsize=(_SIZE[0], self._height), layout="constrained")
        self.axes = self._figure.subplots()
        return self

    def __exit__(self, *exception: object) -> None:
        self._context.__exit__(None, None, None)

    def legend(self, title: str, labels: Sequence[str]) -> None:
        """A legend above the axes, where it hides nothing.

        Args:
            title: What the labels are values of.
            labels: Of the entries, which say how many fit beside each other.
        """
        columns = max(1, min(len(labels), 44 // (6 + max(map(len, labels)))))
        self._figure.legend(loc="outside upper left", ncols=columns, title=title, alignment="left")

    def finish(self, name: str, caption: str, alt: str) -> Figure:
        """The figure; call it inside of the context."""
        text = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        self._figure.savefig(text, format="svg", metadata=nothing)
        svg = re.sub(r"<!--.*?-->\s*", "", text.getvalue(), flags=re.S)
        return Figure(name, caption, alt, "\n".join(map(str.rstrip, svg.splitlines())) + "\n")


def plain(text: str, length: int = 60) -> str:
    """A text as matplotlib draws it letter by letter: no formulas, and not endless."""
    text = text if len(text) <= length else text[: length - 1] + "…"
    return text.replace("\\", "/").replace("$", r"\$")


def errors_of(means: Sequence[float], intervals: Sequence[Any]) -> np.ndarray:
    """(2, n) distances from means to the ends of their intervals; 0 where there is none."""
    pairs = [
        (0.0, 0.0) if found is None else (max(0.0, mean - found[0]), max(0.0, found[1] - mean))
        for mean, found in zip(means, intervals, strict=True)
    ]
    return np.array(pairs, dtype=float).T


def scale_axis(axes: Axes, values: Sequence[float]) -> None:
    """An axis of a setting's values, which are its ticks; logarithmic where they lie far apart."""
    low, high = min(values), max(values)
    if low > 0 and high / low > 8:
        axes.set_xscale("log")
        axes.set_xlim(low / 1.3, high * 1.3)
    else:
        margin = 0.1 * (high - low) or 0.1 * abs(low) or 1.0
        axes.set_xlim(low - margin, high + margin)
    axes.set_xticks(values, [f"{value:g}" for value in values])
    axes.minorticks_off()
