"""What a process holds: memory by kind, files, mappings, threads; and whether that stays."""

from __future__ import annotations

import os
from pathlib import Path

MIB = 1 << 20


def host() -> dict[str, int]:
    """Of this process: bytes that are resident, by kind, and counts of what it holds open."""
    wanted = {"VmRSS": "rss", "RssAnon": "anonymous", "RssFile": "files", "RssShmem": "shared"}
    values = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, text = line.partition(":")
        if name in wanted:
            values[wanted[name]] = int(text.split()[0]) * 1024
    values["open_files"] = len(os.listdir("/proc/self/fd"))
    values["threads"] = len(os.listdir("/proc/self/task"))
    values["mappings"] = Path("/proc/self/maps").read_bytes().count(b"\n")
    return values


def gpu() -> dict[str, int]:
    """Bytes of the GPU: what tensors take, what torch has reserved, what the driver gave out."""
    import torch

    free, total = torch.cuda.mem_get_info()
    return {
        "gpu_allocated": torch.cuda.memory_allocated(),
        "gpu_reserved": torch.cuda.memory_reserved(),
        "gpu_driver": total - free,
    }


def growth(values: list[int]) -> float:
    """How far a series goes above its first value, as a share of it."""
    first = values[0]
    return max(value - first for value in values) / first if first else float(any(values))


# By how much counts may change, where a leak is thousands: TensorBoard's thread opens its file for
# each writing, the allocator maps a piece now and then.
COUNTS = {"open_files": 2, "threads": 1, "hdf5_objects": 0, "mappings": 10}


def complaints(samples: list[dict[str, int]], share: float) -> list[str]:
    """What does not stay as it was in the first sample.

    Memory that goes down is none: under pressure the kernel takes pages of files away.

    Args:
        samples: Of the same names.
        share: By which bytes may grow.
    """
    found = []
    for name in samples[0]:
        values = [sample[name] for sample in samples]
        if name in COUNTS:
            if max(values) - min(values) > COUNTS[name]:
                found.append(
                    f"{name}: {min(values)} to {max(values)}, may change by {COUNTS[name]}"
                )
        elif (name == "rss" or name.startswith("gpu")) and growth(values) > share:
            found.append(
                f"{name}: {values[0]:,} bytes at first, then {min(values):,} to {max(values):,}: "
                f"{growth(values):.2%}, allowed {share:.2%}"
            )
    return found


def table(samples: list[dict[str, int]]) -> str:
    """First, last, least and most of each value; bytes in MiB."""
    lines = [f"{'':16}{'first':>12}{'last':>12}{'least':>12}{'most':>12}"]
    for name in samples[0]:
        values = [sample[name] for sample in samples]
        shown = (values[0], values[-1], min(values), max(values))
        if name in COUNTS:
            lines.append(f"{name:16}" + "".join(f"{value:12}" for value in shown))
        else:
            lines.append(f"{name:16}" + "".join(f"{value / MIB:8.2f} MiB" for value in shown))
    return "\n".join(lines)
