"""Models of one's own, captures and the choice of K on a GPU."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import needs_cuda
from test_cuda_training import largest_relative_difference

sys.path.append(str(Path(__file__).parents[1]))
from conftest import tiny, write_dataset  # noqa: E402
from own_models import Wrapped  # noqa: E402

import dmamba  # noqa: E402

pytestmark = needs_cuda
QUIET = {"progress": False, "evaluate": False}


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """A tiny dataset."""
    return write_dataset(tmp_path_factory.mktemp("data") / "tiny.hdf5")


def config_of(recording, **training):
    config = tiny(recording, log_every=1, **{"device": "cuda", **training})
    config["model"] |= {"d_model": 64, "dropout": 0.0, "embedding_dropout": 0.0}
    return config


def test_a_wrapped_model_trains_as_the_built_in_one(recording, tmp_path):
    config = config_of(recording)
    plain = dmamba.train(config, output=tmp_path / "plain", **QUIET).metrics()
    own = dmamba.train(config, model=Wrapped, output=tmp_path / "own", **QUIET).metrics()
    losses = own["training/loss"], plain["training/loss"]
    assert largest_relative_difference(*losses) <= 1e-3


def test_it_is_recorded_into_a_graph_with_the_same_bits_and_resumes(recording, tmp_path):
    files = []
    for graph in ("off", "on"):
        config = config_of(recording, graph=graph)
        run = dmamba.train(config, model=Wrapped, output=tmp_path / graph, **QUIET)
        files.append((run.latest_checkpoint()[1] / "model.safetensors").read_bytes())
    assert files[0] == files[1]

    class Stop(dmamba.Callback):
        def on_checkpoint(self, run, path):
            if path.name.endswith("10"):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dmamba.train(config, model=Wrapped, output=tmp_path / "cut", callbacks=[Stop()], **QUIET)
    run = dmamba.train(None, model=Wrapped, output=tmp_path / "cut", resume=True, **QUIET)
    assert (run.latest_checkpoint()[1] / "model.safetensors").read_bytes() == files[0]


def test_generators_are_seeded_before_python_has_used_the_gpu():
    """In a process whose C++ alone has: torch.cuda has no generators until it is initialised."""
    program = """
import torch
from dmamba.nn.external import seeded
with seeded(3, torch.device("cuda:0")):
    first = torch.rand(2, device="cuda")
with seeded(3, torch.device("cuda:0")):
    assert torch.equal(first, torch.rand(2, device="cuda"))
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_a_capture_is_that_of_the_cpu():
    torch.manual_seed(0)
    model = dmamba.nn.DMamba(5, 2, d_model=64, n_layer=2, context_length=7, max_timestep=50).eval()
    batch = (
        torch.randn(3, 7, 5),
        torch.randn(3, 7, 2),
        torch.randn(3, 7, 1),
        torch.arange(7).repeat(3, 1),
        torch.ones(3, 7, dtype=torch.bool),
    )
    expected = model.capture(*batch)
    batch = tuple(part.cuda() for part in batch)
    model = model.cuda()
    captured = model.capture(*batch)
    assert torch.equal(captured.output, model(*batch))
    for name, tensor in expected.items():
        assert captured[name].is_cuda
        torch.testing.assert_close(captured[name].cpu(), tensor, rtol=1e-3, atol=1e-4, msg=name)


def test_a_growing_context_continues_to_the_same_bits(recording, tmp_path):
    config = config_of(recording, context="schedule", contexts=[1, 3, 5], context_every=5)
    config["training"] |= {"context_tolerance": 0.5, "graph": "on"}
    config["dataset"]["validation_fraction"] = 0.4
    whole = dmamba.train(config, output=tmp_path / "whole", **QUIET)

    class Stop(dmamba.Callback):
        def on_checkpoint(self, run, path):
            if path.name.endswith("20"):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dmamba.train(config, output=tmp_path / "cut", callbacks=[Stop()], **QUIET)
    cut = dmamba.train(None, output=tmp_path / "cut", resume=True, **QUIET)
    for name in ("contexts.csv", "metrics.csv"):
        assert (cut.folder / name).read_bytes() == (whole.folder / name).read_bytes()
    names = [run.latest_checkpoint()[1] / "model.safetensors" for run in (whole, cut)]
    assert names[0].read_bytes() == names[1].read_bytes()
    assert len((whole.folder / "contexts.csv").read_text().splitlines()) > 3
