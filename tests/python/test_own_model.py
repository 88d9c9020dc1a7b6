"""A module of the user's in the trainer: the same bits, checkpoints, evaluation."""

import copy
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import left_in, tiny
from own_models import Net, Wrapped
from safetensors.torch import load_file
from torch import nn

import dmamba
from dmamba.nn import external
from dmamba.training import beginning

HERE = Path(__file__).parent


def quiet(config, folder, **arguments):
    return dmamba.train(config, output=folder, progress=False, evaluate=False, **arguments)


def tensors(run, name="model"):
    return load_file(run.latest_checkpoint()[1] / f"{name}.safetensors")


def assert_same_bytes(run, other):
    assert run.latest_checkpoint()[0] == other.latest_checkpoint()[0]
    for name in ("metrics.csv", "config.yaml"):
        assert (run.folder / name).read_bytes() == (other.folder / name).read_bytes(), name
    for name in ("model.safetensors", "optimizer.safetensors", "state.json"):
        mine, theirs = run.latest_checkpoint()[1] / name, other.latest_checkpoint()[1] / name
        assert mine.read_bytes() == theirs.read_bytes(), name


def assert_wrapped(run, plain):
    """A run of the wrapped model ends with the bits of the built-in one."""
    assert (run.folder / "metrics.csv").read_bytes() == (plain.folder / "metrics.csv").read_bytes()
    mine, theirs = tensors(run), tensors(plain)
    assert set(mine) == {f"inner.{name}" for name in theirs}
    for name, tensor in theirs.items():
        assert torch.equal(mine[f"inner.{name}"], tensor), name
    moments = tensors(plain, "optimizer")
    for name, tensor in tensors(run, "optimizer").items():
        assert torch.equal(tensor, moments[name.replace(".inner.", ".", 1)]), name


@pytest.mark.parametrize(
    ("model", "training"),
    [
        ({"dropout": 0.0, "embedding_dropout": 0.0}, {}),
        ({"dropout": 0.2, "embedding_dropout": 0.1}, {"decay": "all"}),
        ({"dropout": 0.1, "padding": "paper"}, {"precision": "bf16", "weight_decay": 0.1}),
        ({"token_mixer": ["attention"], "n_head": 2}, {"context": "random", "contexts": [2, 5]}),
    ],
)
def test_a_wrapped_model_trains_to_the_same_bits(dataset, tmp_path, model, training):
    config = tiny(dataset, **training)
    config["model"] |= model
    plain = quiet(config, tmp_path / "plain")
    assert_wrapped(quiet(config, tmp_path / "wrapped", model=Wrapped), plain)


def test_it_is_evaluated_to_the_same_returns(dataset, tmp_path, trained):
    config = tiny(dataset)
    config["evaluation"]["every"] = 15
    run = dmamba.train(config, output=tmp_path / "run", progress=False, model=Wrapped)
    assert_wrapped(run, trained)
    keys = ("checkpoint_step", "policy", "context_length")
    for mine, theirs in zip(run.evaluations(), trained.evaluations(), strict=True):
        assert [mine[key] for key in keys] == [theirs[key] for key in keys]
        for one, other in zip(mine["targets"], theirs["targets"], strict=True):
            assert one["returns"] == other["returns"]
    again = dmamba.evaluate(run, model=Wrapped, progress=False)
    assert again["targets"][0]["returns"].tolist() == mine["targets"][0]["returns"]
    assert run.summary()["parameters"] == trained.summary()["parameters"]


def test_the_built_in_model_itself_stays_built_in(dataset, tmp_path, trained):
    run = quiet(tiny(dataset), tmp_path / "run", model=dmamba.nn.DMamba)
    assert tensors(run).keys() == tensors(trained).keys()
    for name, tensor in tensors(trained).items():
        assert torch.equal(tensors(run)[name], tensor)
    dmamba.evaluate(run, episodes=1, policy="recurrent", progress=False)
    other = dmamba.nn.DMamba(11, 3, d_model=32, n_layer=1, context_length=5)
    with pytest.raises(dmamba.ConfigError, match="d_model is 32 there, 16 here"):
        quiet(tiny(dataset), tmp_path / "other", model=other)


