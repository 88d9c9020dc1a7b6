#!/usr/bin/env python3
"""Times a layer of Decision Mamba on a GPU: forward and backward, by CUDA graph replay.

    python scripts/benchmark_layer.py [--d-model 128] [--context-length 20] [--batch-size 64]

Whole models of one and of three layers are captured, forward, a sum as the loss, and backward; half
of the difference is a layer. Without the channel mixer that is the Mamba block with its norm and
residual; the rest is the channel mixer's. No optimizer, no data; dropout is off.
"""

from __future__ import annotations

import argparse
import contextlib

import torch
from benchmark_gpu import LAUNCHES, Clock

import dmamba
from dmamba import _C


def model_time(options: argparse.Namespace, n_layer: int, mixing: str, precision: str) -> float:
    """Microseconds of one forward and backward pass."""
    torch.manual_seed(0)
    config = _C.ModelConfig()
    config.d_model = options.d_model
    config.context_length = options.context_length
    config.n_layer = n_layer
    config.channel_mixing = mixing
    config.dropout = 0.0
    model = dmamba.nn.DMamba(11, 3, config).to("cuda")
    batch, K = options.batch_size, options.context_length
    states, actions, rtg = (torch.randn(batch, K, n, device="cuda") for n in (11, 3, 1))
    timesteps = torch.arange(K, device="cuda").expand(batch, K).contiguous()
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"

    def run() -> None:
        cast = (
            torch.autocast("cuda", torch.bfloat16)
            if precision == "bf16"
            else contextlib.nullcontext()
        )
        with cast:
            loss = model(states, actions, rtg, timesteps).float().sum()
        loss.backward()

    return 1e6 * Clock(options.seconds).measure(run)[1]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--d-model", type=int, default=128)
    parser.add_argument("--context-length", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=0.3, help="measured for each row")
    options = parser.parse_args()
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, dmamba {dmamba.__version__}; "
        f"{options.batch_size} x {3 * options.context_length} x {options.d_model}, us, medians of "
        f"replays of {LAUNCHES} passes"
    )
    print(f"{'':6}{'model, 3 layers':>17}{'layer':>9}{'Mamba block':>13}{'channel mixer':>15}")
    for precision in ("fp32", "tf32", "bf16"):
        times = {
            (n_layer, mixing): model_time(options, n_layer, mixing, precision)
            for n_layer in (1, 3)
            for mixing in ("mlp", "none")
        }
        layer = (times[3, "mlp"] - times[1, "mlp"]) / 2
        block = (times[3, "none"] - times[1, "none"]) / 2
        print(f"{precision:6}{times[3, 'mlp']:17.1f}{layer:9.1f}{block:13.1f}{layer - block:15.1f}")


if __name__ == "__main__":
    main()
