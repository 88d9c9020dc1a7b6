"""What is refused of a user's module before there is a folder of a run, and what is warned of."""

import copy

import numpy as np
import pytest
import torch
from conftest import left_in, tiny
from own_models import Net, Wrapped
from safetensors.torch import load_file
from torch import nn

import dmamba
from dmamba import _C
from dmamba.nn import external


def quiet(config, folder, **arguments):
    return dmamba.train(config, output=folder, progress=False, evaluate=False, **arguments)


class Broken(nn.Module):
    """Gives what ``answer`` makes of the actions' shape."""

    def __init__(self, answer=None, parameter=None, attribute="weight"):
        super().__init__()
        self.register_parameter(
            attribute, nn.Parameter(torch.zeros(1)) if parameter is None else parameter
        )
        self.answer = answer

    def forward(self, states, actions, returns_to_go, timesteps, mask):
        assert mask.dtype == torch.bool and not self.training
        return next(self.parameters()) + self.answer(actions)


class ExtraState(Broken):
    def get_extra_state(self):
        return {}


class OwnLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))


class Sets(Broken):
    def __init__(self):
        super().__init__(torch.zeros_like)
        self.sets = OwnLayer()


def with_buffer(dtype):
    module = Broken(torch.zeros_like)
    module.register_buffer("kept", torch.zeros(1, dtype=dtype))
    return module


def two_devices():
    module = Broken(torch.zeros_like)
    module.other = nn.Parameter(torch.zeros(1, device="meta"))
    module.to = lambda *arguments: module
    return module


REFUSED = [
    (Broken(lambda a: a[:, -1]), r"must return the actions .*= \[2, 5, 3\], got \[2, 3\]"),
    (Broken(lambda a: a.double()), "in float32, got torch.float64"),
    (lambda *sizes: 3, "must return a torch.nn.Module, got int"),
    ("Net", "a torch.nn.Module or a callable .*got str"),
    (Broken(torch.zeros_like, nn.Parameter(torch.zeros(1).double())), "'weight' is torch.float64"),
    (Broken(torch.zeros_like, nn.Parameter(torch.zeros(1), requires_grad=False)), "no parameter"),
    (two_devices(), "on several devices: 'weight' on cpu, 'other' on meta"),
    (ExtraState(torch.zeros_like), "has get_extra_state"),
    (Sets(), "'sets.weight': names that begin with sets"),
    (with_buffer(torch.complex64), "buffer 'kept' is torch.complex64"),
]


@pytest.mark.parametrize(("model", "message"), REFUSED)
@pytest.mark.filterwarnings("ignore:model. .* of .* parameters")
def test_what_cannot_be_trained_is_refused(dataset, elsewhere, model, message):
    with pytest.raises(dmamba.ConfigError, match=message):
        quiet(tiny(dataset), "run", model=model)
    assert left_in(elsewhere) == []


def test_an_answer_is_looked_at_in_every_step(dataset, tmp_path):
    class Detached(Wrapped):
        def forward(self, *inputs):
            predicted = super().forward(*inputs)
            return predicted.detach() if self.training else predicted

    with pytest.raises(dmamba.ConfigError, match="has no gradient"):
        quiet(tiny(dataset), tmp_path / "run", model=Detached)


def test_a_model_without_parameters(dataset, tmp_path):
    class Empty(nn.Module):
        def forward(self, states, actions, returns_to_go, timesteps, mask):
            return torch.zeros_like(actions)

    with pytest.raises(dmamba.ConfigError, match="Empty: has no parameters"):
        quiet(tiny(dataset), tmp_path / "run", model=Empty())


def test_lazy_layers_get_their_shape(dataset, tmp_path):
    class Lazy(nn.Module):
        def __init__(self, state_dim, act_dim, config):
            super().__init__()
            self.layers = nn.Sequential(nn.LazyLinear(8), nn.GELU(), nn.LazyLinear(act_dim))

        def forward(self, states, actions, returns_to_go, timesteps, mask):
            return self.layers(torch.cat([states, returns_to_go], 2))

    run = quiet(tiny(dataset), tmp_path / "run", model=Lazy)
    path = run.latest_checkpoint()[1] / "model.safetensors"
    assert load_file(path)["layers.0.weight"].shape == (8, 12)
    loaded, _ = dmamba.nn.load(path.parent, model=Lazy)
    assert torch.equal(loaded.module.layers[0].weight, load_file(path)["layers.0.weight"])


def test_several_sets_are_the_built_in_models(dataset, elsewhere):
    config = tiny(dataset)
    config["pretraining"] = {"sets": [str(dataset), str(dataset.with_name("other.hdf5"))]}
    config["dataset"], config["evaluation"] = {}, {}
    dataset.with_name("other.hdf5").write_bytes(dataset.read_bytes())
    with pytest.raises(dmamba.ConfigError, match="pretraining.sets.*leave model= out"):
        quiet(config, "run", model=Net)


def test_games_are_the_built_in_models(elsewhere):
    with pytest.raises(dmamba.ConfigError, match="recorded game.*leave model= out"):
        quiet("atari-sample", "run", overrides=["training.device=cpu"], model=Net)


class Peeks(Wrapped):
    def forward(self, states, actions, returns_to_go, timesteps, mask):
        return super().forward(states, actions, returns_to_go, timesteps, mask) + 0.1 * actions


class LooksAhead(Wrapped):
    def forward(self, states, actions, returns_to_go, timesteps, mask):
        predicted = super().forward(states, actions, returns_to_go, timesteps, mask)
        return predicted + states.mean((1, 2), keepdim=True)


class Idle(Wrapped):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.unused = nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Peeks, "Peeks.forward looks at the very action that it predicts"),
        (LooksAhead, "LooksAhead.forward looks at later steps than the one"),
        (Idle, r"2 of \d+ parameters of Idle have no part .*unused.weight, unused.bias"),
    ],
)
def test_what_is_probably_a_mistake_is_warned_of(dataset, tmp_path, model, message):
    with pytest.warns(UserWarning, match=message):
        quiet(tiny(dataset, steps=2), tmp_path / "run", model=model)


def test_a_causal_model_is_not_warned_of(dataset, recwarn, tmp_path):
    quiet(tiny(dataset, steps=2), tmp_path / "run", model=Wrapped)
    quiet(tiny(dataset, steps=2), tmp_path / "other", model=Net)
    assert not [w for w in recwarn if "model:" in str(w.message)]


def test_the_trial_leaves_the_module_as_it_was(dataset):
    module = Net(11, 3, _C.ModelConfig())
    module.mixer.eval()
    before = copy.deepcopy(module.state_dict())
    config = dmamba.configuration.load_config(tiny(dataset))
    store = dmamba.data.load(config.dataset.path, progress=False)
    external.make(module, dmamba.data.resolve(config, store), store)
    assert module.training and not module.mixer.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert all(p.grad is None for p in module.parameters())
    assert np.isfinite(module.head.weight.detach().numpy()).all()
