"""K chosen while training: the rules, what they are told, and runs that go on after a stop."""

import csv
import signal

import numpy as np
import pytest
import torch
from conftest import tiny, write_dataset

import dmamba
from dmamba import _C, nn
from dmamba.data import held_out
from dmamba.training import choosing


def told(rule, *signals):
    """What is drawn and best after each of the signals, {length: value} or one value for all."""
    out = []
    for each in signals:
        rule.told(each if isinstance(each, dict) else dict.fromkeys(rule.drawn, each))
        out.append((rule.drawn, rule.best))
    return out


def test_grow_goes_on_once_the_loss_stops_falling():
    rule = choosing.Grow([2, 5, 9], 0.1)
    assert (rule.drawn, rule.best) == ([2], 2)
    steps = told(rule, 1.0, 0.8, 0.73, 5.0, 4.6)
    # 0.73 is not a tenth below 0.8; the first loss with a new length is compared with nothing.
    assert [best for _, best in steps] == [2, 2, 5, 5, 9]
    assert rule.settled and rule.drawn == [9]


def test_shrink_goes_the_other_way():
    rule = choosing.Shrink([2, 5, 9], 0.0)
    assert rule.best == 9
    assert [best for _, best in told(rule, 1.0, 1.01, 3.0, 2.0, 2.0 + 1e-9)] == [9, 5, 5, 5, 2]


def test_ucb_tries_each_once_and_then_mostly_the_best():
    rule = choosing.Ucb([2, 5, 9], 0.0)
    drawn = [rule.drawn[0]]
    for _ in range(40):
        rule.told({drawn[-1]: {2: 10.0, 5: 30.0, 9: 20.0}[drawn[-1]]})
        drawn.append(rule.drawn[0])
    assert drawn[:3] == [2, 5, 9] and rule.best == 5
    assert drawn.count(5) > drawn.count(9) > drawn.count(2) > 1


def test_ucb_follows_a_length_that_becomes_the_best():
    rule = choosing.Ucb([2, 5], 0.0)
    for decision in range(60):
        length = rule.drawn[0]
        better = 2 if decision < 20 else 5
        rule.told({length: 1.0 if length == better else 0.0})
        if decision == 19:
            assert rule.best == 2
    assert rule.best == 5


def test_halving_keeps_the_better_half_and_the_shorter_of_equals():
    rule = choosing.Halving([2, 3, 5, 9, 20], 0.0)
    assert rule.drawn == [2, 3, 5, 9, 20] and rule.best == 20
    steps = told(rule, {2: 1.0, 3: 4.0, 5: 3.0, 9: 4.0, 20: 0.0}, {3: 1.0, 5: 2.0, 9: 2.0}, 7.0)
    assert steps == [([3, 5, 9], 3), ([5, 9], 5), ([5], 5)]
    assert rule.settled


def choosing_run(dataset, kind, rule="auto", **training):
    config = tiny(dataset, **{"context": kind, "context_rule": rule, **training})
    config["training"] |= {"contexts": [1, 3, 5], "context_every": 5}
    config["dataset"]["validation_fraction"] = 0.4
    config["evaluation"] = {"episodes": 1, "targets": [100]}
    return config


