"""A loss or a gradient that is not finite on a GPU: found there, in a graph, without a wait."""

import hashlib
import json
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from support import needs_cuda

sys.path.append(str(Path(__file__).parents[1]))
from conftest import tiny, write_dataset  # noqa: E402
from own_models import Poisoned  # noqa: E402

import dmamba  # noqa: E402

pytestmark = needs_cuda
GRAPH = pytest.mark.parametrize("graph", ["on", "off"])


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "tiny.hdf5")


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Some actions have squares that overflow."""
    path = write_dataset(tmp_path_factory.mktemp("data") / "large.hdf5")
    with h5py.File(path, "r+") as file:
        file["actions"][40] = 3e20
    return path


def read(path):
    """The floats of a checkpoint's file, by name."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header.pop("__metadata__", None)
    return {
        name: np.frombuffer(data[end:], np.uint8)[slice(*entry["data_offsets"])].view(np.float32)
        for name, entry in header.items()
        if entry["dtype"] == "F32"
    }


def tensors(run):
    folder = run.latest_checkpoint()[1]
    return read(folder / "model.safetensors") | read(folder / "optimizer.safetensors")


def assert_same(run, other):
    mine, theirs = tensors(run), tensors(other)
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if mine[name].tobytes() != theirs[name].tobytes()] == []


class Recorder(dmamba.Callback):
    """The digest of parameters and moments at every checkpoint."""

    def __init__(self):
        self.found = {}

    def on_checkpoint(self, run, path):
        digest = hashlib.sha256()
        for name in ("model", "optimizer"):
            for _, values in sorted(read(path / f"{name}.safetensors").items()):
                digest.update(values.tobytes())
        self.found[int(path.name[5:])] = digest.hexdigest()


def train(config, folder, *overrides, **arguments):
    return dmamba.train(
        config, list(overrides), output=folder, progress=False, evaluate=False, **arguments
    )


def on_gpu(recording, graph, **training):
    return tiny(recording, **{"device": "cuda", "graph": graph, **training})


@GRAPH
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_skipped_step_moves_nothing(recording, tmp_path, graph, what):
    config = on_gpu(recording, graph, skip_nan_batches=3, checkpoint_every=1)
    recorder = Recorder()
    bad = (0, 1, 12, 13, 14)
    output = tmp_path / "run"
    run = train(config, output, model=Poisoned.at(*bad, what=what), callbacks=[recorder])
    found = recorder.found
    assert found[0] == found[1] == found[2] != found[3]
    assert found[12] == found[13] == found[14] == found[15] != found[16]
    assert len(set(found.values())) == 31 - 5
    assert run.metrics()["training/skipped"].tolist() == [2, 0, 0, 3, 0, 0, 0, 0]
    assert run.summary()["skipped_steps"] == 5
    assert all(np.isfinite(values).all() for values in tensors(run).values())


@GRAPH
def test_the_run_stops_before_the_step_and_goes_on(recording, tmp_path, graph):
    config = on_gpu(recording, graph)
    with pytest.raises(dmamba.NotFiniteError, match=r"step 18 \(seed 7\).*8 segments of") as caught:
        train(config, tmp_path / "run", model=Poisoned.at(17))
    assert "those of step 17" in str(caught.value) and "step-00000010" in str(caught.value)
    run = dmamba.Run(tmp_path / "run")
    assert [step for step, _ in run.checkpoints()] == [0, 10]
    assert run.metrics()["step"].tolist() == [4, 8, 12, 16]
    leave = "training.skip_nan_batches=1"
    run = train(None, tmp_path / "run", leave, resume=True, model=Poisoned.at(17))
    whole = train(config, tmp_path / "whole", leave, model=Poisoned.at(17))
    assert (run.folder / "metrics.csv").read_bytes() == (whole.folder / "metrics.csv").read_bytes()
    assert_same(run, whole)


@GRAPH
def test_too_many_in_a_row_stop_the_run(recording, tmp_path, graph):
    config = on_gpu(recording, graph, skip_nan_batches=2)
    with pytest.raises(dmamba.NotFiniteError, match=r"step 20 .*after 2 before it"):
        train(config, tmp_path / "run", model=Poisoned.at(5, 8, 9, 17, 18, 19))
    assert dmamba.Run(tmp_path / "run").metrics()["training/skipped"].tolist() == [0, 1, 2, 0]


def test_the_graph_is_as_the_single_operators(recording, tmp_path):
    runs = [
        train(
            on_gpu(recording, graph, skip_nan_batches=2),
            tmp_path / graph,
            model=Poisoned.at(3, 20),
        )
        for graph in ("on", "off")
    ]
    assert_same(*runs)


@GRAPH
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_built_in_model(large, tmp_path, graph, precision):
    """The whole step is the library's own, the weights' mirrors too."""
    config = on_gpu(large, graph, precision=precision, steps=200)
    with pytest.raises(dmamba.NotFiniteError, match="its batch: 8 segments of"):
        train(config, tmp_path / "stopped")
    leave = "training.skip_nan_batches=10"
    run = train(config, tmp_path / "run", leave)
    assert 0 < run.summary()["skipped_steps"] < 100
    assert all(np.isfinite(values).all() for values in tensors(run).values())
    if precision == "fp32":
        other = train(config, tmp_path / "cpu", leave, "training.device=cpu")
        skipped = [r.metrics()["training/skipped"].tolist() for r in (run, other)]
        assert skipped[0] == skipped[1]


def test_finite_runs_keep_their_bits(recording, tmp_path):
    """Leave to skip changes nothing where there is nothing to skip."""
    runs = [
        train(on_gpu(recording, "on", skip_nan_batches=limit), tmp_path / str(limit))
        for limit in (0, 5)
    ]
    assert_same(*runs)