def test_a_subclass_of_the_built_in_model_keeps_its_forward(dataset, tmp_path, trained):
    class Scaled(dmamba.nn.DMamba):
        def forward(self, *inputs):
            return 0.5 * super().forward(*inputs)

    run = quiet(tiny(dataset), tmp_path / "run", model=Scaled)
    assert run.metrics()["training/loss"][0] != trained.metrics()["training/loss"][0]
    assert tensors(run).keys() == tensors(trained).keys()


def test_the_example_of_the_documentation(dataset, tmp_path, recwarn):
    text = (HERE.parents[1] / "docs" / "own-model.md").read_text()
    scope = {}
    exec(text.split("```python\n")[1].split("```")[0], scope)
    run = quiet(tiny(dataset), tmp_path / "run", model=scope["Net"])
    assert run.metrics()["training/loss"][-1] < run.metrics()["training/loss"][0]
    assert not [w for w in recwarn if "model:" in str(w.message)]


# ---- a model of torch's layers


@pytest.fixture(scope="module")
def whole(dataset, tmp_path_factory):
    """A run with Net that nobody stopped, evaluated at its end."""
    folder = tmp_path_factory.mktemp("own") / "run"
    return dmamba.train(tiny(dataset), output=folder, progress=False, model=Net)


def test_it_learns_and_keeps_its_buffers(whole):
    loss = whole.metrics()["training/loss"]
    assert loss[-1] < loss[0]
    saved = tensors(whole)
    assert saved.keys() == Net(11, 3, whole.config.model).state_dict().keys()
    assert saved["calls"] == saved["norm.num_batches_tracked"] == 30
    assert "scale" not in saved
    module = Net(11, 3, whole.config.model)
    module.load_state_dict(saved)


@pytest.mark.parametrize("step", [12, 24])
def test_a_killed_run_continues_to_the_same_bytes(dataset, whole, tmp_path, step):
    (tmp_path / "config.json").write_text(json.dumps(tiny(dataset)))
    arguments = [str(tmp_path / "config.json"), str(tmp_path / "run"), str(step)]
    program = [sys.executable, str(HERE / "own_models.py"), *arguments]
    assert subprocess.run(program, timeout=300).returncode == -signal.SIGKILL
    assert dmamba.Run(tmp_path / "run").latest_checkpoint()[0] == step // 10 * 10
    torch.manual_seed(123)  # what the caller draws has nothing to do with it
    run = quiet(None, tmp_path / "run", resume=True, model=Net)
    assert_same_bytes(run, whole)


def test_the_callers_generator_is_left_alone(dataset, whole, tmp_path):
    torch.manual_seed(99)
    expected = torch.rand(3)
    torch.manual_seed(99)
    run = quiet(tiny(dataset), tmp_path / "run", model=Net)
    dmamba.evaluate(run, episodes=1, model=Net, progress=False)
    assert torch.equal(torch.rand(3), expected)
    assert_same_bytes(run, whole)


def test_a_module_is_trained_in_place_from_where_it_is(dataset, whole, tmp_path):
    config = whole.config
    with external.seeded(config.seed, torch.device("cpu")):
        module = Net(11, 3, config.model)
    # What a trial in a notebook leaves behind.
    sum(p.sum() for p in module.parameters()).backward()
    run = quiet(tiny(dataset), tmp_path / "run", model=module)
    assert_same_bytes(run, whole)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, tensors(run)[name]), name
    assert all(p.grad is None for p in module.parameters())


