"""What a command answers: text for people, or one JSON document for a script.

The JSON document is alone on stdout. What the library prints while it works, and what is printed by
libraries and processes under it, goes to stderr meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Answer:
    """The answer of a command.

    Attributes:
        text: For people; may be empty.
        document: For ``--json``: dicts, lists, arrays, numbers, texts, paths. None: there is none,
            as of a process that follows another.
        note: Whether the text only says what was made: ``--quiet`` leaves it out then.
        code: The process's exit code.
    """

    text: str = ""
    document: Any = None
    note: bool = False
    code: int = 0


def to_json(value: Any) -> str:
    """JSON of an answer's document; what is not a finite number becomes null."""
    return json.dumps(_plain(value), indent=2, allow_nan=False, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    return value


@contextlib.contextmanager
def everything_on_stderr() -> Iterator[None]:
    """Leads what is written to stdout to stderr, that of C libraries and child processes too."""
    with contextlib.ExitStack() as stack:
        try:
            sys.stdout.flush()
            stdout, stderr = sys.stdout.fileno(), sys.stderr.fileno()
        except (OSError, ValueError, AttributeError):  # no files, as in a notebook, or closed
            pass
        else:
            kept = os.dup(stdout)
            stack.callback(os.close, kept)
            stack.callback(os.dup2, kept, stdout)
            os.dup2(stderr, stdout)
        with contextlib.redirect_stdout(sys.stderr):
            yield


def give(answer: Answer, *, as_json: bool, quiet: bool) -> None:
    """Prints an answer."""
    if as_json:
        if answer.document is not None:
            print(to_json(answer.document))
    elif answer.text and not (quiet and answer.note):
        print(answer.text)


def reader_is_gone() -> bool:
    """Whether nobody reads stdout or stderr any longer, as after ``| head -1``."""
    for stream in (sys.stdout, sys.stderr):
        try:
            poll = select.poll()
            poll.register(stream.fileno(), select.POLLOUT)
            if any(events & select.POLLERR for _, events in poll.poll(0)):
                return True
        except (OSError, ValueError, AttributeError):  # closed, or not a file
            continue
    return False


def forget_streams() -> None:
    """Points stdout and stderr nowhere: what is left in them has no reader."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
