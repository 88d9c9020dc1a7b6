"""What a Jupyter notebook shows: tables, and lines that are replaced in place.

IPython is imported inside of a kernel only. Output goes through its display messages, which every
front end and exported notebooks show, with ipywidgets or without.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from html import escape
from typing import Any

_FIGURES = "font-variant-numeric:tabular-nums"  # digits of one width, so that nothing jumps


def inside() -> bool:
    """Whether this process is a Jupyter kernel, so that what it shows stands in a notebook."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None


class Shown:
    """A piece of a cell's output that is replaced in place; call it inside of a kernel."""

    def __init__(self) -> None:
        self._handle: Any = None

    def replace(self, text: str, html: str) -> None:
        """Shows this, the first time below what the cell has shown so far.

        Args:
            text: For front ends without HTML.
            html: The same as HTML.
        """
        from IPython.display import DisplayHandle

        content = {"text/plain": text, "text/html": html}
        if self._handle is None:
            self._handle = DisplayHandle()
            self._handle.display(content, raw=True)
        else:
            self._handle.update(content, raw=True)


def bars(rows: Sequence[tuple[float, float, str]]) -> str:
    """HTML of progress bars, a line each.

    Args:
        rows: How far, of how much, and what is said beside the bar.
    """
    style = "width:12em;vertical-align:middle"
    lines = [
        f'<div><progress value="{done:g}" max="{total:g}" style="{style}"></progress> '
        f"{escape(text)}</div>"
        for done, total, text in rows
    ]
    return f'<div style="white-space:nowrap;overflow-x:auto;{_FIGURES}">{"".join(lines)}</div>'


def table(heading: Sequence[str], rows: Sequence[Sequence[str]], note: str = "") -> str:
    """HTML of a table: the first column to the left, the others to the right.

    Args:
        heading: Lines above it, the first one in bold.
        rows: Cells, header first; empty: no table.
        note: A line below it.
    """
    parts = [
        f"<div>{f'<b>{escape(line)}</b>' if place == 0 else escape(line)}</div>"
        for place, line in enumerate(heading)
    ]
    if rows:
        header, *body = ("".join(map(_cell, row, range(len(row)))) for row in rows)
        header = header.replace("<td", "<th").replace("</td>", "</th>")
        lines = "".join(f"<tr>{cells}</tr>" for cells in body)
        parts.append(
            f'<table style="{_FIGURES}"><thead><tr>{header}</tr></thead><tbody>{lines}</tbody>'
            "</table>"
        )
    if note:
        parts.append(f'<div style="opacity:0.7;font-size:90%">{escape(note)}</div>')
    return f"<div>{''.join(parts)}</div>"


def _cell(text: str, column: int) -> str:
    return f'<td style="text-align:{"right" if column else "left"}">{escape(text)}</td>'
