#!/usr/bin/env python3
"""Times the training step on the CPU beside its matrix products alone, in one run.

    python scripts/benchmark_train.py [--d-model 128] [--context-length 20] [--batch-size 64]

The step is everything: drawing the batch, forward, loss, backward, clipping, AdamW. The matrix
products are those of the same step (forward, and twice in the backward pass), on ready tensors. The
two take turns, so that a machine whose speed drifts is fair to both.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from benchmark_ops import processor

import dmamba
from dmamba import _C, data


def matrix_products(config: _C.ModelConfig, batch_size: int, state_dim: int, act_dim: int):
    """A function that does the matrix products of one step and nothing else."""
    d, K = config.d_model, config.context_length
    d_inner = config.expand * d
    dt_rank = config.dt_rank or (d + 15) // 16
    tokens, steps = 3 * K * batch_size, K * batch_size
    layer = [(d, 2 * d_inner), (d_inner, dt_rank + 2 * config.d_state), (dt_rank, d_inner)]
    layer += [(d_inner, d), (d, 4 * d), (4 * d, d)]
    shapes = [(tokens, *shape) for shape in layer] * config.n_layer
    shapes += [(steps, 1, d), (steps, state_dim, d), (steps, act_dim, d), (steps, d, act_dim)]
    operands = [(torch.randn(m, k), torch.randn(n, k), torch.randn(m, n)) for m, k, n in shapes]

    def run() -> None:
        for x, weight, gradient in operands:
            torch.mm(x, weight.t())
            torch.mm(gradient, weight)
            torch.mm(gradient.t(), x)

    return run


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--d-model", type=int, default=128)
    parser.add_argument("--context-length", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--n-layer", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    config = _C.Config()
    config.dataset.rtg_scale = 1000.0
    config.model.d_model = options.d_model
    config.model.context_length = options.context_length
    config.model.n_layer = options.n_layer
    config.training.batch_size = options.batch_size
    store = data.load("hopper-medium")
    model = dmamba.nn.DMamba(store.state_dim, store.act_dim, config.model)
    trainer = _C.Trainer(config, store, model.cpp_module)
    products = matrix_products(config.model, options.batch_size, store.state_dim, store.act_dim)

    steps, alone = [], []
    for round_index in range(options.rounds + 3):
        start = time.perf_counter()
        trainer.run(max_steps=1)
        middle = time.perf_counter()
        products()
        end = time.perf_counter()
        if round_index >= 3:
            steps.append(middle - start)
            alone.append(end - middle)
    print(
        f"{processor()}, {options.threads} threads, {_C.cpu_capability()}, torch "
        f"{torch.__version__}, dmamba {dmamba.__version__}\n"
        f"d_model {options.d_model}, {options.n_layer} layers, K {options.context_length}, "
        f"batch {options.batch_size}, fp32; times in ms over {options.rounds} rounds"
    )
    print(f"{'':26}{'median':>9}{'quartiles':>18}{'minimum':>9}")
    for name, times in (("training step", steps), ("its matrix products alone", alone)):
        low, median, high = (1e3 * t for t in statistics.quantiles(times, n=4))
        print(f"{name:<26}{median:>9.1f}{low:>9.1f}{high:>9.1f}{1e3 * min(times):>9.1f}")
    ratio = statistics.median(s / a for s, a in zip(steps, alone, strict=True))
    print(
        f"step / products, median of pairs {ratio:.2f}; {1 / statistics.median(steps):.1f} steps/s"
    )


if __name__ == "__main__":
    main()
