"""The rules of scripts/lib/house_rules.py: imports of rooms, instructions of kernels."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def rules(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts" / "lib")
    import house_rules

    return house_rules


@pytest.mark.parametrize(
    "text",
    [
        "import dmamba.training",
        "from dmamba import envs, training",
        "from dmamba.training import train",
        "from dmamba import train",
        "from .. import training",
        "from ..training import train",
        "from dmamba.data import record",
        "try:\n    import dmamba.sweeps\nexcept ImportError:\n    pass",
        "try:\n    pass\nexcept ImportError:\n    import dmamba.sweeps",
        "class Run:\n    from dmamba.reporting import cells",
        "if TYPE_CHECKING:\n    pass\nelse:\n    import dmamba.commands",
    ],
)
def test_an_import_that_goes_up_is_a_problem(rules, text):
    [(_, problem)] = rules.import_problems(rules.PACKAGE / "runs" / "tables.py", text)
    assert problem.startswith("runs imports dmamba.") and problem.endswith(", and stands below it")


@pytest.mark.parametrize(
    "text",
    [
        "import numpy",
        "from dmamba import _C, envs, nn",
        "from dmamba.data import load",
        "from . import metrics",
        "from .metrics import row_cells",
        "if TYPE_CHECKING:\n    from dmamba.training import train",
        "def draw():\n    from dmamba.reporting import cells",
    ],
)
def test_other_imports_are_none(rules, text):
    assert not list(rules.import_problems(rules.PACKAGE / "runs" / "tables.py", text))


def test_a_file_has_a_room(rules):
    [(line, problem)] = rules.import_problems(rules.PACKAGE / "tables.py", "")
    assert line == 1 and "no room tables" in problem


@pytest.mark.parametrize(
    ("file", "line", "refused"),
    [
        ("kernels/frames/relu.cuh", '  asm volatile("bar.sync 1;");', True),
        ("kernels/frames/relu.cuh", "  relu<<<blocks, 256>>>(p);", True),
        ("kernels/frames/relu.cuh", "  extern __shared__ float sums[];", True),
        ("kernels/frames/relu.cuh", "  int x;  // asm is elsewhere", False),
        ("kernels/common/copy.cuh", '  asm volatile("cp.async.wait_all;");', False),
        ("src/ops/cpu/simd/clock.h", '  asm volatile("rdtsc");', False),
    ],
)
def test_kernels_keep_what_cannot_be_emulated_apart(rules, file, line, refused):
    assert (rules.instruction_problem(Path(file), line) is not None) == refused
