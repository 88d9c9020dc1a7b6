"""scripts/count_register_reads.py: clocks of the register file, from a listing."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "count_register_reads.py"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    import count_register_reads

    return count_register_reads


@pytest.mark.parametrize(
    ("clocks", "block"),
    [
        (1, ["FFMA R0, R1, R2, RZ"]),
        (2, ["FFMA R0, R1, R2, R4"]),
        (3, ["FFMA R0, R2, R4, R6"]),
        (1, ["FMUL R0, R2, R2"]),
        (1, ["FMUL R0, R2, 1.4426950216293334961"]),
        # The second product finds R1 in its slot; not so in another, or after a third instruction.
        (2, ["FMUL R0, R1.reuse, R2", "FMUL R3, R1, R5"]),
        (3, ["FMUL R0, R1.reuse, R2", "FMUL R3, R5, R1"]),
        (4, ["FMUL R0, R1.reuse, R2", "FADD R3, R4, R7", "FMUL R3, R1, R5"]),
        (3, ["STS.128 [R9+0x10], R4"]),
        (1, ["LDS.128 R4, [R9+0x10]"]),
        (2, ["@P0 FMUL R0, R1, R3"]),
        (1, ["ISETP.NE.AND P0, PT, R1, RZ, PT"]),
        (1, ["BAR.SYNC.DEFER_BLOCKING 0x0"]),
    ],
)
def test_clocks(script, clocks, block):
    assert script.clocks_of(block).total() == clocks


def test_blocks_end_with_a_branch(script):
    listing = "/*0000*/ FMUL R0, R1, R2 ;\n/*0010*/ @P0 BRA 0x40 ;\n/*0020*/ EXIT ;"
    assert script.blocks_of(listing) == [["FMUL R0, R1, R2", "@P0 BRA 0x40"], ["EXIT"], []]


@pytest.mark.parametrize("tool", [True, False])
def test_errors_name_what_is_missing(tmp_path, tool):
    if tool:
        (tmp_path / "cuobjdump").write_text("#!/bin/sh\necho 'Function : other'\n")
        (tmp_path / "cuobjdump").chmod(0o755)
    done = subprocess.run(
        [sys.executable, SCRIPT, "some.o", "kernel"],
        env={"PATH": f"{tmp_path}:/bin" if tool else str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert ("some.o has no kernel like 'kernel'" if tool else "no cuobjdump") in done.stderr