def test_evaluation_takes_a_module_or_what_makes_one(whole):
    module = Net(11, 3, whole.config.model)
    before = copy.deepcopy(module.state_dict())
    results = [
        dmamba.evaluate(whole, model=model, progress=False)["targets"] for model in (module, Net)
    ]
    last = whole.evaluations()[-1]["targets"]
    for rows in zip(*results, last, strict=True):
        assert len({tuple(map(float, row["returns"])) for row in rows}) == 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    loaded, info = dmamba.nn.load(whole.latest_checkpoint()[1], model=module)
    assert info["external_model"] == "Net" and loaded.module is not module
    assert not loaded.module.training and loaded.module.calls == 30
    assert dmamba.evaluate(whole, model=Net, context_length=2, episodes=1, progress=False)


def test_without_the_code_it_says_what_to_pass(whole, trained, tmp_path):
    with pytest.raises(dmamba.CheckpointError, match=r"a model of your own, Net.*model=Net"):
        dmamba.evaluate(whole, progress=False)
    with pytest.raises(dmamba.CheckpointError, match="written by a run with a model .* Net"):
        quiet(None, whole.folder, resume=True)
    with pytest.raises(dmamba.CheckpointError, match="no counterpart in this model"):
        dmamba.evaluate(whole, model=Wrapped, progress=False)
    with pytest.raises(dmamba.CheckpointError, match="holds a built-in model.*leave model= out"):
        dmamba.evaluate(trained, model=Net, progress=False)
    with pytest.raises(dmamba.CheckpointError, match="by a run of the built-in model"):
        quiet(None, trained.folder, resume=True, model=Net)
    assert left_in(tmp_path) == []


def test_it_acts_through_its_forward_alone(dataset, whole, elsewhere):
    with pytest.raises(dmamba.ConfigError, match="kind windowed and weights fp32, got recurrent"):
        dmamba.evaluate(whole, model=Net, policy="recurrent", progress=False)
    config = tiny(dataset)
    config["evaluation"]["policy"] = "recurrent"
    with pytest.raises(dmamba.ConfigError, match="evaluation.policy: recurrent, .*windowed"):
        dmamba.train(config, output="run", progress=False, model=Net)
    with pytest.raises(dmamba.ConfigError, match="evaluated between the steps"):
        dmamba.train(tiny(dataset), output="run", progress=False, evaluate="beside", model=Net)
    assert left_in(elsewhere) == []


def test_transfer_knows_its_parameters(dataset, whole, tmp_path):
    config = tiny(dataset)
    config["transfer"] = {
        "init_from": str(whole.folder),
        "freeze": ["mixer.*", "inputs.*"],
        "learning_rates": ["head.*=0.1"],
    }
    run = quiet(config, tmp_path / "run", model=Net)
    mine, theirs = tensors(run), tensors(whole)
    assert mine["calls"] == 60  # buffers are taken, too
    for name in theirs:
        assert torch.equal(mine[name], theirs[name]) == name.startswith(("mixer", "inputs")), name
    config["transfer"] = {"freeze": ["mixers.*"]}
    with pytest.raises(dmamba.ConfigError, match="transfer.freeze.*mixers"):
        quiet(config, tmp_path / "other", model=Net)
    config["transfer"] = {"init_from": str(whole.folder)}
    with pytest.raises(dmamba.CheckpointError, match="inner.transformer"):
        quiet(config, tmp_path / "other", model=Wrapped)
    assert not (tmp_path / "other").exists()


def test_embeddings_do_not_decay(dataset, tmp_path):
    for decay, decays in (("matrices", False), ("all", True)):
        config = tiny(dataset, weight_decay=1.0, decay=decay)
        with external.seeded(7, torch.device("cpu")):
            module = Net(11, 3, dmamba.configuration.load_config(config).model)
        unused = module.place.weight[-1].clone()  # longer than every episode
        quiet(config, tmp_path / decay, model=module)
        assert torch.equal(module.place.weight[-1], unused) != decays


# ---- what a forward may do


class Tied(Wrapped):
    """Uses one layer twice, under two names, and the built-in model with dropout twice."""

    def __init__(self, state_dim, act_dim, config):
        super().__init__(state_dim, act_dim, config)
        self.first = nn.Linear(act_dim, act_dim)
        self.second = self.first
        self.again = self.inner

    def forward(self, *inputs):
        return self.second(self.first(super().forward(*inputs))) + self.again(*inputs)


