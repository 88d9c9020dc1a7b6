"""The short rounds of scripts/nightly/load.sh: what a process holds stays as it is."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[1] / "reliability" / "load.py"
sys.path.insert(0, str(PROGRAM.parent))
import measures  # noqa: E402


@pytest.mark.parametrize(
    ("arguments", "last"),
    [
        (["steps", "--steps", "3000", "--warm-up", "1000"], "constant"),
        (["handles", "--times", "40"], "failed: none"),
        (["large", "--gigabytes", "0.05", "--steps", "20"], "bounded"),
    ],
)
def test_nothing_grows(arguments, last):
    done = subprocess.run(
        [sys.executable, PROGRAM, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == last


def test_what_grows_is_seen():
    def sample(**changed):
        return {"rss": 10_000_000, "open_files": 7, "mappings": 500} | changed

    assert measures.complaints([sample(), sample(rss=10_090_000, mappings=505)], 0.01) == []
    for name, value in {"rss": 10_200_000, "open_files": 10, "mappings": 600}.items():
        assert measures.complaints([sample(), sample(**{name: value})], 0.01)[0].startswith(name)
    assert measures.complaints([sample(), sample(open_files=4)], 0.01)


def test_this_process_is_seen():
    before = measures.host()
    with open(PROGRAM) as first, open(PROGRAM) as second:
        assert first.fileno() != second.fileno()
        assert measures.host()["open_files"] == before["open_files"] + 2
    assert before["rss"] >= before["anonymous"] > 0
