"""The types of the installed package, as somebody else's mypy --strict sees them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dmamba

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "typed" / "experiment.py"
WRONG = Path(__file__).with_name("wrong_types.py")


@pytest.fixture(scope="module")
def complaints(tmp_path_factory):
    """What one run of mypy says, by file: ``{line: code}``."""
    folder = tmp_path_factory.mktemp("mypy")
    # Far from this tree, with its own settings: what it finds is the installed package.
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file="]
    command += ["--cache-dir", str(ROOT / "build" / "mypy-of-the-example")]  # torch takes long
    environment = {k: v for k, v in os.environ.items() if k not in ("MYPYPATH", "PYTHONPATH")}
    done = subprocess.run(
        [*command, str(EXAMPLE), str(WRONG)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.stderr == "" and done.returncode in (0, 1), done.stdout + done.stderr
    found = {EXAMPLE: {}, WRONG: {}}
    for line in done.stdout.splitlines():
        match = re.match(r"(.+\.py):(\d+): error: .*\[([a-z-]+)\]$", line)
        if match:
            found[(folder / match[1]).resolve()][int(match[2])] = match[3]
    return found


def test_the_package_says_that_it_has_types():
    assert (Path(dmamba.__file__).parent / "py.typed").is_file()


def test_a_program_with_all_its_types_passes(complaints):
    assert complaints[EXAMPLE] == {}


def test_mistakes_are_seen(complaints):
    lines = WRONG.read_text().splitlines()
    expected = {
        number: line.split("# ")[1] for number, line in enumerate(lines, 1) if "  # " in line
    }
    assert len(expected) == 12 and complaints[WRONG] == expected


def test_the_program_runs(elsewhere):
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), "out", "4"], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    out = done.stdout
    assert "6 episodes" in out and "run: step-00000004" in out and "scan (1, 7, 8)" in out
    assert re.search(r"^return -?\d", out, re.MULTILINE) and "tables [" in out