class Changes(Wrapped):
    """Writes into what it is given."""

    def forward(self, *given):
        inputs = [tensor.clone() for tensor in given]
        for tensor in given:
            tensor.zero_()
        return super().forward(*inputs)


def test_inputs_may_be_written_to(dataset, tmp_path, trained):
    assert_wrapped(quiet(tiny(dataset), tmp_path / "run", model=Changes), trained)


def test_shared_layers(dataset, tmp_path):
    config = tiny(dataset)
    config["model"]["dropout"] = 0.2
    runs = [quiet(config, tmp_path / name, model=Tied) for name in ("one", "two")]
    assert_same_bytes(*runs)
    saved = tensors(runs[0])
    assert {"first.weight", "inner.embed_state.weight"} <= saved.keys()
    assert not [name for name in saved if name.startswith(("second.", "again."))]
    one, two = Tied(11, 3, runs[0].config.model), tiny(dataset)
    one.load_state_dict(saved, strict=False)
    two["training"]["steps"] = 10
    quiet(two, tmp_path / "three", model=one)  # a module that has been loaded goes on


class Raises(Wrapped):
    """Breaks once, at a given call in training mode: in the forward or in the backward pass."""

    def __init__(self, *sizes, at=3, error=None, backward=False):
        super().__init__(*sizes)
        self.at, self.error, self.backward = at, error, backward
        self.drop = nn.Dropout(0.1)

    def forward(self, *inputs):
        predicted = self.drop(super().forward(*inputs))
        if not self.training:
            return predicted
        self.at -= 1
        if self.at or self.error is None:
            return predicted
        if not self.backward:
            raise self.error
        return Breaks.apply(predicted, self.error)


class Breaks(torch.autograd.Function):
    @staticmethod
    def forward(context, x, error):
        context.error = error
        return x.clone()

    @staticmethod
    def backward(context, gradient):
        raise context.error


class OwnError(Exception):
    pass


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("kind", [OwnError, KeyboardInterrupt])
def test_what_it_raises_comes_out_unharmed(dataset, tmp_path, backward, kind):
    config = tiny(dataset, checkpoint_every=2)

    def make(*sizes):
        return Raises(*sizes, error=kind("by design", 7), backward=backward)

    with pytest.raises(kind) as caught:
        quiet(config, tmp_path / "run", model=make)
    assert caught.type is kind and caught.value.args == ("by design", 7)
    names = [(Path(entry.path).name, entry.name) for entry in caught.traceback]
    assert names[-1] == ("test_own_model.py", "backward" if backward else "forward")
    # The run is as its last checkpoint has it, and goes on.
    assert dmamba.Run(tmp_path / "run").latest_checkpoint()[0] == 2
    run = quiet(None, tmp_path / "run", resume=True, model=Raises)
    assert_same_bytes(run, quiet(config, tmp_path / "whole", model=Raises))


@pytest.mark.parametrize("backward", [False, True])
def test_a_step_that_was_broken_off_is_not_made(dataset, backward):
    results = []
    for error in (None, OwnError()):
        config = dmamba.configuration.load_config(tiny(dataset, log_every=1))
        store = dmamba.data.load(config.dataset.path, progress=False)
        resolved, parts = beginning.resolve(config, [store])
        models, trainer, _ = beginning.make_trainer(
            resolved,
            parts,
            None,
            None,
            lambda *sizes, error=error: Raises(*sizes, error=error, backward=backward),
        )
        rows = trainer.run(1e9, 2)
        if error is not None:
            with pytest.raises(OwnError):
                trainer.run(1e9, 5)
            assert trainer.step == 2
        rows += trainer.run(1e9, 5)
        results.append((rows, [p.detach().numpy().tobytes() for p in models[0].parameters()]))
    assert results[0] == results[1]
