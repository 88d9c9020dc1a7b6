#!/usr/bin/env python3
"""Times the training step of one model on 1, 2, ... ranks, and the sum of its gradients alone.

    torchrun --standalone --nproc-per-node 2 scripts/benchmark_distributed.py [--device cuda]
        [--precision bf16] [--recipes atari gym] [--d-model 128 256 512 1024 2048]
        [--scaling strong weak] [--bucket-mib 4] [--steps 100] [--rounds 10]

strong: the recipe's batch is shared; weak: every rank has the recipe's batch. A round is a burst of
steps on all ranks, from one barrier to the last rank's end; the table has the median over the
rounds, and the speed-up in segments a second over one rank. `sum alone` is the all-reduce of the
gradients' bytes with nothing beside it, in the same buckets. The Atari recipe (6 layers of 128,
K 30, batch 256) draws from the bundled recording, gym (3 layers, K 20, batch 64) from the bundled
sample. On GPUs: NCCL, one GPU a rank, CUDA graphs; on CPUs: gloo, --threads a rank. Rank 0 prints.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist

import dmamba
from dmamba import _C, data
from dmamba.benchmarking import processor


def stores(recipes: list[str]) -> dict[str, Any]:
    """The data of each recipe."""
    names = {"atari": "samples/Breakout", "gym": "hopper-medium"}
    return {recipe: data.load(names[recipe], progress=False) for recipe in recipes}


def config_of(recipe: str, d_model: int, batch: int, options: argparse.Namespace) -> _C.Config:
    """A recipe of some width and batch, for ever."""
    config = dmamba.configuration.load_config(
        "atari-breakout" if recipe == "atari" else "hopper-sample"
    )
    config.model.d_model = d_model
    if recipe == "gym":
        config.model.n_layer, config.model.context_length = 3, 20
    else:
        config.model.context_length = options.context_length
    config.training.batch_size = batch
    config.training.steps = 10**9
    config.training.log_every = 10**9
    config.training.device = options.device
    config.training.precision = options.precision
    config.training.graph = options.graph
    config.training.threads = options.threads
    return config


def make_trainer(config: _C.Config, store: Any, core: _C.Ranks | None) -> tuple[_C.Trainer, Any]:
    """A trainer of this rank, and its model."""
    resolved = data.resolve(config, store)
    torch.manual_seed(0)
    model: Any
    if isinstance(store, _C.FrameStore):
        model = dmamba.nn.AtariDMamba(store.num_actions, config=resolved.model)
    else:
        model = dmamba.nn.DMamba(store.state_dim, store.act_dim, config=resolved.model)
    trainer = _C.Trainer(resolved, store, model.cpp_module, core)
    trainer.synchronize()
    return trainer, model


def synchronize(options: argparse.Namespace) -> None:
    """Waits for this rank's GPU."""
    if options.device == "cuda":
        torch.cuda.synchronize()


def rounds_of(
    work: Callable[[], None], count: int, control: Any, options: argparse.Namespace
) -> Iterator[float]:
    """Seconds of each round, of the slowest rank."""
    for index in range(options.rounds + 3):
        synchronize(options)
        dist.barrier(group=control)
        start = time.perf_counter()
        work()
        synchronize(options)
        elapsed = torch.tensor([time.perf_counter() - start])
        dist.all_reduce(elapsed, op=dist.ReduceOp.MAX, group=control)
        if index >= 3:
            yield elapsed.item() / count


def time_sum(elements: int, group: Any, control: Any, options: argparse.Namespace) -> float:
    """Milliseconds of the sum of so many float32, in buckets."""
    device = torch.device(options.device)
    size = int(options.bucket_mib * 2**20 / 4)
    buckets = [
        torch.zeros(min(size, elements - at), device=device) for at in range(0, elements, size)
    ]

    def work() -> None:
        for _ in range(10):
            for pending in [dist.all_reduce(b, group=group, async_op=True) for b in buckets]:
                pending.wait()

    return 1e3 * statistics.median(rounds_of(work, 10, control, options))


