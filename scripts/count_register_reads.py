#!/usr/bin/env python3
"""Counts what a kernel's instructions ask of the register file.

    nvcc -std=c++20 -O3 -arch=sm_90 -I . -c kernels/selective_scan/backward.cu -o /tmp/b.o
    scripts/count_register_reads.py /tmp/b.o 'backward_kernel.*bfloat16.*Lb1E'

A multiprocessor's scheduler has two banks of registers, even and odd, which give one register each
a clock. An instruction that reads two of one bank takes two clocks, unless one of them was kept
from the instruction before (`.reuse` in the listing). For each stretch of instructions without a
branch the script prints how many there are and the clocks that their reads take: where those of the
busiest loop come near to the clocks that a profiler sees, only fewer reads make it faster
(docs/kernels.md). Needs cuobjdump, no GPU.
"""

import argparse
import collections
import re
import subprocess
import sys
from typing import NamedTuple

REGISTER = re.compile(r"\bR(\d+)((?:\.\w+)*)")
BRANCH = re.compile(r"\b(BRA|EXIT|BSYNC|CALL|RET)\b")
STORES = ("STS", "STG", "STL")
NO_RESULT = ("ISETP", "FSETP", "BRA", "LDGSTS")


class Read(NamedTuple):
    """A register that an instruction reads."""

    slot: int  # which operand it is
    register: int
    kept: bool  # for the next instruction


def reads_of(instruction: str) -> tuple[str, list[Read]]:
    """The opcode without its modifiers, and the registers that are read."""
    if instruction.startswith("@"):  # a predicate
        instruction = instruction.split(None, 1)[1]
    name, _, rest = instruction.partition(" ")
    opcode = name.split(".")[0]
    width = 4 if ".128" in name else 2 if ".64" in name else 1
    reads = []
    for slot, operand in enumerate(rest.split(",")):
        is_result = slot == 0 and opcode not in STORES and opcode not in NO_RESULT
        if is_result and "[" not in operand:
            continue
        for match in REGISTER.finditer(operand):
            first, kept = int(match[1]), "reuse" in match[2]
            count = width if opcode in STORES and slot == 1 else 1
            reads += [Read(slot, first + i, kept) for i in range(count)]
    return opcode, reads


def clocks_of(block: list[str]) -> collections.Counter[str]:
    """Clocks of the banks, by opcode."""
    clocks: collections.Counter[str] = collections.Counter()
    kept: dict[int, int] = {}
    for instruction in block:
        opcode, reads = reads_of(instruction)
        asked = {r.register for r in reads if kept.get(r.slot) != r.register}
        even = sum(register % 2 == 0 for register in asked)
        clocks[opcode] += max(even, len(asked) - even, 1)
        kept = {r.slot: r.register for r in reads if r.kept}
    return clocks


def blocks_of(listing: str) -> list[list[str]]:
    """Stretches without a branch."""
    blocks: list[list[str]] = [[]]
    for instruction in re.findall(r"/\*[0-9a-f]{4,5}\*/\s+(.*?)\s*;", listing):
        blocks[-1].append(instruction)
        if BRANCH.search(instruction):
            blocks.append([])
    return blocks


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("object", help="what nvcc -c has compiled for one architecture")
    parser.add_argument("kernel", help="a regular expression that its mangled name matches")
    parser.add_argument("--least", type=int, default=100, help="instructions of a block (100)")
    options = parser.parse_args()
    command = ["cuobjdump", "-sass", options.object]
    try:
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        print("error: no cuobjdump: it comes with the CUDA toolkit", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"error: cuobjdump: {error.stderr.strip()}", file=sys.stderr)
        return 1
    found = 0
    for function in text.split("Function : ")[1:]:
        name = function.split("\n", 1)[0].strip()
        if not re.search(options.kernel, name):
            continue
        found += 1
        print(name)
        for block in blocks_of(function):
            if len(block) < options.least:
                continue
            clocks = clocks_of(block)
            by_opcode = ", ".join(f"{op} {n}" for op, n in clocks.most_common(6))
            print(f"  {len(block):5} instructions  {clocks.total():5} clocks: {by_opcode}")
    if found == 0:
        print(f"error: {options.object} has no kernel like {options.kernel!r}", file=sys.stderr)
    return 0 if found else 1


if __name__ == "__main__":
    sys.exit(main())
