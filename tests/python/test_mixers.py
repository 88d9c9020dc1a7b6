"""Every token mixer, channel mixer and choice of tokens trains, resumes, acts and is evaluated."""

import copy
import math

import numpy as np
import pytest
import torch
from conftest import tiny
from replay_games import write_recording

import dmamba
from dmamba import _C
from dmamba.configuration import load_config

MIXERS = ("mamba", "attention", "convolution", "s4d")
VARIANTS = [
    *({"token_mixer": mixer} for mixer in MIXERS),
    {"token_mixer": ["mamba", "attention"]},
    {"token_mixer": ["convolution", "attention"], "n_head": 4},
    {"channel_mixing": "ssm", "channel_group": 4},
    {"channel_mixing": "none"},
    *({"token_mixer": mixer, "rtg": "none"} for mixer in MIXERS),
    *({"token_mixer": mixer, "past_actions": "none"} for mixer in MIXERS),
    {"rtg": "none", "past_actions": "none"},
]
EACH_VARIANT = pytest.mark.parametrize(
    "options", VARIANTS, ids=lambda o: "-".join(map(str, o.values()))
)


def small(**options):
    torch.manual_seed(0)
    sizes = {"d_model": 16, "n_layer": 2, "context_length": 8, "max_timestep": 50}
    return dmamba.nn.DMamba(5, 2, **sizes, **options).eval()


def play(policy, n, steps, ends):
    """Actions of each step; episodes of environment i last ends[i] steps."""
    random = np.random.default_rng(0)
    age, start, actions = np.zeros(n, dtype=int), np.ones(n, dtype=bool), []
    for _ in range(steps):
        targets = torch.from_numpy(random.normal(size=n) * 10)
        if start.any():
            policy.reset(torch.from_numpy(start), targets)
        observations = random.normal(size=(n, 5)).astype(np.float32)
        actions.append(policy.act(torch.from_numpy(observations)))
        policy.observe(torch.from_numpy(random.normal(size=n)))
        age += 1
        start = age == ends
        age[start] = 0
    return torch.stack(actions)


@EACH_VARIANT
def test_policies_agree_while_episodes_fit_the_window(options):
    model = small(**options)
    ends = np.array([3, 5, 8, 4])
    windowed, recurrent = (
        play(_C.Policy(model.cpp_module, kind, 4, 10.0, [0.1] * 5, [2.0] * 5), 4, 20, ends)
        for kind in ("windowed", "recurrent")
    )
    torch.testing.assert_close(windowed, recurrent, rtol=1e-4, atol=1e-5)
    assert windowed.std() > 1e-3


@EACH_VARIANT
def test_policies_of_games_agree_while_episodes_fit_the_window(options):
    torch.manual_seed(1)
    sizes = {"d_model": 16, "n_layer": 2, "context_length": 6, "max_timestep": 100}
    model = dmamba.nn.AtariDMamba(5, **sizes, **options).eval()
    with torch.no_grad():  # zeros at first
        for name, parameter in model.named_parameters():
            if name.endswith("pos_emb"):
                parameter.normal_(0.0, 0.3)
    random = np.random.default_rng(0)
    frames = torch.from_numpy(random.integers(0, 256, (10, 3, 4, 84, 84), dtype=np.uint8))
    logits = []
    for kind in ("windowed", "recurrent"):
        policy = _C.AtariPolicy(model.cpp_module, kind, 3)
        answers = []
        for step in range(10):
            which = {0: [True] * 3, 5: [False, True, False], 6: [True, False, True]}.get(step)
            if which is not None:
                policy.reset(
                    torch.tensor(which), torch.tensor([1.0, 5.0, 9.0]), torch.tensor([1, 2, 3])
                )
            policy.act(frames[step])
            answers.append(policy.logits.clone())
            policy.observe(torch.tensor([1.0, 0.0, 2.0]))
        logits.append(torch.stack(answers))
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-4, atol=1e-5)


@EACH_VARIANT
def test_a_stopped_run_ends_with_the_same_bytes(options, dataset, tmp_path):
    config = tiny(dataset, checkpoint_every=15)
    config["model"] |= {"n_layer": 2, **options}
    quiet = {"progress": False, "evaluate": False}
    whole = dmamba.train(config, output=tmp_path / "whole", **quiet)

    class Stop(dmamba.training.callbacks.Callback):
        def on_checkpoint(self, run, path):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dmamba.train(config, output=tmp_path / "part", callbacks=[Stop()], **quiet)
    part = dmamba.train(config, output=tmp_path / "part", resume=True, **quiet)
    names = ("model.safetensors", "optimizer.safetensors")
    for name in names:
        a, b = (run.latest_checkpoint()[1] / name for run in (whole, part))
        assert a.read_bytes() == b.read_bytes()
    assert (whole.folder / "metrics.csv").read_text() == (part.folder / "metrics.csv").read_text()
    losses = whole.metrics()["training/loss"]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("policy", ["windowed", "recurrent"])
@pytest.mark.parametrize("mixer", ["attention", ["convolution", "attention"]])
def test_a_run_is_evaluated_from_its_checkpoint(mixer, policy, dataset, tmp_path):
    config = tiny(dataset)
    config["model"] |= {"n_layer": 2, "token_mixer": mixer, "n_head": 2}
    config["evaluation"]["policy"] = policy
    run = dmamba.train(config, output=tmp_path / "run", progress=False)
    again = dmamba.evaluate(run, progress=False)
    for row, before in zip(again["targets"], run.summary()["last"]["targets"], strict=True):
        assert row["return_mean"] == before["return_mean"]


