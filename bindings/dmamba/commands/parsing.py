"""The parser that every command has: examples below the help, suggestions, the options of output.

A command's module says what is its own: ``HELP``, ``EXAMPLES``, ``JSON`` (what ``--json`` prints;
without it there is no such option) and ``add_arguments``.
"""

from __future__ import annotations

import argparse
import re
import shutil
import textwrap
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NoReturn

from dmamba import _C
from dmamba.configuration import did_you_mean

MAX_WIDTH = 100  # longer lines are hard to read
LEVELS = ("warning", "info", "debug")  # of the library's log, by the number of -v
Examples = Sequence[tuple[str, str]]  # a command line, and what it does


def help_width() -> int:
    """Columns of a help text."""
    return max(20, min(shutil.get_terminal_size().columns, MAX_WIDTH) - 2)


class _Formatter(argparse.HelpFormatter):
    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog, **{"max_help_position": 26, "width": help_width(), **options})

    def _split_lines(self, text: str, width: int) -> list[str]:
        # A setting or a name that is broken in two cannot be copied.
        return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        # The examples have their lines already.
        return text if "\n" in text else super()._fill_text(text, width, indent)


class Parser(argparse.ArgumentParser):
    """argparse's, whose errors are one line and name what may have been meant.

    Args:
        name: The command's.
        description: A line.
        examples: Below the help.
    """

    def __init__(self, name: str, description: str, examples: Examples = ()) -> None:
        super().__init__(prog=f"dmamba {name}", description=description, formatter_class=_Formatter)
        self._examples = examples

    def format_help(self) -> str:
        """The help, as wide as the terminal is now."""
        self.epilog = format_examples(self._examples) if self._examples else None
        return super().format_help()

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """Reads a command's words; options and positional ones may mix.

        Raises:
            SystemExit: After ``--help`` (0), or after an error's line (2).
        """
        arguments, unknown = self.parse_known_intermixed_args(words)
        if unknown:
            options = [word for word in unknown if re.match(r"--?[a-zA-Z]", word)]
            word = (options or unknown)[0].split("=")[0]
            what = "option" if options else "argument"
            self.error(f"unknown {what} '{word}'{did_you_mean(word, self._option_string_actions)}")
        return arguments

    def error(self, message: str) -> NoReturn:
        """Ends the process with a line on stderr and exit code 2."""
        raise UsageError(f"{self.prog[7:]}: {message} ({self.prog} --help says more)")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        choices = action.choices
        if choices is not None and value not in choices:
            known = [str(choice) for choice in choices]
            raise argparse.ArgumentError(
                action,
                f"there is no {value!r}, but {', '.join(known)}{did_you_mean(str(value), known)}",
            )


class UsageError(_C.ConfigError):
    """Words that a command does not understand."""


def make_parser(name: str, command: ModuleType) -> Parser:
    """The parser of a command, with what all have."""
    parser = Parser(name, command.HELP, getattr(command, "EXAMPLES", ()))
    command.add_arguments(parser)
    group = parser.add_argument_group("output")
    if hasattr(command, "JSON"):
        group.add_argument(
            "--json",
            action="store_true",
            help=f"one JSON document on stdout, all else on stderr: {command.JSON}",
        )
    amount = group.add_mutually_exclusive_group()
    amount.add_argument(
        "-q",
        "--quiet",
        action="store_true",
        help="no progress and no notes: errors, and the answer of a command that gives one",
    )
    # The older name of --quiet.
    amount.add_argument("--no-progress", dest="quiet", action="store_true", help=argparse.SUPPRESS)
    amount.add_argument(
        "-v",
        "--verbose",
        action="count",
        default=0,
        help="the library's log, too, and where an error comes from; -vv: more of the log",
    )
    group.add_argument(
        "--log-level",
        metavar="L",
        help="of the library's log: trace, debug, info, warning (the default), error, off",
    )
    return parser


def log_level(arguments: argparse.Namespace) -> str:
    """What the log of the library says."""
    chosen: str | None = arguments.log_level
    return chosen or LEVELS[min(arguments.verbose, len(LEVELS) - 1)]


def format_examples(examples: Examples, width: int | None = None) -> str:
    """Command lines that can be copied, with what they do beside or above them.

    Args:
        examples: Pairs of both.
        width: Of a line; None: the help's.
    """
    width = help_width() if width is None else width
    longest = max(len(line) for line, _ in examples)
    lines = ["examples:"]
    if all(longest + 6 + len(what) <= width for _, what in examples):
        lines += [f"  {line.ljust(longest)}  # {what}" for line, what in examples]
        return "\n".join(lines)
    for line, what in examples:
        lines += textwrap.wrap(what, width, initial_indent="  # ", subsequent_indent="  # ")
        lines += _wrap_command(line, width)
    return "\n".join(lines)


def _wrap_command(line: str, width: int) -> list[str]:
    """A command over several lines, each but the last with a backslash at its end."""
    words = re.findall(r"(?:'[^']*'|\"[^\"]*\"|\S)+", line)
    lines = ["  " + words[0]]
    for word in words[1:]:
        if len(lines[-1]) + 1 + len(word) + 2 <= width:
            lines[-1] += f" {word}"
        else:
            lines[-1] += " \\"
            lines.append(f"      {word}")
    return lines
