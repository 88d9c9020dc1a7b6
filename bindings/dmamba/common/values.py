"""Lists of values as text: ``5,10,20``, ``[1800,3600],[3600]``, ``0:5``."""

from __future__ import annotations

import re

from dmamba import _C

MAX_VALUES = 10_000
_RANGE = re.compile(r"(\d+):(\d+)")
_BRACKETS = {"[": "]", "{": "}", "(": ")", '"': '"', "'": "'"}


def split_values(text: str) -> list[str]:
    """The values of a list: split at commas outside brackets and quotes, ranges written out.

    Raises:
        ConfigError: An empty value or range, a bracket without its other half, too many values.
    """
    values: list[str] = []
    closing: list[str] = []
    current = ""
    for character in text:
        if closing and character == closing[-1]:
            closing.pop()
        elif character in _BRACKETS and not (closing and closing[-1] in "\"'"):
            closing.append(_BRACKETS[character])
        if character == "," and not closing:
            values.append(current.strip())
            current = ""
        else:
            current += character
    if closing:
        raise _C.ConfigError(f"{text!r} lacks a closing {closing[-1]}")
    values.append(current.strip())
    if "" in values:
        raise _C.ConfigError(f"{text!r} has an empty value; write values as 5,10,20")
    return [one for value in values for one in _expand(value)]


def _expand(value: str) -> list[str]:
    match = _RANGE.fullmatch(value)
    if match is None:
        return [value]
    first, end = int(match[1]), int(match[2])
    if not 0 < end - first <= MAX_VALUES:
        raise _C.ConfigError(
            f"range {value!r} has {max(0, end - first)} values, which must be 1 to {MAX_VALUES}; "
            "A:B counts from A to B - 1"
        )
    return [str(number) for number in range(first, end)]
