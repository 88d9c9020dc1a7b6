#!/usr/bin/env python3
"""Says where a training step's time goes on a GPU: kernels by total time, and one step's timeline.

    python scripts/profile_train.py [--precision bf16] [--d-model 128] [--game FOLDER] [--timeline]

Steps are those of benchmark_train.py, as they run: a replay of the CUDA graph each. Times are those
of torch's profiler, which slows a step down by a few per cent.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from itertools import pairwise

import torch
from benchmark_train import make_trainer
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

STEPS = 10
FIRST_KERNEL = "begin_step"  # of a step


def kernels_of(options: argparse.Namespace) -> list[tuple[float, float, str]]:
    """(start, duration, name) of the kernels of STEPS steps, microseconds, by start."""
    trainer = make_trainer(options)[0]
    trainer.run(seconds=1e9, max_steps=20)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        trainer.run(seconds=1e9, max_steps=STEPS)
        torch.cuda.synchronize()
    return sorted(
        (event.time_range.start, event.device_time, event.name)
        for event in profiled.events()
        if event.device_type == DeviceType.CUDA
    )


def print_table(kernels: list[tuple[float, float, str]], width: int) -> None:
    """Kernels by name: launches and microseconds a step, microseconds a launch."""
    totals: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])
    for _, duration, name in kernels:
        totals[name][0] += 1
        totals[name][1] += duration
    print(f"{'launches':>9}{'us a step':>11}{'us each':>9}  kernel")
    for name, (count, total) in sorted(totals.items(), key=lambda item: -item[1][1]):
        print(f"{count / STEPS:9.1f}{total / STEPS:11.1f}{total / count:9.2f}  {name[:width]}")


def print_timeline(kernels: list[tuple[float, float, str]], width: int) -> None:
    """The kernels of a step in the middle; + marks those that begin while others run."""
    starts = [start for start, _, name in kernels if FIRST_KERNEL in name]
    first, last = starts[STEPS // 2], starts[STEPS // 2 + 1]
    end = first
    print(f"\n{'start':>9}{'us':>9}")
    for start, duration, name in kernels:
        if first <= start < last:
            mark = "+" if start < end else " "
            print(f"{start - first:9.2f}{duration:9.2f} {mark} {name[:width]}")
            end = max(end, start + duration)


def main() -> None:
    """Reads the options, profiles, prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--precision", choices=("fp32", "bf16", "tf32"), default="bf16")
    parser.add_argument("--d-model", type=int, default=128)
    parser.add_argument("--context-length", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--n-layer", type=int, default=3)
    parser.add_argument("--game", default="", help="a DQN-replay folder")
    parser.add_argument("--timeline", action="store_true", help="print one step's kernels, too")
    parser.add_argument("--width", type=int, default=100, help="of kernels' names")
    options = parser.parse_args()
    options.device, options.graph, options.data = "cuda", "auto", "auto"
    options.settings = []
    kernels = kernels_of(options)
    steps = [
        b - a for a, b in pairwise(start for start, _, name in kernels if FIRST_KERNEL in name)
    ]
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}; {options.precision}; "
        f"{len(kernels) / STEPS:.0f} launches, {sum(k[1] for k in kernels) / STEPS:.0f} us of "
        f"kernels in {sum(steps) / len(steps):.0f} us a step"
    )
    print_table(kernels, options.width)
    if options.timeline:
        print_timeline(kernels, options.width)


if __name__ == "__main__":
    main()