class Stop(dmamba.training.callbacks.Callback):
    """Stops the process as Ctrl-C would, at the checkpoint of a step or when a row is logged."""

    def __init__(self, step):
        self.step = step

    def on_log(self, run, row):
        if row["step"] == self.step:
            signal.raise_signal(signal.SIGINT)

    def on_checkpoint(self, run, path):
        if path.name == f"step-{self.step:08d}":
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("kind", "rule", "stop"),
    [
        ("schedule", "grow", 10),
        ("schedule", "shrink", 12),
        ("bandit", "ucb", 10),
        ("bandit", "halving", 16),
    ],
)
def test_a_stopped_run_chooses_as_one_that_was_not(dataset, tmp_path, kind, rule, stop):
    config = choosing_run(dataset, kind, rule, context_tolerance=0.03, learning_rate=0.01)
    whole = dmamba.train(config, output=tmp_path / "whole", progress=False)
    with pytest.raises(KeyboardInterrupt):
        dmamba.train(config, output=tmp_path / "part", callbacks=[Stop(stop)], progress=False)
    part = dmamba.train(None, output=tmp_path / "part", resume=True, progress=False)
    for name in ("metrics.csv", "contexts.csv", "config.yaml", "evaluation.csv"):
        assert (part.folder / name).read_bytes() == (whole.folder / name).read_bytes(), name
    for name in ("model.safetensors", "optimizer.safetensors", "state.json"):
        mine = part.latest_checkpoint()[1] / name
        assert mine.read_bytes() == (whole.latest_checkpoint()[1] / name).read_bytes(), name
    with open(whole.folder / "contexts.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["context_length"] for row in rows} > {rows[0]["best"]} or len(rows) > 1
    assert int(rows[-1]["step"]) <= (25 if kind == "schedule" else 30)
    best = int(rows[-1]["best"])
    assert whole.evaluations()[-1]["context_length"] == best
    assert dmamba.evaluate(whole, progress=False)["context_length"] == best
    recurrent = dmamba.evaluate(whole, policy="recurrent", progress=False)
    assert recurrent["context_length"] == 5


def test_the_steps_are_those_of_the_length_that_was_chosen(dataset, tmp_path):
    """Until the first decision a growing run is a run of the shortest length, on fewer episodes."""
    config = choosing_run(dataset, "schedule", steps=5)
    grown = dmamba.train(config, output=tmp_path / "grown", progress=False, evaluate=False)
    store = held_out.kept(dmamba.data.load(dataset), grown.config)
    fixed = tiny(dataset, steps=5)
    fixed["model"]["context_length"] = 1
    fixed["model"]["max_timestep"] = grown.config.model.max_timestep
    fixed["dataset"]["rtg_scale"] = grown.config.dataset.rtg_scale
    fixed["dataset"]["environment"] = "Hopper-v4"
    run = dmamba.train(
        fixed, dataset=store, output=tmp_path / "fixed", progress=False, evaluate=False
    )
    names = [run.latest_checkpoint()[1] / "model.safetensors" for run in (grown, run)]
    assert names[0].read_bytes() == names[1].read_bytes()


def test_held_out_loss_is_the_mean_over_real_steps_of_other_episodes(dataset):
    store = dmamba.data.load(dataset)
    config = dmamba.data.resolve(
        dmamba.configuration.load_config(choosing_run(dataset, "schedule")), store
    )
    kept, rest = held_out.kept(store, config), held_out.rest(store, config)
    assert sorted([*kept.episode_lengths, *rest.episode_lengths]) == sorted(store.episode_lengths)
    assert rest.num_episodes == 2
    torch.manual_seed(1)
    model = nn.DMamba(store.state_dim, store.act_dim, config=config.model)
    mean, std = kept.state_statistics()
    loss = held_out.HeldOutLoss(rest, model, config, mean.tolist(), std.tolist())
    assert model.training
    measured = loss(1)
    assert model.training and loss(1) == measured
    # With K 1 the loss is the mean over transitions, each drawn in proportion to nothing but
    # its episode's length: here the whole of them, weighted by how often each was drawn.
    sampler = _C.SegmentSampler(rest, 8, 1, 7, False, config.dataset.rtg_scale, mean, std, 45)
    model.eval()
    errors = []
    for step in range(held_out.BATCHES):
        for index in range(8):
            episode, start, length = sampler.segment(step, index)
            assert length == 1
            e = rest.episode(episode)
            state = torch.tensor((e["observations"][start] - mean) / std)
            rtg = torch.tensor([e["returns_to_go"][start] / config.dataset.rtg_scale])
            action = torch.tensor(e["actions"][start])
            inputs = [x[None, None] for x in (state, action, rtg)]
            with torch.no_grad():
                out = model(*inputs, torch.tensor([[start]]))
            errors.append(float((out[0, 0] - action).square().mean()))
    assert measured == pytest.approx(np.mean(errors), rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "training", "other", "words"),
    [
        ("schedule", {"context_rule": "ucb"}, {}, "context_rule.*one of auto, grow, shrink"),
        ("bandit", {"context_rule": "grow"}, {}, "context_rule.*one of auto, ucb, halving"),
        ("random", {"context_rule": "grow"}, {}, "only schedule and bandit have one"),
        ("schedule", {"context_every": 0}, {}, "context_every"),
        ("schedule", {"context_tolerance": 1.0}, {}, "context_tolerance"),
        ("schedule", {}, {"dataset.validation_fraction": 0.0}, "validation_fraction"),
        ("bandit", {}, {"evaluation.policy": "recurrent"}, "windowed policy's K"),
    ],
)
def test_settings_that_cannot_be_are_refused(dataset, tmp_path, kind, training, other, words):
    config = choosing_run(dataset, kind)
    config["training"] |= training
    with pytest.raises(dmamba.ConfigError, match=words):
        dmamba.train(
            config,
            [f"{key}={value}" for key, value in other.items()],
            output=tmp_path / "run",
            progress=False,
        )
    assert not (tmp_path / "run").exists()


def test_what_a_choice_needs_is_checked_before_anything_starts(dataset, tmp_path):
    with pytest.raises(dmamba.ConfigError, match="bandit chooses by evaluations"):
        dmamba.train(
            choosing_run(dataset, "bandit"), output=tmp_path / "run", evaluate=False, progress=False
        )
    one = write_dataset(tmp_path / "one.hdf5", lengths=(40,), metadata={"environment": "Hopper-v4"})
    with pytest.raises(dmamba.DataError, match=r"one episode, but training\.context=schedule"):
        dmamba.train(choosing_run(one, "schedule"), output=tmp_path / "run", progress=False)
    short = write_dataset(
        tmp_path / "short.hdf5", lengths=(40, 3, 3), metadata={"environment": "Hopper-v4"}
    )
    config = choosing_run(short, "schedule")
    config["dataset"]["validation_fraction"] = 0.3
    for seed in range(6):  # whichever episodes are held out, no half-made run is left
        config["dataset"]["selection_seed"] = seed
        with pytest.raises(dmamba.DataError, match="5.*3|K = 5 exceeds the longest episode"):
            dmamba.train(config, output=tmp_path / "run", progress=False)
        assert not (tmp_path / "run").exists()


def test_a_bandit_keeps_the_evaluations_it_was_told_by(dataset, tmp_path):
    config = choosing_run(dataset, "bandit")
    run = dmamba.train(config, output=tmp_path / "run", progress=False)
    with pytest.raises(dmamba.ConfigError, match=r"evaluation\.episodes was 1, now 2"):
        dmamba.train(
            None, ["evaluation.episodes=2"], output=run.folder, resume=True, progress=False
        )