def measure(
    world: int, recipe: str, d_model: int, batch: int, store: Any, options: argparse.Namespace
) -> dict[str, float]:
    """Times of the first `world` ranks; every rank of the job has to call it."""
    backend = "nccl" if options.device == "cuda" else "gloo"
    members = list(range(world))
    group = dist.new_group(members, backend=backend)
    control = dist.new_group(members, backend="gloo")
    times: dict[str, float] = {}
    if dist.get_rank() < world:
        core = _C.Ranks(group, int(options.bucket_mib * 2**20)) if world > 1 else None
        trainer, model = make_trainer(config_of(recipe, d_model, batch, options), store, core)
        elements = sum(p.numel() for p in model.parameters())
        steps = [
            *rounds_of(
                lambda: trainer.run(1e9, options.steps) and None, options.steps, control, options
            )
        ]
        low, median, high = statistics.quantiles(steps, n=4)
        times = {"ms": 1e3 * median, "low": 1e3 * low, "high": 1e3 * high, "MiB": elements / 2**18}
        del trainer, model, core  # a captured graph must go before the communicator
        if world > 1:
            times["sum"] = time_sum(elements, group, control, options)
        for used in (group, control):
            dist.destroy_process_group(used)
    dist.barrier()
    return times


def print_head(options: argparse.Namespace) -> None:
    """The machine and the columns."""
    on_gpu = options.device == "cuda"
    machine = torch.cuda.get_device_name() if on_gpu else f"{processor()}, {_C.cpu_capability()}"
    print(
        f"{dist.get_world_size()} ranks on {machine}, {options.threads or 'default'} threads each, "
        f"torch {torch.__version__} (CUDA {torch.version.cuda}), dmamba {dmamba.__version__}, "
        f"{options.precision}, buckets of {options.bucket_mib:g} MiB, "
        f"{options.rounds} rounds of {options.steps} steps\n"
    )
    columns = ["recipe", "d_model", "scaling", "ranks", "batch, all", "gradients, MiB"]
    columns += ["ms a step (quartiles)", "speed-up", "sum alone, ms"]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|", flush=True)


def print_row(
    words: list[Any], times: dict[str, float], batch: int, first: tuple[float, int]
) -> None:
    """One measurement; `first`: ms and batch of one rank."""
    speedup = (batch / times["ms"]) / (first[1] / first[0])
    alone = f"{times['sum']:.3f}" if "sum" in times else ""
    print(
        f"| {' | '.join(map(str, words))} | {batch} | {times['MiB']:.2f} | {times['ms']:.3f} "
        f"({times['low']:.3f} to {times['high']:.3f}) | {speedup:.2f} | {alone} |",
        flush=True,
    )


def main() -> None:
    """Reads the options, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16", "tf32"), default="fp32")
    parser.add_argument("--recipes", nargs="+", choices=("atari", "gym"), default=["atari", "gym"])
    parser.add_argument("--d-model", type=int, nargs="+", default=[128, 256, 512, 1024, 2048])
    parser.add_argument("--scaling", nargs="+", choices=("strong", "weak"), default=["strong"])
    parser.add_argument("--context-length", type=int, default=30, help="of the Atari recipe")
    parser.add_argument("--batch-size", type=int, default=0, help="0: the recipe's, 256 or 64")
    parser.add_argument("--bucket-mib", type=float, default=4.0)
    parser.add_argument("--steps", type=int, default=100, help="a round")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=0, help="a rank, on CPUs; 0: torch's")
    parser.add_argument("--graph", choices=("auto", "on", "off"), default="auto")
    options = parser.parse_args()
    if options.device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("gloo")
    leads = dist.get_rank() == 0
    if leads:
        print_head(options)
    found = stores(options.recipes)
    worlds = [n for n in (1, 2, 4, 8, 16, 32, 64) if n <= dist.get_world_size()]
    for recipe, store in found.items():
        base = options.batch_size or (256 if recipe == "atari" else 64)
        for d_model in [128] if recipe == "atari" else options.d_model:
            for scaling in options.scaling:
                first = (0.0, 0)
                for world in worlds:
                    batch = base * world if scaling == "weak" else base
                    times = measure(world, recipe, d_model, batch, store, options)
                    if leads:
                        first = first if world > 1 else (times["ms"], batch)
                        print_row([recipe, d_model, scaling, world], times, batch, first)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
