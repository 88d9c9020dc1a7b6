#!/usr/bin/env python3
"""Times a step of a policy: on the CPU the recurrent one, beside the step by torch's operators.

    python scripts/benchmark_policy.py [--batch 1 64] [--threads 1] [--burst 20] [--seconds 10]
    python scripts/benchmark_policy.py --device cuda [--batch 64 512]

act() is what passes between an observation and its action, observe() takes that action in. Beside
them: the model's step by torch's operators (DMamba.step), and the step's matrix products alone, as
one torch.mm each for the three tokens of all environments. All take turns in one run, a burst of
steps each; with --burst 1 every step finds in the caches what the other programs left there.
Medians and quartiles in microseconds, each with the call from Python. On a GPU both policies are
timed, whose act() is a copy there, a CUDA graph and a copy back.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

import dmamba
from dmamba.benchmarking import processor
from dmamba.benchmarking.cases import policy_halves

# What a step consists of: names and calls, in their order.
Step = dict[str, Callable[[], object]]


def take_turns(steps: list[Step], burst: int, seconds: float) -> dict[str, list[float]]:
    """Times of the steps' calls in microseconds; a burst of each step, again and again."""
    times: dict[str, list[float]] = {name: [] for step in steps for name in step}
    for warm_up in (True, False):
        end = time.perf_counter() + (0.1 if warm_up else 1.0) * seconds
        while time.perf_counter() < end:
            for step in steps:
                for _ in range(burst):
                    for name, call in step.items():
                        start = time.perf_counter()
                        call()
                        elapsed = time.perf_counter() - start
                        if not warm_up:
                            times[name].append(elapsed * 1e6)
    return times


def policy_step(
    model: dmamba.nn.DMamba, batch: int, label: str, kind: str = "recurrent", weights: str = "fp32"
) -> Step:
    """The two halves of a policy's step."""
    act, observe = policy_halves(model, batch, kind, weights)
    return {f"act(), {label}": act, f"observe(), {label}": observe}


def model_step(model: dmamba.nn.DMamba, batch: int) -> Step:
    """The step by torch's operators."""
    cpp = model.cpp_module
    state = cpp.initial_state(batch)
    actions, rtg = torch.zeros(batch, model.act_dim), torch.ones(batch, 1)
    states, first = torch.randn(batch, model.state_dim), torch.zeros(batch, dtype=torch.bool)
    timesteps = torch.full((batch,), 7)
    step = lambda: cpp.step(actions, rtg, states, timesteps, first, state)  # noqa: E731
    return {"DMamba.step by torch's operators": step}


def matrix_products(model: dmamba.nn.DMamba, batch: int, dtype: torch.dtype) -> Step:
    """Every matrix of the layers by the three tokens, outputs in place."""
    names = ("in_proj", "x_proj", "dt_proj", "out_proj", "mlp_channels")
    products = []
    for name, weight in model.named_parameters():
        if any(part in name for part in names) and weight.dim() == 2:
            w = weight.detach().to(dtype)
            x = torch.randn(3 * batch, w.shape[1], dtype=dtype)
            products.append((x, w.t(), torch.empty(3 * batch, w.shape[0], dtype=dtype)))

    def run() -> None:
        for x, w, out in products:
            torch.mm(x, w, out=out)

    return {f"matrix products alone, {str(dtype)[6:]}": run}


def steps_of(model: dmamba.nn.DMamba, batch: int, device: str) -> tuple[list[Step], list[str]]:
    """What takes turns, and the labels of the policies among it."""
    if device == "cuda":
        kinds = ["recurrent", "windowed"]
        return [policy_step(model, batch, kind, kind=kind) for kind in kinds], kinds
    labels = {weights: f"{weights} weights" for weights in ("fp32", "bf16")}
    steps = [policy_step(model, batch, label, weights=w) for w, label in labels.items()]
    steps.append(model_step(model, batch))
    steps += [matrix_products(model, batch, t) for t in (torch.float32, torch.bfloat16)]
    return steps, list(labels.values())


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 64], help="environments")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--d-model", type=int, default=128)
    parser.add_argument("--n-layer", type=int, default=3)
    parser.add_argument("--state-dim", type=int, default=11)
    parser.add_argument("--act-dim", type=int, default=3)
    parser.add_argument("--burst", type=int, default=20, help="steps before another's turn")
    parser.add_argument("--seconds", type=float, default=10.0, help="per batch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = dmamba.nn.DMamba(
        options.state_dim, options.act_dim, d_model=options.d_model, n_layer=options.n_layer
    ).eval()
    model.to(options.device)
    machine = torch.cuda.get_device_name() if options.device == "cuda" else processor()
    print(
        f"{machine}, {options.threads} threads, torch {torch.__version__}, "
        f"dmamba {dmamba.__version__} ({dmamba._C.cpu_capability()})\n"
        f"d_model {options.d_model}, {options.n_layer} layers, state_dim {options.state_dim}, "
        f"act_dim {options.act_dim}; microseconds"
    )
    for batch in options.batch:
        steps, labels = steps_of(model, batch, options.device)
        with torch.no_grad():
            times = take_turns(steps, options.burst, options.seconds)
        for label in labels:
            halves = times[f"act(), {label}"], times[f"observe(), {label}"]
            whole = [a + b for a, b in zip(*halves, strict=True)]
            times[f"act() + observe(), {label}"] = whole
        print(f"{'batch ' + str(batch):<40}{'median':>9}{'quartiles':>18}")
        for name, values in sorted(times.items()):
            low, median, high = statistics.quantiles(values, n=4)
            print(f"  {name:<38}{median:>9.1f}{low:>9.1f}{high:>9.1f}")


if __name__ == "__main__":
    main()
