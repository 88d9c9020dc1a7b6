"""The command line. To add a command: a module like info.py, and a row in ``COMMANDS``.

A command's module has ``HELP`` (one line), ``add_arguments(parser)`` and ``run(arguments)``, which
returns the exit code. Errors that are the input's fault end in one line and exit code 2.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from types import ModuleType

from dmamba import _C, _build_info
from dmamba.commands import context, data, evaluate, info, report, sweep, train
from dmamba.signals import Interrupted

COMMANDS: dict[str, ModuleType] = {
    "train": train,
    "sweep": sweep,
    "report": report,
    "evaluate": evaluate,
    "context": context,
    "data": data,
    "info": info,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    Args:
        argv: Arguments after the program's name; None: the process's.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else ""
    if name in ("-h", "--help", "--version", ""):
        print(f"dmamba {_build_info.version}" if name == "--version" else _usage())
        return 0 if name else 2
    if name not in COMMANDS:
        print(f"dmamba: error: no command {name!r}\n{_usage()}", file=sys.stderr)
        return 2
    # A parser for each command, not sub-parsers: those do not let options and overrides mix.
    command = COMMANDS[name]
    parser = argparse.ArgumentParser(prog=f"dmamba {name}", description=command.HELP)
    command.add_arguments(parser)
    parsed = parser.parse_intermixed_args(arguments[1:])
    try:
        return int(command.run(parsed))
    except (_C.Error, OSError) as error:
        print(f"dmamba: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        return 128 + (stop.signum if isinstance(stop, Interrupted) else 2)


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name.ljust(width)}  {command.HELP}" for name, command in COMMANDS.items()]
    return "\n".join(
        ["usage: dmamba COMMAND ...", "", *lines, "", "dmamba COMMAND --help says more of each."]
    )
