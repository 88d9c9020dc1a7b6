"""K drawn while training; evaluations with several K, with auto, and with forgetting."""

import numpy as np
import pytest
import torch
from conftest import tiny
from replay_games import write_recording

import dmamba
from dmamba import _C, nn
from dmamba.commands import main
from dmamba.configuration import load_config
from dmamba.evaluation import contexts
from dmamba.evaluation.rollout import ArrayPolicy


def varying(dataset, **training):
    config = tiny(dataset, **{"context": "random", "contexts": [1, 3, 5], **training})
    config["evaluation"] = {"episodes": 1, "targets": [100]}
    return config


class Stop(dmamba.training.callbacks.Callback):
    """Ends the process's work as a kill would, after the checkpoint of a step."""

    def on_checkpoint(self, run, path):
        if path.name == "step-00000010":
            raise KeyboardInterrupt


def test_a_stopped_run_of_several_lengths_continues_to_the_same_bytes(dataset, tmp_path):
    config = varying(dataset)
    quiet = {"progress": False, "evaluate": False}
    whole = dmamba.train(config, output=tmp_path / "whole", **quiet)
    with pytest.raises(KeyboardInterrupt):
        dmamba.train(config, output=tmp_path / "part", callbacks=[Stop()], **quiet)
    part = dmamba.train(None, output=tmp_path / "part", resume=True, **quiet)
    for name in ("metrics.csv", "config.yaml"):
        assert (part.folder / name).read_bytes() == (whole.folder / name).read_bytes(), name
    for name in ("model.safetensors", "optimizer.safetensors", "state.json"):
        mine = part.latest_checkpoint()[1] / name
        assert mine.read_bytes() == (whole.latest_checkpoint()[1] / name).read_bytes(), name


def test_each_step_is_that_of_a_run_with_its_length(dataset):
    """One step of random K, from the same parameters, is a step of the K that was drawn."""
    store = dmamba.data.load(dataset)

    def after_a_step(seed, **changes):
        config = load_config(tiny(dataset, warmup_steps=0), [f"seed={seed}"])
        for key, value in changes.items():
            setattr(config.model if key == "context_length" else config.training, key, value)
        config = dmamba.data.resolve(config, store)
        torch.manual_seed(0)
        model = nn.DMamba(store.state_dim, store.act_dim, config=config.model)
        _C.Trainer(config, store, model.cpp_module).run(1e9, 1)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    drawn = []
    for seed in range(12):
        found = after_a_step(seed, context="random", contexts=[1, 3, 5])
        equal = [K for K in (1, 3, 5) if torch.equal(found, after_a_step(seed, context_length=K))]
        assert len(equal) == 1
        drawn += equal
    assert set(drawn) == {1, 3, 5}


@pytest.mark.parametrize(
    ("training", "model", "words"),
    [
        ({"context": "fixed", "contexts": [3, 5]}, {}, "empty; or choose training.context=random"),
        ({"contexts": []}, {}, "two lengths or more"),
        ({"contexts": [5, 3]}, {}, "must be from 6"),
        ({"contexts": [1, 4]}, {}, "rising to model.context_length, 5"),
        ({"contexts": [5, 46]}, {"context_length": 46}, "K = 46 exceeds the longest episode, 45"),
    ],
)
def test_lengths_that_cannot_be_are_refused_before_anything_starts(
    dataset, tmp_path, training, model, words
):
    config = varying(dataset, **training)
    config["model"] |= model
    with pytest.raises(dmamba.Error, match=words):
        dmamba.train(config, output=tmp_path / "run", progress=False, evaluate=False)
    assert not (tmp_path / "run").exists()


def test_games_have_one_length(tmp_path):
    store = _C.open_replay(str(write_recording(tmp_path / "games", lengths=(40, 9))))
    config = {
        "dataset": {"environment": "ALE/Breakout-v5"},
        "model": {"d_model": 16, "n_layer": 1, "context_length": 5},
        "training": {"context": "random", "contexts": [2, 5], "device": "cpu"},
    }
    with pytest.raises(dmamba.ConfigError, match="is a recorded game; choose fixed"):
        dmamba.train(config, dataset=store, output=tmp_path / "run", evaluate=False)


def test_auto_chooses_among_the_lengths_of_the_training(dataset, tmp_path):
    run = dmamba.train(varying(dataset), output=tmp_path / "run", progress=False, evaluate=False)
    result = dmamba.evaluate(run, context_length="auto", episodes=2, progress=False)
    assert list(result["chosen_from"]) == [1, 3, 5]


def test_evaluation_of_several_lengths_is_that_of_each(trained):
    several = dmamba.evaluate(trained, context_length=[2, 5], episodes=2, progress=False)
    results = several["context_lengths"]
    for length, result in results.items():
        alone = dmamba.evaluate(trained, context_length=length, episodes=2, progress=False)
        np.testing.assert_array_equal(
            alone["targets"][0]["returns"], result["targets"][0]["returns"]
        )
        assert result["context_length"] == length
    usual = dmamba.evaluate(trained, episodes=2, progress=False)
    np.testing.assert_array_equal(
        usual["targets"][1]["returns"], results[5]["targets"][1]["returns"]
    )
    assert (results[2]["targets"][0]["returns"] != usual["targets"][0]["returns"]).any()


