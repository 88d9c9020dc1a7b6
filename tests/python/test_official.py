"""The author's checkpoint gives the author's numbers: golden values in tests/data/official."""

from pathlib import Path

import numpy as np
import pytest
import torch

import dmamba
from dmamba import _C

FOLDER = Path(__file__).parents[1] / "data" / "official"


def relative_error(value: torch.Tensor, expected: torch.Tensor) -> float:
    return float((value.detach() - expected).norm() / expected.norm())


@pytest.fixture
def golden():
    return np.load(FOLDER / "official_gym_golden.npz")


@pytest.fixture(params=_C.cpu_capabilities())
def capability(request):
    before = _C.cpu_capability()
    _C.set_cpu_capability(request.param)
    yield request.param
    _C.set_cpu_capability(before)


def test_outputs_and_gradients(golden, capability):
    model = dmamba.from_official(FOLDER / "official_gym.cpt")
    inputs = [
        torch.from_numpy(golden[f"in/{name}"]) for name in ("states", "actions", "rtg", "timesteps")
    ]
    actions = model(*inputs)
    assert relative_error(actions, torch.from_numpy(golden["out/actions"])) <= 1e-5
    loss = ((actions - inputs[1]) ** 2).mean()
    assert loss.item() == pytest.approx(float(golden["out/loss"]), rel=1e-5)
    loss.backward()
    names = [name for name, _ in model.named_parameters()]
    assert sorted(f"grad/{name}" for name in names) == sorted(
        key for key in golden.files if key.startswith("grad/")
    )
    for name, parameter in model.named_parameters():
        expected = torch.from_numpy(golden[f"grad/{name}"])
        assert relative_error(parameter.grad, expected) <= 1e-4, name


def test_sizes_come_from_the_file():
    model = dmamba.from_official(FOLDER / "official_gym.cpt")
    config = model.config
    assert (config.d_model, config.n_layer, config.d_state, config.padding) == (32, 3, 16, "paper")
    assert not model.training


def test_damaged_files_are_named(tmp_path):
    with pytest.raises(dmamba.CheckpointError, match="no such file"):
        dmamba.from_official(tmp_path / "missing.cpt")
    cut = tmp_path / "cut.cpt"
    cut.write_bytes((FOLDER / "official_gym.cpt").read_bytes()[:100_000])
    with pytest.raises(dmamba.CheckpointError, match="cut.cpt"):
        dmamba.from_official(cut)
    other = tmp_path / "other.cpt"
    torch.save({"state_dict": {"weight": torch.zeros(2)}}, other)
    with pytest.raises(dmamba.CheckpointError, match="embed_state.weight"):
        dmamba.from_official(other)


class Payload:
    def __reduce__(self):
        return (print, ("executed",))


def test_pickled_code_is_refused(tmp_path, capsys):
    path = tmp_path / "payload.cpt"
    torch.save({"state_dict": Payload()}, path)
    with pytest.raises(dmamba.CheckpointError, match="payload.cpt"):
        dmamba.from_official(path)
    assert "executed" not in capsys.readouterr().out
