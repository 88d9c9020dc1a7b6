#!/usr/bin/env python3
"""Times the CUDA scan through its torch ops, beside the hardware's floor and its peers.

    python scripts/benchmark_gpu.py [--sizes fp32:64x256x60 ...] [--seconds 0.5] [--json FILE]

A size is dtype:batch x d_inner x L. All have D, z, delta_bias and softplus. A time is that of one
of ten calls captured in a CUDA graph, over many replays: median and quartiles. Rows: `forward` is
inference, `training` keeps the states for the backward pass too, `backward` gives all gradients.

GB/s and exponentials count what no implementation can save: each input read once, each result
written once, one exponential a channel, token and state. The floor is the larger of the bytes at
the copy bandwidth measured here and the exponentials at 16 a clock and multiprocessor. Peers:
mamba_ssm's kernels where they can be imported, and dmamba.reference at the first size.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

import dmamba
from dmamba import _C, reference

SIZES = (
    "fp32:64x256x60",
    "fp32:64x512x60",
    "fp32:256x256x90",
    "fp32:64x256x300",
    "bf16:256x256x90",
    "bf16:16x2048x2048",
    "bf16:2x4096x16384",
    "bf16:1x2048x65536",
)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LAUNCHES = 10
CHECKPOINT_EVERY = 8  # of the CUDA kernels
Call = Callable[[], object]


@dataclass
class Row:
    """One line of the table; times in microseconds."""

    size: str
    what: str
    low: float
    median: float
    high: float
    gigabytes_per_second: float
    tera_exponentials_per_second: float
    floor: float


class Clock:
    """Times calls by graph replay, all on one stream of its own."""

    def __init__(self, seconds: float) -> None:
        self.stream = torch.cuda.Stream()
        self.seconds = seconds

    def measure(self, call: Call) -> tuple[float, float, float]:
        """Returns lower quartile, median and upper quartile of one call's time, in seconds."""
        with torch.cuda.stream(self.stream):
            for _ in range(2):
                call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream):
            for _ in range(LAUNCHES):
                call()
        times: list[float] = []
        end = time.perf_counter() + self.seconds
        while len(times) < 20 or (time.perf_counter() < end and len(times) < 1000):
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            stop.record()
            stop.synchronize()
            times.append(start.elapsed_time(stop) / 1e3 / LAUNCHES)
        low, median, high = statistics.quantiles(times[3:], n=4)
        return low, median, high


