"""What a terminal can show: how wide it is, and whether it takes colours.

Nothing here changes what goes to a file or through a pipe, unless the environment says so:
``COLUMNS`` names a width, ``FORCE_COLOR`` or ``CLICOLOR_FORCE`` ask for colours. ``NO_COLOR``
(no-color.org), ``CLICOLOR=0`` and ``TERM=dumb`` mean none.
"""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import TextIO

MIN_WIDTH = 20  # a claim of less is taken for this
_STYLES = {"bold": "1", "red": "31", "green": "32", "yellow": "33"}


def width(stream: TextIO | None = None) -> int | None:
    """The columns that lines should keep to; None where nothing limits them.

    Args:
        stream: Where the lines go; None: stdout.
    """
    named = os.environ.get("COLUMNS", "")
    if named.isdecimal() and int(named) > 0:
        return max(MIN_WIDTH, int(named))
    stream = sys.stdout if stream is None else stream
    try:
        return max(MIN_WIDTH, os.get_terminal_size(stream.fileno()).columns)
    except (OSError, ValueError, AttributeError):  # no terminal, closed, or not a file at all
        return None


def coloured(stream: TextIO) -> bool:
    """Whether colours belong on a stream."""
    if os.environ.get("NO_COLOR"):
        return False
    asked = (os.environ.get(name, "") for name in ("FORCE_COLOR", "CLICOLOR_FORCE"))
    if any(value not in ("", "0") for value in asked):
        return True
    if os.environ.get("CLICOLOR") == "0" or os.environ.get("TERM") == "dumb":
        return False
    return stream.isatty()


def paint(text: str, stream: TextIO, *styles: str) -> str:
    """The text in bold, red, green or yellow, where the stream takes colours."""
    if not coloured(stream):
        return text
    return f"\033[{';'.join(_STYLES[style] for style in styles)}m{text}\033[0m"


def column_groups(widths: Sequence[int], limit: int | None) -> list[list[int]]:
    """Which columns of a table stand beside each other, so that no line is wider than the limit.

    Args:
        widths: Of the columns, what is between them included.
        limit: Of a line; None: there is none.

    Returns:
        Indices of columns; each group begins with the first column, and has at least one other
        where there is one.
    """
    columns = range(1, len(widths))
    if limit is None or sum(widths) <= limit or len(widths) < 2:
        return [[0, *columns]]
    groups: list[list[int]] = []
    for column in columns:
        if groups and sum(widths[i] for i in groups[-1]) + widths[column] <= limit:
            groups[-1].append(column)
        else:
            groups.append([0, column])
    return groups


def format_facts(facts: Mapping[str, str], indent: str = "") -> str:
    """A line a fact, its name to the left; what is too long goes on below its beginning."""
    longest = max(map(len, facts))
    limit = width()
    lines = []
    for name, value in facts.items():
        head = f"{indent}{name.ljust(longest)}  "
        if limit is None or len(head) + len(value) <= limit:
            lines.append(head + value)
            continue
        room = max(limit, len(head) + MIN_WIDTH)
        lines += textwrap.wrap(
            value,
            room,
            initial_indent=head,
            subsequent_indent=" " * len(head),
            break_long_words=False,
            break_on_hyphens=False,
        )
    return "\n".join(lines)
