"""The same seed gives the same bits: digests of runs, of batches, and of every op on any number of
threads. Graphs beside single operators are in cuda/, resumed runs in test_training.py."""

import hashlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import tiny
from torch.utils.data import DataLoader, RandomSampler

import dmamba
from dmamba import _C, ops


def digest(tensors):
    found = hashlib.sha256()
    for tensor in tensors:
        array = tensor if isinstance(tensor, np.ndarray) else tensor.detach().contiguous().cpu()
        if isinstance(array, torch.Tensor):
            array = array.view(torch.uint8) if array.dim() else array.numpy()
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def files(run):
    """The digest of everything that a run has come to."""
    folder = run.latest_checkpoint()[1]
    found = hashlib.sha256()
    for path in (folder / "model.safetensors", folder / "optimizer.safetensors",
                 folder / "state.json", run.folder / "metrics.csv"):  # fmt: skip
        found.update(path.read_bytes())
    return found.hexdigest()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"token_mixer": ["attention"]},
        {"token_mixer": ["s4d"], "channel_mixing": "ssm"},
        {"token_mixer": ["convolution"]},
    ],
    ids=["mamba", "attention", "s4d", "convolution"],
)
def test_two_runs(dataset, tmp_path, settings):
    config = tiny(dataset, precision="bf16" if not settings else "fp32")
    config["model"] |= settings
    runs = [
        dmamba.train(config, output=tmp_path / name, progress=False, evaluate=False)
        for name in ("one", "two")
    ]
    assert files(runs[0]) == files(runs[1])
    if not settings:
        config["seed"] = 8
        other = dmamba.train(config, output=tmp_path / "other", progress=False, evaluate=False)
        assert files(other) != files(runs[0])


def trained_by_hand(dataset, workers):
    """The digest of a model after a loop of one's own over a DataLoader with so many workers."""
    segments = dmamba.data.SegmentDataset(dmamba.data.load(dataset), 5)
    generator = torch.Generator().manual_seed(3)
    sampler = RandomSampler(segments, replacement=True, num_samples=48, generator=generator)
    loader = DataLoader(segments, batch_size=8, sampler=sampler, num_workers=workers)
    torch.manual_seed(1)
    model = dmamba.nn.DMamba(11, 3, d_model=16, n_layer=1, context_length=5, dropout=0.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    seen = []
    for batch in loader:
        seen += batch.values()
        names = ("states", "actions", "returns_to_go", "timesteps", "mask")
        error = (model(*(batch[name] for name in names)) - batch["actions"]).square().mean(2)
        loss = (error * batch["mask"]).sum() / batch["mask"].sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return digest(seen), digest(model.parameters())


def test_workers_of_a_loader(dataset):
    expected = trained_by_hand(dataset, 0)
    for workers in (1, 3):
        assert trained_by_hand(dataset, workers) == expected, f"{workers} workers"


def test_batches_drawn_by_threads(dataset):
    store = dmamba.data.load(dataset)
    mean, std = store.state_statistics()
    sampler = _C.SegmentSampler(
        store=store, batch_size=32, context_length=6, seed=5, paper_padding=False, rtg_scale=10.0,
        state_mean=mean.tolist(), state_std=std.tolist(), max_timestep=50,
    )  # fmt: skip

    def batch(step):
        return digest(sampler.sample(step))

    alone = [batch(step) for step in range(40)]
    for threads in (2, 5):
        with ThreadPoolExecutor(threads) as pool:
            assert list(pool.map(batch, range(40))) == alone, f"{threads} threads"


def every_op(dtype):
    """What every op gives, forward and backward, at sizes that are cut into several parts."""
    generator = torch.Generator().manual_seed(9)
    real = torch.float64 if dtype == torch.float64 else torch.float32

    def normal(*shape, dtype=dtype):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    out = []
    for batch, length, d_inner, d_state, width in ((5, 40, 150, 16, 4), (1, 200, 300, 5, 3)):
        t = {
            "u": normal(batch, length, d_inner),
            "delta": normal(batch, length, d_inner),
            "A": -normal(d_inner, d_state, dtype=real).exp(),
            "B": normal(batch, length, d_state),
            "C": normal(batch, length, d_state),
            "D": normal(d_inner, dtype=real),
            "z": normal(batch, length, d_inner),
            "delta_bias": normal(d_inner, dtype=real),
            "initial_state": normal(batch, d_inner, d_state, dtype=real),
        }
        marks = {
            "mask": torch.rand(batch, length, generator=generator) > 0.2,
            "segment_starts": torch.rand(batch, length, generator=generator) < 0.1,
        }
        leaves = {name: tensor.requires_grad_() for name, tensor in t.items()}
        y, last = ops.selective_scan(**leaves, **marks, delta_softplus=True, return_last_state=True)
        weights = normal(*y.shape), normal(*last.shape, dtype=real)
        out += [y, last, *torch.autograd.grad((y, last), list(leaves.values()), weights)]
        conv = {
            "x": normal(batch, length, d_inner),
            "weight": normal(d_inner, width, dtype=real),
            "bias": normal(d_inner, dtype=real),
            "initial_state": normal(batch, d_inner, width - 1, dtype=real),
        }
        leaves = {name: tensor.requires_grad_() for name, tensor in conv.items()}
        y, last = ops.causal_conv1d(**leaves, **marks, return_last_state=True)
        weights = normal(*y.shape), normal(*last.shape, dtype=real)
        out += [y, last, *torch.autograd.grad((y, last), list(leaves.values()), weights)]
        with torch.no_grad():
            state, window = t["initial_state"].clone(), conv["initial_state"].clone()
            now = (t["u"][:, 0], t["delta"][:, 0], t["A"], t["B"][:, 0], t["C"][:, 0])
            out += [ops.selective_state_update(state, *now, delta_softplus=True), state]
            out += [ops.causal_conv1d_update(window, conv["x"][:, 0], conv["weight"]), window]
    x = normal(700, 210).requires_grad_()
    for op in (torch.ops.dmamba.gelu, lambda x: torch.ops.dmamba.dropout(x, 0.1, 3)):
        y = op(x)
        out += [y, *torch.autograd.grad(y, x, normal(700, 210))]
    slope, dy = normal(700, 210), normal(700, 210)
    out += [torch.ops.dmamba.bias_gelu_(slope, normal(210, dtype=real)), slope]
    out += [torch.ops.dmamba.multiply_sum_(dy, slope), dy]
    return digest(out)


@pytest.mark.parametrize("capability", _C.cpu_capabilities())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_every_op_on_any_number_of_threads(capability, dtype):
    threads, before = torch.get_num_threads(), _C.cpu_capability()
    _C.set_cpu_capability(capability)
    found = {}
    try:
        for n in (1, 2, 3, 5):
            torch.set_num_threads(n)
            found[n] = every_op(dtype)
    finally:
        torch.set_num_threads(threads)
        _C.set_cpu_capability(before)
    assert len(set(found.values())) == 1, found
