"""Runs that are resumed from damaged files: a short round of scripts/nightly/damaged_runs.sh."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import dmamba

PROGRAM = Path(__file__).parents[1] / "reliability" / "mutated_runs.py"


def test_damaged_runs_are_refused_or_untouched():
    done = subprocess.run(
        [sys.executable, PROGRAM, "--trials", "60", "--seed", "4"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "60 runs, 0 findings" in done.stdout
    for name in ("model.safetensors", "optimizer.safetensors", "state.json", "config.yaml"):
        assert f"{name:24}refused" in done.stdout


@pytest.mark.parametrize("junk", [b"\xff", b"\xf0\x9f", b"\xed\xa0\x80"])
def test_metrics_that_are_no_text(junk, tmp_path):
    header = ",".join(dmamba.runs.metrics.METRICS)
    (tmp_path / "metrics.csv").write_bytes(f"{header}\n4,1.0,1.0,1.0,0\n".encode() + junk + b"\n")
    with pytest.raises(dmamba.DataError, match=r"metrics.csv:3: not a row of metrics"):
        dmamba.runs.metrics.read_rows(tmp_path / "metrics.csv")
