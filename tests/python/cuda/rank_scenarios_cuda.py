"""What test_cuda_ranks.py has two processes do: torchrun ... rank_scenarios_cuda.py FOLDER BACKEND

BACKEND is nccl, a GPU a rank, or gloo, which cannot be captured, on one GPU. Rank R writes
BACKEND-R.json into FOLDER, which holds a recorded game.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

import dmamba
from dmamba import _C, data

STEPS = 20
# Widths of the fused launches, and one whose dropout masks begin within a stretch of 64.
CASES = {
    "fused": {"d_model": 64, "context_length": 20, "batch_size": 16, "data": "device"},
    "host data": {"d_model": 64, "context_length": 20, "batch_size": 16, "data": "host"},
    "composed": {"d_model": 16, "context_length": 5, "batch_size": 6, "data": "device"},
    "bf16": {"d_model": 128, "context_length": 20, "batch_size": 16, "precision": "bf16"},
    "games": {"d_model": 128, "context_length": 12, "batch_size": 6, "data": "device"},
    "games, host data": {"d_model": 128, "context_length": 12, "batch_size": 6, "data": "host"},
}


def config_of(case: str, graph: str) -> _C.Config:
    """A configuration of one of the cases, on the GPU."""
    config = _C.Config()
    config.seed = 3
    config.dataset.rtg_scale = 1000.0
    config.model.n_layer = 2
    config.model.max_timestep = 1000
    config.training.steps, config.training.warmup_steps, config.training.log_every = STEPS, 5, 1
    config.training.device, config.training.graph = "cuda", graph
    if case.startswith("games"):
        config.training.learning_rate = 1e-5  # as tests/python/test_ranks.py
    for key, value in CASES[case].items():
        setattr(config.model if hasattr(config.model, key) else config.training, key, value)
    return config


def train(case: str, folder: Path, core: _C.Ranks | None, graph: str) -> dict:
    """Losses, norms and a digest of the parameters of a trainer of this process."""
    config = config_of(case, graph)
    torch.manual_seed(config.seed)
    if case.startswith("games"):
        store = _C.open_replay(str(folder))
        model = dmamba.nn.AtariDMamba(4, config=config.model)
    else:
        store = data.load("hopper-medium")
        model = dmamba.nn.DMamba(store.state_dim, store.act_dim, config=config.model)
    trainer = _C.Trainer(config, store, model.cpp_module, core)
    trainer.synchronize()
    rows = trainer.run(1e9)
    parameters = torch.cat([p.detach().flatten() for p in model.parameters()]).cpu()
    found = {
        "losses": [row["training/loss"] for row in rows],
        "norms": [row["training/grad_norm"] for row in rows],
        "digest": hashlib.sha256(parameters.numpy().tobytes()).hexdigest(),
        "graph": trainer.uses_graph,
    }
    trainer.release()
    return found


def main() -> None:
    """Trains every case twice."""
    folder, backend = Path(sys.argv[1]), sys.argv[2]
    rank = int(os.environ["RANK"])
    torch.cuda.set_device(rank if backend == "nccl" else 0)
    dist.init_process_group("gloo")
    core = _C.Ranks(dist.new_group(backend=backend), bucket_bytes=100_000)
    graphs = ("on", "off", "on") if backend == "nccl" else ("off", "off")
    results = {case: [train(case, folder, core, graph) for graph in graphs] for case in CASES}
    (folder / f"{backend}-{rank}.json").write_text(json.dumps(results))
    del core
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
