"""The command line. To add a command: a module like info.py, and a row in ``COMMANDS``.

A command's module has ``HELP`` (one line), ``EXAMPLES``, ``add_arguments(parser)`` and
``run(arguments)``, which returns an :class:`dmamba.commands.answers.Answer`, or the exit code where
it has printed all itself; with ``JSON``, a line on the answer's document, it has ``--json``, too.
Errors that are the input's fault end in one line on stderr and exit code 2. docs/command-line.md is
for users.
"""

from __future__ import annotations

import signal
import sys
import textwrap
import traceback
import warnings
from collections.abc import Sequence
from types import ModuleType

from dmamba import _C, _build_info
from dmamba.commands import (
    answers,
    benchmark,
    context,
    data,
    evaluate,
    export,
    info,
    parsing,
    report,
    sweep,
    train,
)
from dmamba.common import terminal
from dmamba.common.signals import Interrupted
from dmamba.configuration import did_you_mean

COMMANDS: dict[str, ModuleType] = {
    "train": train,
    "sweep": sweep,
    "report": report,
    "evaluate": evaluate,
    "export": export,
    "context": context,
    "data": data,
    "benchmark": benchmark,
    "info": info,
}
EXAMPLES = (
    ("dmamba train hopper-sample", "a bundled dataset, minutes on two cores"),
    ("dmamba evaluate runs/hopper-sample-seed0 --episodes 100", "what it has learned"),
    ("dmamba sweep hopper-sample K=5,10,20 seed=0:3", "several settings and seeds"),
    ("dmamba info", "what a bug report needs"),
)
BROKEN_PIPE = 128 + signal.SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    Args:
        argv: Arguments after the program's name; None: the process's.

    Raises:
        SystemExit: After a command's ``--help``.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        try:
            return _run(words)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except (_C.Error, OSError) as error:
        if isinstance(error, BrokenPipeError) and answers.reader_is_gone():
            answers.forget_streams()
            return BROKEN_PIPE
        _say("error", str(error), "red")
        return 2
    except KeyboardInterrupt as stop:
        return 128 + (stop.signum if isinstance(stop, Interrupted) else signal.SIGINT)


def _run(words: list[str]) -> int:
    name = words[0] if words else ""
    if name in ("-h", "--help", "--version", ""):
        text = f"dmamba {_build_info.version}" if name == "--version" else _usage()
        print(text, file=sys.stdout if name else sys.stderr)
        return 0 if name else 2
    if name not in COMMANDS:
        what = "option" if name.startswith("-") else "command"
        near = did_you_mean(name, ("--help", "--version") if what == "option" else COMMANDS)
        known = f"there are {', '.join(COMMANDS)}"
        raise parsing.UsageError(f"no {what} '{name}'{near or f'; {known}'}")
    # A parser for each command, not sub-parsers: those do not let options and overrides mix.
    command = COMMANDS[name]
    parsed = parsing.make_parser(name, command).parse(words[1:])
    as_json = getattr(parsed, "json", False)
    formatted = warnings.formatwarning
    warnings.formatwarning = _format_warning
    try:
        _C.set_log_level(parsing.log_level(parsed))
        if as_json:
            with answers.everything_on_stderr():
                result = command.run(parsed)
        else:
            result = command.run(parsed)
        answer = answers.Answer(code=result) if isinstance(result, int) else result
        answers.give(answer, as_json=as_json, quiet=parsed.quiet)
        return int(answer.code)
    except (_C.Error, OSError):
        if parsed.verbose:
            traceback.print_exc()
        raise
    finally:
        warnings.formatwarning = formatted


def _say(kind: str, message: str, colour: str) -> None:
    print(f"dmamba: {terminal.paint(f'{kind}:', sys.stderr, colour)} {message}", file=sys.stderr)


def _format_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    """A warning to the user in a line, without the place in the program where it was given."""
    return f"dmamba: {terminal.paint('warning:', sys.stderr, 'yellow')} {message}\n"


def _usage() -> str:
    limit = parsing.help_width()
    longest = max(map(len, COMMANDS))
    lines = ["usage: dmamba COMMAND ...", "", "commands:"]
    for name, command in COMMANDS.items():
        beside = textwrap.wrap(command.HELP, max(20, limit - longest - 4))
        painted = terminal.paint(name, sys.stdout, "bold") + " " * (longest - len(name))
        lines.append(f"  {painted}  {beside[0]}")
        lines += [" " * (longest + 4) + rest for rest in beside[1:]]
    more = "dmamba COMMAND --help says more of each; dmamba --version says which this is."
    return "\n".join(
        [*lines, "", parsing.format_examples(EXAMPLES), "", textwrap.fill(more, limit)]
    )
