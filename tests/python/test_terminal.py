"""Widths and colours of the terminal; tables that fit."""

import io
import os
import pty

import pytest

from dmamba.common import scores, terminal

COLOUR_VARIABLES = ("NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE", "CLICOLOR", "TERM")


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    for name in (*COLOUR_VARIABLES, "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


class Screen(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("variables", "on_screen", "in_file"),
    [
        ({}, True, False),
        ({"NO_COLOR": "1"}, False, False),
        ({"NO_COLOR": ""}, True, False),
        ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, False, False),
        ({"FORCE_COLOR": "1"}, True, True),
        ({"CLICOLOR_FORCE": "1", "TERM": "dumb"}, True, True),
        ({"CLICOLOR_FORCE": "0"}, True, False),
        ({"CLICOLOR": "0"}, False, False),
        ({"TERM": "dumb"}, False, False),
    ],
)
def test_who_takes_colours(variables, on_screen, in_file, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert terminal.coloured(Screen()) == on_screen
    assert terminal.coloured(io.StringIO()) == in_file
    painted = "\033[1;31mx\033[0m"
    assert terminal.paint("x", Screen(), "bold", "red") == (painted if on_screen else "x")


def test_width(monkeypatch, tmp_path):
    with open(tmp_path / "file", "w") as file:
        assert terminal.width(file) is None
    assert terminal.width(io.StringIO()) is None
    leader, follower = pty.openpty()
    with os.fdopen(follower, "w") as screen:
        os.set_blocking(leader, False)
        assert terminal.width(screen) == terminal.MIN_WIDTH  # a new one says 0
        monkeypatch.setenv("COLUMNS", "57")
        assert terminal.width(screen) == terminal.width(io.StringIO()) == 57
        for value, expected in (("0", 20), ("7", 20), ("many", 20), ("-5", 20)):
            monkeypatch.setenv("COLUMNS", value)
            assert terminal.width(screen) == expected
    os.close(leader)


@pytest.mark.parametrize(
    ("widths", "limit", "groups"),
    [
        ([5, 5, 5], None, [[0, 1, 2]]),
        ([5, 5, 5], 15, [[0, 1, 2]]),
        ([5, 5, 5], 14, [[0, 1], [0, 2]]),
        ([5, 2, 2, 9, 1], 9, [[0, 1, 2], [0, 3], [0, 4]]),
        ([50, 5], 20, [[0, 1]]),
        ([50], 20, [[0]]),
    ],
)
def test_column_groups(widths, limit, groups):
    assert terminal.column_groups(widths, limit) == groups


def test_a_table_that_is_too_wide_becomes_several(monkeypatch):
    rows = [["target", "return", "interval"], ["100", "98.5", "[90.1, 99.0]"], ["mean", "7.0", ""]]
    whole = "  target  return      interval\n  100       98.5  [90.1, 99.0]\n  mean       7.0"
    assert scores.format_table(rows) == whole
    monkeypatch.setenv("COLUMNS", "30")
    assert scores.format_table(rows) == whole
    monkeypatch.setenv("COLUMNS", "29")
    assert scores.format_table(rows) == (
        "  target  return\n"
        "  100       98.5\n"
        "  mean       7.0\n"
        "\n"
        "  target      interval\n"
        "  100     [90.1, 99.0]\n"
        "  mean"
    )


def test_long_facts_go_on_below_their_beginning(monkeypatch):
    facts = {"CUDA": "no: torch is for the CPU", "threads": "2"}
    assert terminal.format_facts(facts) == "CUDA     no: torch is for the CPU\nthreads  2"
    for columns in ("30", "20"):  # 20 stay for the values
        monkeypatch.setenv("COLUMNS", columns)
        lines = terminal.format_facts(facts).splitlines()
        assert lines == ["CUDA     no: torch is for the", "         CPU", "threads  2"]