def test_games_train_with_attention_and_without_returns(tmp_path):
    store = _C.open_replay(str(write_recording(tmp_path / "games", lengths=(40, 9, 60))))
    config = {
        "dataset": {"environment": "ALE/Breakout-v5"},
        "model": {"d_model": 16, "n_layer": 1, "context_length": 5, "token_mixer": "attention",
                  "n_head": 4, "rtg": "none"},
        "training": {"steps": 6, "batch_size": 4, "log_every": 2, "device": "cpu"},
    }  # fmt: skip
    run = dmamba.train(
        config, dataset=store, output=tmp_path / "run", progress=False, evaluate=False
    )
    assert np.isfinite(run.metrics()["training/loss"]).all()
    assert not any(
        name.startswith("ret_emb")
        for name in dmamba.nn.load(run.latest_checkpoint()[1])[0].state_dict()
    )


def test_without_returns_the_target_changes_nothing(dataset, tmp_path):
    config = tiny(dataset)
    config["model"]["rtg"] = "none"
    config["evaluation"]["targets"] = []
    run = dmamba.train(config, output=tmp_path / "run", progress=False)
    assert len(run.config.evaluation.targets) == 1
    rows = dmamba.evaluate(run, targets=[1.0, 1000.0], progress=False)["targets"]
    assert np.array_equal(rows[0]["returns"], rows[1]["returns"])


def test_the_best_episodes_are_kept(dataset, tmp_path):
    whole = dmamba.data.load(dataset)
    config = load_config(tiny(dataset), ["dataset.top_fraction=0.3"]).dataset
    best = dmamba.data.load_configured(config)
    returns = np.sort(whole.episode_returns)[::-1]
    assert sorted(best.episode_returns) == sorted(returns[:2])  # of five episodes, rounded up
    order = [list(whole.episode_returns).index(r) for r in best.episode_returns]
    assert order == sorted(order)
    run = dmamba.train(
        tiny(dataset), ["dataset.top_fraction=0.3"], output=tmp_path / "run", progress=False,
        evaluate=False,
    )  # fmt: skip
    mean, _ = best.state_statistics()
    assert np.allclose(dmamba.nn.load(run.latest_checkpoint()[1])[1]["state_mean"], mean)


def test_delayed_rewards(dataset, tmp_path):
    config = load_config(tiny(dataset), ["dataset.rewards=delayed"])
    store = dmamba.data.load_configured(config.dataset)
    episode = store.episode(2)
    assert (episode["returns_to_go"] == episode["returns_to_go"][0]).all()
    assert (episode["rewards"][:-1] == 0).all()
    run = dmamba.train(config, output=tmp_path / "run", progress=False)
    assert run.config.evaluation.rtg_rewards == "none"
    last = run.evaluations()[-1]
    assert last["rtg_rewards"] == "none"
    raw = dmamba.evaluate(run, rtg_rewards="raw", progress=False)
    assert not np.array_equal(raw["targets"][0]["returns"], last["targets"][0]["returns"])


def test_games_refuse_what_would_copy_their_frames(tmp_path):
    folder = write_recording(tmp_path / "games", lengths=(40, 9))
    for key, value in (("top_fraction", "0.5"), ("rewards", "delayed")):
        config = load_config({"dataset": {"path": str(folder)}}, [f"dataset.{key}={value}"])
        with pytest.raises(dmamba.ConfigError, match=rf"dataset\.{key} is for states and actions"):
            dmamba.data.load_configured(config.dataset, progress=False)


def test_sizes_that_do_not_fit_are_refused_before_a_folder_is_made(dataset, tmp_path):
    config = tiny(dataset)
    config["model"] |= {"token_mixer": "attention", "n_head": 3}
    with pytest.raises(dmamba.ConfigError, match="n_head: 3 heads do not divide"):
        dmamba.train(config, output=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
    with pytest.raises(dmamba.ConfigError, match="'mumba' is unknown; choose one of mamba, attent"):
        dmamba.sweep(tiny(dataset), ["token_mixer=mamba,mumba"], output=tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize("rate", [0.5, 1e-6])
def test_s4d_s_gradients_are_float64_s(rate):
    """Where dt A is small, (exp(dt A) - 1) / A is no difference of numbers near 1."""
    model = small(token_mixer="s4d", d_state=4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("log_A_real"):
                parameter.fill_(math.log(rate))
            elif name.endswith("A_imag"):
                parameter.mul_(rate)
            elif name.endswith("log_dt"):
                parameter.copy_(torch.linspace(math.log(0.001), math.log(0.1), 16))
    time, found = torch.arange(8).expand(2, 8), []
    inputs = [torch.randn(2, 8, n, generator=torch.Generator().manual_seed(n)) for n in (5, 2, 1)]
    for each, kind in ((model, torch.float32), (copy.deepcopy(model).double(), torch.float64)):
        loss = each(*(x.to(kind) for x in inputs), time).square().sum()
        names, leaves = zip(
            *((n, p) for n, p in each.named_parameters() if "s4d" in n), strict=True
        )
        found.append(dict(zip(names, torch.autograd.grad(loss, leaves), strict=True)))
    for name, exact in found[1].items():
        error = (found[0][name].double() - exact).norm() / exact.norm()
        assert error < 1e-4, f"{name}: {error:.1e}"
