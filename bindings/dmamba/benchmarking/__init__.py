"""What this machine reaches: the library's work timed beside the same in plain PyTorch, in one run.

machine.py  the processor, and how busy others keep it
timing.py   calls that take turns
cases.py    what is timed, and against what
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from dmamba import _C, data
from dmamba.benchmarking import cases, machine
from dmamba.benchmarking.machine import processor
from dmamba.benchmarking.timing import ratio, spread, take_turns
from dmamba.common import scores
from dmamba.display.progress import bar
from dmamba.training import summary

__all__ = ["PARTS", "benchmark", "format_result", "processor"]

SECONDS, QUICK_SECONDS = 9.0, 2.0  # a part, beside the warm-up
PARTS = {
    "training step": "ms",
    "scan, forward": "ms",
    "scan, forward + backward": "ms",
    "policy's step": "us",
}
_SCALES = {"ms": 1e3, "us": 1e6}


def benchmark(
    device: str = "auto",
    *,
    precision: str = "fp32",
    threads: int | None = None,
    seconds: float = SECONDS,
    progress: bool = True,
) -> dict[str, Any]:
    """Times the standard recipe's training step, its scan, and the policy's step.

    The recipe is d_model 128, 3 layers, K 20, batch 64, on the bundled hopper-medium episodes. Each
    part and its peers take turns in rounds, after a warm-up.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: Of the training step, as ``training.precision``; the scan and the policy compute
            in float32.
        threads: Of torch on the CPU; None: as it is.
        seconds: How long the rounds of each part last.
        progress: Whether to show a bar.

    Returns:
        A dict with ``machine`` (see :func:`dmamba.benchmarking.machine.describe`; also
        ``other_programs_cores``, what others used meanwhile, and whether that ``disturbs``),
        ``versions``, ``recipe``, ``absent`` (why a peer is not there, by name), ``time_seconds``
        and ``parts``: dicts with ``name``, ``unit`` and ``rows``, ours first: dicts with ``name``,
        ``median``, quartiles ``low`` and ``high``, ``rounds``, and ``ratio``, how many times as
        long as ours it takes (the median over the rounds; None for ours).

    Raises:
        ConfigError: No such device, an impossible precision or number.

    Example:
        >>> result = dmamba.benchmarking.benchmark("cpu", seconds=2)
        >>> [(row["name"], row["median"]) for row in result["parts"][0]["rows"]]
    """
    chosen = torch.device(_C.resolve_device(device, "benchmark device"))
    _check(precision, threads, seconds, chosen)
    config = cases.standard_config(chosen.type, precision)
    config.validate()
    store = data.load("samples/hopper-medium")
    assert isinstance(store, _C.TrajectoryStore)
    started, parts = time.perf_counter(), []
    with _threads(threads), machine.OtherWork() as others:
        facts = machine.describe(chosen)
        with bar(len(PARTS), "benchmark", "part", enabled=progress) as shown:
            for name, case in _cases(config, store, chosen):
                shown.set_postfix_str(name)
                parts.append(_measure(name, case, seconds, chosen))
                shown.update()
    facts |= {"other_programs_cores": others.cores, "disturbs": others.disturbs}
    absent = cases.mamba_ssm_reason(chosen)
    return {
        "machine": facts,
        "versions": _versions(),
        "recipe": _recipe(config),
        "absent": {cases.MAMBA_SSM: absent} if absent else {},
        "parts": parts,
        "time_seconds": time.perf_counter() - started,
    }


def _check(precision: str, threads: int | None, seconds: float, device: torch.device) -> None:
    if precision not in ("fp32", "bf16", "tf32"):
        raise _C.ConfigError(f"precision must be fp32, bf16 or tf32, got {precision!r}")
    if precision == "tf32" and device.type == "cpu":
        raise _C.ConfigError("precision tf32 is a GPU's; on a CPU choose fp32 or bf16")
    if threads is not None and threads < 1:
        raise _C.ConfigError(f"threads must be at least 1, got {threads}")
    if not 0.0 < seconds < float("inf"):
        raise _C.ConfigError(f"seconds must be positive, got {seconds}")


@contextlib.contextmanager
def _threads(number: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _cases(
    config: _C.Config, store: _C.TrajectoryStore, device: torch.device
) -> Iterator[tuple[str, cases.Case]]:
    """One after the other: a part's tensors are freed before the next one's are made."""
    training, forward, both, policy = PARTS
    yield training, cases.training_step(config, store, device)
    yield from zip((forward, both), cases.scan(config, device), strict=True)
    yield policy, cases.policy_step(config, store, device)


def _measure(name: str, case: cases.Case, seconds: float, device: torch.device) -> dict[str, Any]:
    wait: Callable[[], object] | None = torch.cuda.synchronize if device.type == "cuda" else None
    times = take_turns(case, seconds, wait)
    unit = PARTS[name]
    own, *_ = times.values()
    rows: list[dict[str, Any]] = []
    for row, values in times.items():
        scaled = spread([_SCALES[unit] * value for value in values])
        rows.append({"name": row, **scaled, "ratio": ratio(values, own) if rows else None})
    return {"name": name, "unit": unit, "rows": rows}


def _versions() -> dict[str, str | None]:
    found = {**summary.versions(), "cuda": torch.version.cuda, cases.MAMBA_SSM: None}
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        found[cases.MAMBA_SSM] = importlib.metadata.version("mamba-ssm")
    names = ("dmamba", "torch", "cuda", "python", "compiler", cases.MAMBA_SSM)
    return {name: found[name] for name in names}


def _recipe(config: _C.Config) -> dict[str, Any]:
    model, training = config.model, config.training
    names = ("d_model", "n_layer", "context_length", "d_state", "expand")
    return {
        "dataset": "hopper-medium (sample)",
        **{name: getattr(model, name) for name in names},
        "batch_size": training.batch_size,
        "precision": training.precision,
    }


def format_result(result: dict[str, Any]) -> str:
    """The text of ``dmamba benchmark``."""
    recipe, versions = result["recipe"], result["versions"]
    cuda = f" (CUDA {versions['cuda']})" if versions["cuda"] else ""
    lines = [
        _format_machine(result["machine"]),
        f"dmamba {versions['dmamba']}, torch {versions['torch']}{cuda}, Python {versions['python']}"
        + (f", mamba_ssm {versions['mamba_ssm']}" if versions["mamba_ssm"] else ""),
        f"d_model {recipe['d_model']}, {recipe['n_layer']} layers, K {recipe['context_length']}, "
        f"batch {recipe['batch_size']}, {recipe['precision']}; the scan in fp32; the policy for "
        "one environment",
    ]
    for part in result["parts"]:
        rows = [[f"{part['name']}, {part['unit']}", "median", "quartiles", "rounds", "times ours"]]
        for row in part["rows"]:
            quartiles = f"{_digits(row['low'])} to {_digits(row['high'])}"
            times = "" if row["ratio"] is None else f"{row['ratio']:.{int(row['ratio'] < 10)}f}"
            name = f"  {row['name']}"
            rows.append([name, _digits(row["median"]), quartiles, str(row["rounds"]), times])
        lines += ["", scores.format_table(rows, indent="")]
    step = result["parts"][0]["rows"][0]["median"] / 1e3
    lines += ["", f"10,000 training steps take about {_duration(1e4 * step)} here"]
    lines += [f"{name}: {reason}" for name, reason in result["absent"].items()]
    return "\n".join([*lines, *_format_disturbance(result["machine"])])


def _format_machine(facts: dict[str, Any]) -> str:
    cores = f"{facts['usable_cores']} of {facts['cores']} cores, {facts['threads']} threads"
    where = f"{facts['processor']} ({facts['instructions']}), {cores}"
    return f"{facts['gpu']}; {where}" if facts["gpu"] else where


def _format_disturbance(facts: dict[str, Any]) -> list[str]:
    if not facts["disturbs"]:
        return []
    return [
        f"not a quiet machine: other programs kept {facts['other_programs_cores']:.1f} of "
        f"{facts['cores']} cores busy meanwhile; times are longer than they need be"
    ]


def _digits(value: float) -> str:
    """Four significant digits, without an exponent."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.4g}"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