def copy_bandwidth(clock: Clock) -> float:
    """Bytes a second, read and written, of a copy too large for the cache."""
    source = torch.zeros(1 << 28, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / clock.measure(lambda: target.copy_(source))[1]


def exponential_rate() -> float:
    """Exponentials a second: 16 a clock and multiprocessor at the highest clock."""
    query = ["nvidia-smi", "--query-gpu=clocks.max.sm", "--format=csv,noheader,nounits"]
    query.append(f"--id={torch.cuda.current_device()}")
    megahertz = float(subprocess.run(query, check=True, capture_output=True, text=True).stdout)
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return 16 * properties.multi_processor_count * megahertz * 1e6


def scan_inputs(
    dtype: torch.dtype, batch: int, length: int, d_inner: int, d_state: int
) -> dict[str, torch.Tensor]:
    """Random inputs of a scan as they come in a Mamba block."""
    generator = torch.Generator("cuda").manual_seed(0)

    def normal(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device="cuda").to(dtype)

    return {
        "u": normal(batch, length, d_inner),
        "delta": normal(batch, length, d_inner),
        "A": -torch.arange(1.0, d_state + 1, device="cuda").repeat(d_inner, 1),
        "B": normal(batch, length, d_state),
        "C": normal(batch, length, d_state),
        "D": normal(d_inner, dtype=torch.float32),
        "z": normal(batch, length, d_inner),
        "delta_bias": normal(d_inner, dtype=torch.float32),
    }


def own_calls(inputs: dict[str, torch.Tensor]) -> dict[str, Call]:
    """The ops, without autograd."""
    forward, backward = torch.ops.dmamba.selective_scan, torch.ops.dmamba.selective_scan_backward
    arguments = (*inputs.values(), True, None, None, None)
    out, _, kept = forward(*arguments, CHECKPOINT_EVERY)
    dout = torch.randn_like(inputs["u"])
    return {
        "forward": lambda: forward(*arguments, 0),
        "training": lambda: forward(*arguments, CHECKPOINT_EVERY),
        "backward": lambda: backward(dout, None, *arguments, kept, CHECKPOINT_EVERY, out),
    }


def mamba_ssm_calls(inputs: dict[str, torch.Tensor]) -> dict[str, Call]:
    """mamba_ssm's kernels, (batch, d_inner, L) as they want it; nothing where they are missing."""
    try:
        kernels: Any = importlib.import_module("selective_scan_cuda")
    except ImportError:
        return {}

    def by_channel(t: torch.Tensor) -> torch.Tensor:
        return t.transpose(1, 2).contiguous()

    u, delta, z = (by_channel(inputs[name]) for name in ("u", "delta", "z"))
    B, C = (by_channel(inputs[name]).unsqueeze(1) for name in ("B", "C"))
    first = (u, delta, inputs["A"], B, C, inputs["D"], z, inputs["delta_bias"])
    out, x, *_ = kernels.fwd(*first, True)
    dout = torch.randn_like(u)
    return {
        "mamba_ssm forward": lambda: kernels.fwd(*first, True),
        "mamba_ssm backward": lambda: kernels.bwd(*first, dout, x, out, None, True, False),
    }


def reference_calls(inputs: dict[str, torch.Tensor], clock: Clock) -> dict[str, Call]:
    """dmamba.reference, whose backward is autograd's."""
    leaves = {name: t.detach().requires_grad_() for name, t in inputs.items()}
    # Autograd runs on the stream of the forward pass, which has to be the one that captures.
    with torch.cuda.stream(clock.stream):
        out = reference.selective_scan(**leaves, delta_softplus=True)
    dout = torch.randn_like(inputs["u"])
    return {
        "PyTorch forward": lambda: reference.selective_scan(**inputs, delta_softplus=True),
        "PyTorch backward": lambda: torch.autograd.grad(
            out, list(leaves.values()), dout, retain_graph=True
        ),
    }


def measure_size(
    size: str, clock: Clock, bandwidth: float, exponentials: float, with_reference: bool
) -> list[Row]:
    """All rows of one size."""
    name, _, numbers = size.partition(":")
    batch, d_inner, length = map(int, numbers.split("x"))
    d_state = 16
    inputs = scan_inputs(DTYPES[name], batch, length, d_inner, d_state)
    calls = own_calls(inputs) | mamba_ssm_calls(inputs)
    if with_reference:
        calls |= reference_calls(inputs, clock)
    token, projection = inputs["u"].nbytes, inputs["B"].nbytes
    count = batch * length * d_inner * d_state
    rows = []
    for what, call in calls.items():
        moved = 7 * token + 4 * projection if "backward" in what else 4 * token + 2 * projection
        low, median, high = clock.measure(call)
        floor = max(moved / bandwidth, count / exponentials)
        speeds = moved / median / 1e9, count / median / 1e12
        rows.append(Row(size, what, low * 1e6, median * 1e6, high * 1e6, *speeds, floor * 1e6))
    return rows


def show(rows: list[Row]) -> None:
    """Prints the rows of one size; peers with their time over ours."""
    own = {row.what: row.median for row in rows}
    for row in rows:
        peer, _, direction = row.what.partition(" ")
        ratio = f"{row.median / own[direction]:>8.1f} x ours" if direction else ""
        print(
            f"{row.size:<20}{row.what:<20}{row.median:>10.1f}{row.low:>10.1f}{row.high:>10.1f}"
            f"{row.gigabytes_per_second:>9.0f}{row.tera_exponentials_per_second:>9.2f}"
            f"{row.floor:>9.1f}{row.median / row.floor:>8.1f}{ratio}"
        )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="dtype:batch x d_inner x L")
    parser.add_argument("--seconds", type=float, default=0.5, help="of replays a row")
    parser.add_argument("--chunk-length", type=int, default=0, help="of the scan; 0: the rule")
    parser.add_argument("--json", help="also write the rows to this file")
    options = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    _C.set_cuda_scan_plan(options.chunk_length)
    clock = Clock(options.seconds)
    bandwidth, exponentials = copy_bandwidth(clock), exponential_rate()
    facts = {
        "device": torch.cuda.get_device_name(),
        "torch": str(torch.__version__),
        "dmamba": dmamba.__version__,
        "copy_bandwidth": bandwidth,
        "exponentials": exponentials,
        "chunk_length": options.chunk_length,
    }
    print(
        f"{facts['device']}, torch {facts['torch']}, dmamba {facts['dmamba']}; copies "
        f"{bandwidth / 1e12:.2f} TB/s, exponentials {exponentials / 1e12:.2f} T/s; times in us"
    )
    print(
        f"{'':40}{'median':>10}{'quartiles':>20}{'GB/s':>9}{'T exp/s':>9}{'floor':>9}{'x floor':>8}"
    )
    rows: list[Row] = []
    for index, size in enumerate(options.sizes):
        found = measure_size(size, clock, bandwidth, exponentials, with_reference=index == 0)
        show(found)
        rows += found
        torch.cuda.empty_cache()
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(facts | {"rows": [asdict(row) for row in rows]}, file, indent=2)


if __name__ == "__main__":
    main()
