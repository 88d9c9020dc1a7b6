"""Ids of gymnasium environments, with arguments for their constructor where those matter.

    Hopper-v5
    Ant-v5?include_cfrc_ext_in_observation=false
    gymnasium_robotics:PointMaze_UMaze-v3?reward_type="dense"&continuing_task=false

What follows the question mark is NAME=VALUE, joined by ``&``; a value is JSON, percent-encoded
where it has a ``&``, ``%``, ``+`` or ``#``. What stands before a colon is the module to import.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, unquote

_PLAIN = "[]{}\",:' /<>=?!*()|"  # need no encoding beside letters, digits and _.-~


def join(name: str, arguments: Mapping[str, Any]) -> str:
    """An id from gymnasium's own and the constructor's arguments, which JSON can hold."""
    words = [
        f"{key}={quote(json.dumps(value, separators=(',', ':')), safe=_PLAIN)}"
        for key, value in sorted(arguments.items())
    ]
    return f"{name}?{'&'.join(words)}" if words else name


def split(environment: str) -> tuple[str, dict[str, Any]]:
    """Gymnasium's own id and the constructor's arguments.

    Raises:
        ValueError: What follows the question mark cannot be read; the message says what.
    """
    name, mark, query = environment.partition("?")
    arguments: dict[str, Any] = {}
    for word in query.split("&") if mark else ():
        key, equals, value = word.partition("=")
        if not (key and equals):
            raise ValueError(f"{word!r} must be NAME=VALUE")
        try:
            arguments[key] = json.loads(unquote(value))
        except ValueError:
            raise ValueError(
                f'the value of {key} must be JSON, such as 1, true or "text", got {value!r}'
            ) from None
    return name, arguments
