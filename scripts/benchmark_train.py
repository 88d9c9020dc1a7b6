#!/usr/bin/env python3
"""Times the training step: on the CPU beside its matrix products alone, on a GPU in bursts.

    python scripts/benchmark_train.py [--d-model 128] [--context-length 20] [--batch-size 64]
    python scripts/benchmark_train.py --device cuda [--precision fp32|tf32|bf16] [--steps 200]
        [--runs 8] [--graph off] [--data host] [--game FOLDER] [model.token_mixer=attention ...]

The step is everything: drawing the batch, its way to the device, forward, loss, backward, clipping,
AdamW. On the CPU it takes turns with the matrix products of the same step (forward, and twice in
the backward pass) on ready tensors, so that a machine whose speed drifts is fair to both. On a GPU
a round is a burst of steps, until the GPU has done the last one.
--game trains the model for Atari games, frames and their encoder included, on a recording in
DQN-replay's layout. Several runs at once are trainers in threads of their own, as the seeds of an
experiment; the time is then that of a step of all of them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import torch

import dmamba
from dmamba import _C, data
from dmamba.benchmarking import cases, processor


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


def make_trainer(options: argparse.Namespace) -> tuple[_C.Trainer, _C.Config, _C.EpisodeStore]:
    """A trainer of the size that the options give, on the bundled sample or a recorded game."""
    config = cases.standard_config(options.device, options.precision)
    config.model.d_model = options.d_model
    config.model.context_length = options.context_length
    config.model.n_layer = options.n_layer
    config.training.batch_size = options.batch_size
    config.training.graph = options.graph
    config.training.data = options.data
    config.override(options.settings)
    store: _C.EpisodeStore
    if options.game:
        config.dataset.rtg_scale = 1.0
        store = _C.open_replay(options.game)
        config.model.max_timestep = int(store.episode_lengths.max()) + 1
    else:
        store = data.load("hopper-medium")
    return cases.make_trainer(config, store), config, store


def time_beside_products(options: argparse.Namespace) -> dict[str, list[float]]:
    """Milliseconds of single steps on the CPU, and of their matrix products."""
    trainer, config, store = make_trainer(options)
    products = matrix_products(config.model, options.batch_size, store.state_dim, store.act_dim)
    times: dict[str, list[float]] = {"training step": [], "its matrix products alone": []}
    for round_index in range(options.rounds + 3):
        start = time.perf_counter()
        trainer.run(max_steps=1)
        middle = time.perf_counter()
        products()
        end = time.perf_counter()
        if round_index >= 3:
            times["training step"].append(1e3 * (middle - start))
            times["its matrix products alone"].append(1e3 * (end - middle))
    return times


def run_together(trainers: list[_C.Trainer], steps: int) -> None:
    """Runs each trainer for `steps` steps, in a thread of its own where there are several."""
    if len(trainers) == 1:
        trainers[0].run(seconds=1e9, max_steps=steps)
        return
    with ThreadPoolExecutor(len(trainers)) as pool:
        for future in [pool.submit(t.run, seconds=1e9, max_steps=steps) for t in trainers]:
            future.result()


def time_bursts(options: argparse.Namespace) -> dict[str, list[float]]:
    """Milliseconds a step on a GPU, a mean over each burst."""
    trainers = [make_trainer(options)[0] for _ in range(options.runs)]
    times = []
    for round_index in range(options.rounds + 3):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run_together(trainers, options.steps)
        torch.cuda.synchronize()
        if round_index >= 3:
            times.append(1e3 * (time.perf_counter() - start) / options.steps)
    return {"training step": times}


def report(options: argparse.Namespace, times: dict[str, list[float]]) -> None:
    """Prints the machine and the table."""
    on_gpu = options.device == "cuda"
    machine = torch.cuda.get_device_name() if on_gpu else f"{processor()}, {_C.cpu_capability()}"
    print(
        f"{machine}, {options.threads} threads, torch {torch.__version__} (CUDA "
        f"{torch.version.cuda}), dmamba {dmamba.__version__}\n"
        f"d_model {options.d_model}, {options.n_layer} layers, K {options.context_length}, "
        f"batch {options.batch_size}, {options.precision}; times in ms over {options.rounds} rounds"
        + (f" of {options.steps} steps; {options.runs} at once" if on_gpu else "")
    )
    print(f"{'':26}{'median':>9}{'quartiles':>18}{'minimum':>9}")
    for name, values in times.items():
        low, median, high = statistics.quantiles(values, n=4)
        print(f"{name:<26}{median:>9.3f}{low:>9.3f}{high:>9.3f}{min(values):>9.3f}")
    steps = times["training step"]
    print(f"{1e3 * options.runs / statistics.median(steps):.1f} steps/s", end="")
    if on_gpu:
        print(f"; at most {torch.cuda.max_memory_allocated() / 2**20:.0f} MiB of tensors")
    else:
        pairs = zip(steps, times["its matrix products alone"], strict=True)
        ratio = statistics.median(step / alone for step, alone in pairs)
        print(f"; step / products, median of pairs {ratio:.2f}")


def main() -> None:
    """Reads the options, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("settings", nargs="*", metavar="key=value", help="of the configuration")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16", "tf32"), default="fp32")
    parser.add_argument("--d-model", type=int, default=128)
    parser.add_argument("--context-length", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--n-layer", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--steps", type=int, default=100, help="a round, on a GPU")
    parser.add_argument("--runs", type=int, default=1, help="trainers at once, on a GPU")
    parser.add_argument("--graph", choices=("auto", "on", "off"), default="auto")
    parser.add_argument("--data", choices=("auto", "device", "host"), default="auto")
    parser.add_argument("--game", default="", help="a DQN-replay folder, on a GPU")
    options = parser.parse_args()
    if options.game and options.device == "cpu":
        parser.error("--game is for --device cuda")
    torch.set_num_threads(options.threads)
    report(options, (time_bursts if options.device == "cuda" else time_beside_products)(options))


if __name__ == "__main__":
    main()
