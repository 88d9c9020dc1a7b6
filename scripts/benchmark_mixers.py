#!/usr/bin/env python3
"""Times the training step with each token mixer and channel mixer, in turns, on one machine.

    python scripts/benchmark_mixers.py [--device cuda] [--precision bf16] [--d-model 128]
        [--context-length 20] [--batch-size 64] [--rounds 12] [--steps 100]

A round is a burst of steps of each variant, until the device has done the last one. The table has
the model's parameters, and the median and quartiles of milliseconds a step.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from benchmark_train import make_trainer

import dmamba
from dmamba import _C
from dmamba.benchmarking import processor

VARIANTS = {
    "mamba, mlp": [],
    "mamba, ssm": ["model.channel_mixing=ssm"],
    "mamba, none": ["model.channel_mixing=none"],
    "attention, mlp": ["model.token_mixer=attention"],
    "attention, none": ["model.token_mixer=attention", "model.channel_mixing=none"],
    "convolution, mlp": ["model.token_mixer=convolution"],
    "convolution, none": ["model.token_mixer=convolution", "model.channel_mixing=none"],
    "s4d, mlp": ["model.token_mixer=s4d"],
    "s4d, none": ["model.token_mixer=s4d", "model.channel_mixing=none"],
    "mamba mamba attention, mlp": ["model.token_mixer=[mamba,mamba,attention]"],
    "mamba, mlp; states and actions": ["model.rtg=none"],
    "mamba, mlp; returns and states": ["model.past_actions=none"],
}


def parameters(options: argparse.Namespace) -> int:
    """Of the model that the settings give."""
    config = _C.Config()
    config.model.d_model, config.model.n_layer = options.d_model, options.n_layer
    config.override(options.settings)
    store = dmamba.data.load("hopper-medium")
    model = dmamba.nn.DMamba(store.state_dim, store.act_dim, config.model)
    return sum(p.numel() for p in model.parameters())


def main() -> None:
    """Reads the options, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16", "tf32"), default="fp32")
    parser.add_argument("--d-model", type=int, default=128)
    parser.add_argument("--context-length", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, help="a round; default: 100 on a GPU, 1 on a CPU")
    parser.add_argument("--threads", type=int, default=2)
    parser.set_defaults(n_layer=3, graph="auto", data="auto", game="")
    options = parser.parse_args()
    steps = options.steps or (100 if options.device == "cuda" else 1)
    torch.set_num_threads(options.threads)
    trainers, counts = {}, {}
    for name, settings in VARIANTS.items():
        options.settings = settings
        trainers[name], counts[name] = make_trainer(options)[0], parameters(options)
    times: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for round_index in range(options.rounds + 2):
        for name, trainer in trainers.items():
            start = time.perf_counter()
            trainer.run(seconds=1e9, max_steps=steps)
            if options.device == "cuda":
                torch.cuda.synchronize()
            if round_index >= 2:
                times[name].append(1e3 * (time.perf_counter() - start) / steps)
    on_gpu = options.device == "cuda"
    machine = torch.cuda.get_device_name() if on_gpu else f"{processor()}, {_C.cpu_capability()}"
    print(
        f"{machine}, torch {torch.__version__} (CUDA {torch.version.cuda}), dmamba "
        f"{dmamba.__version__}; d_model {options.d_model}, 3 layers, K {options.context_length}, "
        f"batch {options.batch_size}, {options.precision}\n"
        "| token mixer, channel mixer | parameters | ms a step | quartiles |\n|---|---|---|---|"
    )
    for name, values in times.items():
        low, median, high = statistics.quantiles(values, n=4)
        print(f"| {name} | {counts[name]:,} | {median:.3f} | {low:.3f} to {high:.3f} |")


if __name__ == "__main__":
    main()