def test_auto_reports_episodes_that_it_did_not_choose_by(trained):
    result = dmamba.evaluate(trained, context_length="auto", episodes=5, progress=False)
    assert list(result["chosen_from"]) == [1, 2, 5] and result["chosen_episodes"] == 2
    means = {}
    for length in (1, 2, 5):
        seen = dmamba.evaluate(trained, context_length=length, episodes=5, progress=False)
        returns = np.array([row["returns"] for row in seen["targets"]])
        means[length] = returns[:, :2].mean()
        if length == result["context_length"]:
            reported = np.array([row["returns"] for row in result["targets"]])
            np.testing.assert_allclose(reported, returns[:, 2:], rtol=1e-5)
    assert result["chosen_from"] == pytest.approx(means, rel=1e-5)
    assert result["context_length"] == max(means, key=means.get)


def test_commands(trained, capsys):
    arguments = ["evaluate", str(trained.folder), "--episodes", "2"]
    assert main([*arguments, "--context-length", "2,5"]) == 0
    text = capsys.readouterr().out
    assert [line.split()[:2] for line in text.splitlines()[2:]] == [
        ["2", "100"],
        ["2", "500"],
        ["5", "100"],
        ["5", "500"],
    ]
    assert main([*arguments, "--context-length", "auto"]) == 0
    assert "chosen by the mean return" in capsys.readouterr().out
    assert main([*arguments, "--policy", "recurrent", "--forget-after", "3"]) == 0
    assert "recurrent policy that forgets after 3 steps" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--context-length", "5,x"], "neither auto nor numbers"),
        (["--context-length", "0"], "at least 1, got 0"),
        (["--context-length", "3,3"], "3 is given twice"),
        (["--context-length", "3", "--policy", "recurrent"], "for the windowed policy"),
        (["--forget-after", "3"], "forget_after is for kind recurrent"),
        (["--context-length", "auto", "--episodes", "1"], "needs 2 episodes"),
    ],
)
def test_what_cannot_be_evaluated_is_named(trained, capsys, words, message):
    assert main(["evaluate", str(trained.folder), *words]) == 2
    assert message in capsys.readouterr().err


def test_longer_than_trained_is_a_warning_for_mamba(trained):
    with pytest.warns(UserWarning, match="trained with at most 5 steps"):
        dmamba.evaluate(trained, context_length=9, episodes=1, progress=False)


def make_policy(model, kind, **options):
    info = {"rtg_scale": 10.0, "state_mean": [0.0] * 11, "state_std": [1.0] * 11}
    return ArrayPolicy(model, kind, 2, info, **options)


def play(policy, steps, shift=0, targets=(50.0, 70.0)):
    """Actions for fixed observations; the rewards are 1."""
    states = np.random.default_rng(5).normal(size=(40, 2, 11)).astype(np.float32)
    policy.reset(np.ones(2, bool), np.array(targets), np.zeros(2, np.int64))
    actions = []
    for step in range(steps):
        actions.append(policy.act(states[shift + step]))
        policy.observe(np.ones(2))
    return np.array(actions)


@pytest.fixture(params=["engine", "torch"])
def engine(request):
    """With the CPU's own engine, and with torch's operators, which portable code goes through."""
    before = _C.cpu_capability()
    if request.param == "torch":
        _C.set_cpu_capability("portable")
    yield
    _C.set_cpu_capability(before)


def test_after_forgetting_the_policy_acts_as_in_a_new_segment(engine):
    torch.manual_seed(0)
    model = nn.DMamba(11, 3, d_model=16, n_layer=2, context_length=20).eval()
    with torch.no_grad():  # so that only what was seen tells steps apart
        model.get_parameter("embed_timestep.weight").zero_()
    forgetful = play(make_policy(model, "recurrent", forget_after=4), 10)
    for start in (0, 4, 8):
        steps = min(4, 10 - start)
        targets = (50.0 - start, 70.0 - start)
        fresh = play(make_policy(model, "windowed"), steps, start, targets)
        np.testing.assert_allclose(forgetful[start : start + steps], fresh, atol=1e-5)
    faithful = play(make_policy(model, "recurrent"), 10)
    np.testing.assert_array_equal(faithful[:4], forgetful[:4])
    assert np.abs(faithful[4:] - forgetful[4:]).max() > 1e-4


def test_a_window_of_k_is_that_of_a_model_with_that_context_length():
    torch.manual_seed(0)
    model = nn.DMamba(11, 3, d_model=16, context_length=20).eval()
    short = nn.DMamba(11, 3, d_model=16, context_length=3).eval()
    short.load_state_dict(model.state_dict())
    np.testing.assert_array_equal(
        play(make_policy(model, "windowed", context_length=3), 9),
        play(make_policy(short, "windowed"), 9),
    )
    for options, words in (
        ({"kind": "recurrent", "context_length": 3}, "is for kind windowed"),
        ({"kind": "windowed", "forget_after": 3}, "is for kind recurrent"),
        ({"kind": "windowed", "context_length": -1}, "at least 0, got -1"),
    ):
        with pytest.raises(dmamba.ConfigError, match=words):
            make_policy(model, **options)


def test_games_have_places_for_the_models_own_length_only():
    model = nn.AtariDMamba(4, d_model=16, n_layer=1, context_length=6)
    with pytest.raises(dmamba.ConfigError, match="has learned 6 places"):
        contexts.check(model, [3, 7])
    contexts.check(model, [3, 6])
