"""A short round of tests/reliability/kills.py: kills, full disks, failing calls.

The campaign counts calls by itself: a change in the order of files needs no change here.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

KILLS = Path(__file__).parents[1] / "reliability" / "kills.py"


@pytest.fixture(scope="module", autouse=True)
def fonts(tmp_path_factory):
    """Matplotlib looks for fonts once, and not for each test's home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPLCONFIGDIR", str(tmp_path_factory.mktemp("matplotlib")))
        yield


def campaign(*arguments):
    """Runs it; returns how many faults there were."""
    done = subprocess.run(
        [sys.executable, str(KILLS), "--jobs", "2", *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    trials, faults = re.search(r"^(\d+) trials, (\d+) faults, 0 wrong", done.stdout, re.M).groups()
    assert int(trials) > 0
    return int(faults)


@pytest.mark.parametrize(
    ("subjects", "calls", "faults"),
    [
        # Each file of a run gets its name, and an old checkpoint is removed.
        ("plain", r"^(rename|unlink)", "kill"),
        ("plain", r"^(pwrite|mkdir checkpoints$|open .*/\.dmamba-\d+-[08]|write metrics)", "full"),
        ("convert,export,download", r"^(pwrite|renameat2|rename model)", "kill,fail"),
    ],
)
def test_chosen_moments(subjects, calls, faults):
    words = ["--only", subjects, "--every", "--calls", calls, "--faults", faults]
    assert campaign(*words) >= 9


def test_random_moments():
    assert campaign("--only", "plain,schedule", "--kills", "8", "--seed", "5") >= 8
