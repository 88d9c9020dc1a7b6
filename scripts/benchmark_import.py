"""How long `import dmamba` takes beyond torch's own import, in fresh processes.

    python scripts/benchmark_import.py [--pairs N] [--slowest N]

Each pair is one process that imports torch alone and one that imports dmamba, which imports torch;
the first pair warms the file cache and does not count. Prints the medians with quartiles and the
median of the pairs' differences, then the modules of dmamba's own import that take longest, by
`python -X importtime`. Beside other busy programs all of it is longer; the processor's seconds,
which stand below the clock's, change least.
"""

from __future__ import annotations

import argparse
import platform
import re
import statistics
import subprocess
import sys

# The processes import as dmamba does: libgomp's environment is the same for both.
CLOCK = """
from time import perf_counter, process_time
begin, worked = perf_counter(), process_time()
import {}
print(perf_counter() - begin, process_time() - worked)
"""


def seconds(module: str) -> tuple[float, float]:
    """Seconds that a fresh process takes for one import: the clock's, the processor's."""
    command = [sys.executable, "-c", CLOCK.format(module)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    clock, processor = map(float, printed.split())
    return clock, processor


def describe(values: list[float]) -> str:
    """Median and quartiles, in seconds."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:6.3f} s ({low:.3f} to {high:.3f})"


def slowest(count: int) -> list[tuple[str, float, float]]:
    """Modules outside torch by what they took themselves: name, own and cumulative seconds."""
    command = [sys.executable, "-X", "importtime", "-c", "import torch; import dmamba"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    rows = re.findall(r"^import time: +(\d+) \| +(\d+) \| +(\S+)$", text, re.MULTILINE)
    names = [name for _, _, name in rows]
    after = rows[names.index("torch") + 1 :]
    after.sort(key=lambda row: -int(row[0]))
    return [(name, int(own) / 1e6, int(total) / 1e6) for own, total, name in after[:count]]


def main() -> None:
    """Times the pairs and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=9, help="pairs of processes (default: 9)")
    parser.add_argument("--slowest", type=int, default=10, help="modules listed (default: 10)")
    arguments = parser.parse_args()
    if arguments.pairs < 2:
        parser.error("--pairs must be at least 2: there are quartiles to show")

    pairs = [(seconds("torch"), seconds("dmamba")) for _ in range(arguments.pairs + 1)][1:]
    print(f"Python {platform.python_version()}, {arguments.pairs} pairs of processes")
    for kind, name in enumerate(("clock", "processor")):
        print(f"\n{name}")
        print(f"torch                {describe([torch[kind] for torch, _ in pairs])}")
        print(f"dmamba, with torch   {describe([dmamba[kind] for _, dmamba in pairs])}")
        beyond = [dmamba[kind] - torch[kind] for torch, dmamba in pairs]
        print(f"dmamba beyond torch  {describe(beyond)}")
    print("\nown       cumulative")
    for name, own, total in slowest(arguments.slowest):
        print(f"{own:.3f} s   {total:.3f} s   {name}")


if __name__ == "__main__":
    main()
