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


def test_the_atari_model(capability):
    golden = np.load(FOLDER / "official_atari_golden.npz")
    model = dmamba.from_official(FOLDER / "official_atari.cpt")
    config = model.config
    assert (model.num_actions, config.d_model, config.n_layer) == (4, 32, 2)
    assert (config.context_length, config.max_timestep, config.padding) == (6, 501, "paper")
    frames = torch.from_numpy(golden["in/states_u8"]).view(2, 6, 4, 84, 84)
    actions = torch.from_numpy(golden["in/actions"]).squeeze(2)
    timesteps = torch.from_numpy(golden["in/timesteps"]).view(2)
    logits = model(frames, actions, torch.from_numpy(golden["in/rtg"]), timesteps)
    assert (logits - torch.from_numpy(golden["out/logits"])).abs().max() <= 1e-5
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), actions.flatten())
    assert loss.item() == pytest.approx(float(golden["out/loss"]), rel=1e-5)
    loss.backward()
    gradients = {name.replace(".ln_2.", ".ln2."): p.grad for name, p in model.named_parameters()}
    assert sorted(f"grad/{name}" for name in gradients) == sorted(
        key for key in golden.files if key.startswith("grad/")
    )
    for name, gradient in gradients.items():
        expected = torch.from_numpy(golden[f"grad/{name}"])
        assert relative_error(gradient, expected) <= 1e-4, name


def test_an_atari_file_says_its_context_length():
    path = FOLDER / "official_atari.cpt"
    assert dmamba.from_official(path, context_length=6).config.context_length == 6
    with pytest.raises(dmamba.CheckpointError, match="places for K = 6, not 30"):
        dmamba.from_official(path, context_length=30)


def test_sizes_come_from_the_file():
    model = dmamba.from_official(FOLDER / "official_gym.cpt")
    config = model.config
    assert (config.d_model, config.n_layer, config.d_state, config.padding) == (32, 3, 16, "paper")
    assert not model.training


def official_state() -> dict:
    return torch.load(FOLDER / "official_gym.cpt", weights_only=True)["state_dict"]


LAYER = "transformer.h.0.mamba."
# What is done to a good state_dict, and what the message has to say of it.
DAMAGES = {
    "empty": (lambda s: s.clear(), "no state_dict"),
    "not a tensor": (lambda s: s.update({f"{LAYER}D": [1.0]}), r"mamba\.D' in it is a list"),
    "name that is none": (lambda s: s.update({3: torch.zeros(2)}), "3 in it"),
    "integers": (lambda s: s.update({f"{LAYER}D": torch.ones(64, dtype=torch.int64)}), "int64"),
    "all integers": (lambda s: s.update({n: t.long() for n, t in s.items()}), "int64"),
    "complex": (lambda s: s.update({f"{LAYER}D": torch.ones(64) * 1j}), "complex64"),
    "sparse": (lambda s: s.update({f"{LAYER}A_log": torch.eye(64, 16).to_sparse()}), "sparse"),
    "NaN": (lambda s: s[f"{LAYER}D"].fill_(float("nan")), r"mamba\.D' holds NaN or infinity"),
    "one axis": (lambda s: s.update({"embed_state.weight": torch.ones(32)}), "2 sizes"),
    "no axis": (lambda s: s.update({f"{LAYER}conv1d.weight": torch.ones(())}), "3 sizes"),
    "no channel": (lambda s: s.update({"embed_state.weight": torch.ones(0, 11)}), "none of them 0"),
    "claims": (
        lambda s: s.update({"embed_timestep.weight": torch.ones(1, 32).expand(10**13, 32)}),
        "more than the file holds",
    ),
    "uneven": (lambda s: s.update({f"{LAYER}A_log": torch.ones(63, 16)}), "no multiple"),
    "huge product": (
        lambda s: s.update(
            {"embed_state.weight": torch.ones(10**6, 1), f"{LAYER}A_log": torch.ones(10**6, 1)}
        ),
        r"in_proj\.weight' is \[128, 32\], must be \[2000000, 1000000\]",
    ),
    "missing": (lambda s: s.pop(f"{LAYER}out_proj.weight"), r"no tensor '.*out_proj\.weight'"),
    "missing layer": (
        lambda s: [s.pop(name) for name in list(s) if ".h.1." in name],
        r"no tensor '.*h\.1\.",
    ),
    "left over": (lambda s: s.update({"head.weight": torch.ones(2)}), "'head.weight' has no place"),
    "layer without a number": (lambda s: s.update({"transformer.h.": torch.ones(2)}), r"h\.3\."),
    "other shape": (lambda s: s.update({"embed_ln.bias": torch.ones(31)}), r"bias' is \[31\]"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_state_dict_that_is_none_of_ours_is_named(kind, tmp_path):
    damage, message = DAMAGES[kind]
    state = official_state()
    damage(state)
    path = tmp_path / "damaged.cpt"
    torch.save({"state_dict": state}, path)
    with pytest.raises(dmamba.CheckpointError, match=message) as error:
        dmamba.from_official(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


@pytest.mark.parametrize("saved", [[1, 2], torch.ones(3), {"state_dict": torch.ones(3)}, {}])
def test_what_holds_no_state_dict_is_named(saved, tmp_path):
    path = tmp_path / "other.cpt"
    torch.save(saved, path)
    with pytest.raises(dmamba.CheckpointError, match=r"other\.cpt: holds no state_dict"):
        dmamba.from_official(path)


def test_every_cut_or_altered_file_is_refused_or_whole(tmp_path):
    """Either a CheckpointError that names the file, or the very parameters that were saved."""
    whole = official_state()
    random = np.random.default_rng(0)
    path = tmp_path / "altered.cpt"
    zipped = (FOLDER / "official_gym.cpt").read_bytes()
    torch.save({"state_dict": whole}, path, _use_new_zipfile_serialization=False)
    refused = 0
    for good in (zipped, path.read_bytes()):
        for trial in range(60):
            content = bytearray(good)
            if trial % 3 == 0:
                del content[random.integers(len(content)) :]
            else:  # in the pickle at the front, or anywhere
                end = 3000 if trial % 3 == 1 else len(content)
                for position in random.integers(end, size=4):
                    content[position] = random.integers(256)
            path.write_bytes(content)
            try:
                model = dmamba.from_official(path)
            except dmamba.CheckpointError as error:
                assert str(error).startswith(f"{path}: ")
                refused += 1
                continue
            if good is zipped:
                assert all(torch.equal(t, whole[n]) for n, t in model.state_dict().items())
    assert refused > 60


def test_places_that_are_no_files_are_named(tmp_path):
    with pytest.raises(dmamba.CheckpointError, match="cannot be read: Is a directory"):
        dmamba.from_official(tmp_path)
    (tmp_path / "empty.cpt").touch()
    with pytest.raises(dmamba.CheckpointError, match=r"empty\.cpt"):
        dmamba.from_official(tmp_path / "empty.cpt")
    with pytest.raises(dmamba.ConfigError, match="context_length"):
        dmamba.from_official(FOLDER / "official_gym.cpt", context_length=0)


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
