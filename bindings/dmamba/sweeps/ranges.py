"""Ranges of a search: ``a..b`` and ``log:a..b``, both ends included."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from dmamba import _C


@dataclass(frozen=True)
class Range:
    """All numbers from one to another.

    Attributes:
        low: Smallest value; an int for a field of whole numbers.
        high: Largest value, of the same type.
        log: Whether values are drawn evenly in their logarithm.
    """

    low: float
    high: float
    log: bool

    @property
    def whole(self) -> bool:
        """Whether the values are whole numbers."""
        return isinstance(self.low, int)

    @property
    def ends(self) -> list[str]:
        """Both ends, as an override writes them."""
        return [repr(self.low), repr(self.high)]


def parse_range(key: str, text: str, current: Any) -> Range | None:
    """The range that a text stands for.

    Args:
        key: The field's dotted name.
        text: What was given as its value.
        current: The field's value, for its type; only numbers have ranges.

    Returns:
        None for a single value.

    Raises:
        ConfigError: A range that cannot be read, or has fewer than two values.
    """
    if isinstance(current, bool) or not isinstance(current, (int, float)):
        return None
    log, body = text.startswith("log:"), text.removeprefix("log:")
    if not log and ".." not in body:
        return None
    low, dots, high = body.partition("..")
    kind = int if isinstance(current, int) else float
    wanted = "whole numbers" if kind is int else "numbers"
    try:
        if not dots:
            raise ValueError
        ends = kind(low), kind(high)
        if not all(map(math.isfinite, ends)):
            raise ValueError
    except ValueError:
        raise _C.ConfigError(
            f"{key}={text}: not a range of {wanted}; write low..high or log:low..high"
        ) from None
    if ends[0] >= ends[1]:
        raise _C.ConfigError(f"{key}={text}: an empty range; the first end must be the lower one")
    if log and ends[0] <= 0:
        raise _C.ConfigError(f"{key}={text}: log: needs a lower end greater than 0")
    return Range(*ends, log)


def refuse_ranges(lists: dict[str, list[str]], known: dict[str, Any]) -> None:
    """Says how a search is asked for where a grid has a range.

    Args:
        lists: Texts of the values, by dotted key.
        known: Value of each field.

    Raises:
        ConfigError: There is a range.
    """
    for key, values in lists.items():
        for text in values:
            if parse_range(key, text, known[key]) is not None:
                raise _C.ConfigError(
                    f"{key}={text} is a range, which a grid cannot have: say how many settings to "
                    "try with --trials N (trials=), or list the values"
                )
