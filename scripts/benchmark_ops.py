#!/usr/bin/env python3
"""Times the ops against their plain PyTorch references, on the CPU, in one run.

    python scripts/benchmark_ops.py [--batch 64] [--d-inner 256] [--length 60] [--threads 2]

Each row gives the median and the quartiles over repetitions. GB/s counts each input read once and
each output written once; G exp/s counts one exponential a channel, token and state (twice with the
backward pass, which takes them again). The last columns: the reference's time over ours.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

import dmamba
from dmamba import _C, ops, reference
from dmamba.benchmarking import processor
from dmamba.benchmarking.cases import both_directions, scan_inputs


def measure(call: Callable[[], object], seconds: float) -> tuple[float, float, float]:
    """Returns lower quartile, median and upper quartile of the call's time, in seconds."""
    call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 5 or (time.perf_counter() < end and len(times) < 200):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    low, median, high = statistics.quantiles(times, n=4)
    return low, median, high


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--d-inner", type=int, default=256)
    parser.add_argument("--length", type=int, default=60)
    parser.add_argument("--d-state", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=3.0, help="per row")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    batch, length, d_inner = options.batch, options.length, options.d_inner
    inputs = scan_inputs(batch, length, d_inner, options.d_state)
    exponentials = batch * length * d_inner * options.d_state
    sequence_bytes = 4 * batch * length * d_inner
    print(
        f"{processor()}, {options.threads} threads, torch {torch.__version__}, "
        f"dmamba {dmamba.__version__}\nselective_scan {batch} x {d_inner} x {length}, "
        f"d_state {options.d_state}, fp32; times in ms"
    )
    print(
        f"{'':34}{'median':>9}{'quartiles':>18}{'GB/s':>7}{'G exp/s':>9}{'x loop':>8}{'x all':>8}"
    )
    peers = {
        "PyTorch, one step at a time": reference.selective_scan,
        "PyTorch, all of exp(delta A)": reference.selective_scan_materialized,
    }
    for index, direction in enumerate(("forward", "forward + backward")):
        medians: list[float] = []
        print(direction)
        moved = sequence_bytes * (4 if index == 0 else 11)
        rows = list(peers.items())
        rows += [(f"dmamba ({name})", ops.selective_scan) for name in _C.cpu_capabilities()]
        for name, function in rows:
            if function is ops.selective_scan:
                _C.set_cpu_capability(name[8:-1])
            low, median, high = measure(both_directions(function, inputs)[index], options.seconds)
            medians.append(median)
            ratios = "".join(f"{peer / median:>8.1f}" for peer in medians[:2])
            print(
                f"{name:<34}{median * 1e3:>9.2f}{low * 1e3:>9.2f}{high * 1e3:>9.2f}"
                f"{moved / median / 1e9:>7.1f}{exponentials * (index + 1) / median / 1e9:>9.2f}"
                f"{ratios if len(medians) > 2 else ''}"
            )


if __name__ == "__main__":
    main()
