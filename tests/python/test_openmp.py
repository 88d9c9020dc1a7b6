"""Idle OpenMP threads of a process that imports dmamba soon sleep, if nobody says otherwise."""

import os
import re
import subprocess
import sys

import pytest

from dmamba import _openmp

DEFAULT = 300_000  # libgomp's own


def spin_count(imports: str, **environment: str) -> int:
    """What libgomp has read when torch loaded it; and nothing of it is left in the environment."""
    inherited = {k: v for k, v in os.environ.items() if k not in _openmp._SETTINGS}
    script = f"import os; {imports}; print(os.environ.get('GOMP_SPINCOUNT'))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=inherited | environment | {"OMP_DISPLAY_ENV": "verbose"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout.strip() == str(environment.get("GOMP_SPINCOUNT"))
    (found,) = re.findall(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr)
    return int(found)


@pytest.mark.parametrize("imports", ["import dmamba", "from dmamba.commands import main"])
def test_threads_spin_briefly(imports):
    assert spin_count(imports) == int(_openmp.SPIN_COUNT) < DEFAULT


def test_what_was_set_or_loaded_before_stands():
    assert spin_count("import dmamba", GOMP_SPINCOUNT="777") == 777
    assert spin_count("import dmamba", OMP_WAIT_POLICY="passive") == 0
    assert spin_count("import torch, dmamba") == DEFAULT
