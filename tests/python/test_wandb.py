"""The callback for Weights & Biases, with a module in wandb's place that writes down its calls."""

import sys
import types

import pytest
from conftest import tiny

import dmamba


class Logger:
    def __init__(self, arguments):
        self.arguments, self.id = arguments, arguments["id"] or "fresh"
        self.rows, self.metrics, self.summary, self.exit_code = [], {}, {}, None

    def define_metric(self, name, step_metric=None):
        self.metrics[name] = step_metric

    def log(self, row):
        self.rows.append(row)

    def finish(self, exit_code=0):
        self.exit_code = exit_code


@pytest.fixture
def loggers(monkeypatch):
    """Those that init() has given out."""
    made = []

    def init(**arguments):
        made.append(Logger(arguments))
        return made[-1]

    module = types.ModuleType("wandb")
    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return made


class Stops(dmamba.Callback):
    def on_log(self, run, row):
        if row["step"] == 24:
            raise KeyboardInterrupt


def test_a_run_is_logged_and_resumed_under_its_id(dataset, tmp_path, loggers):
    config = tiny(dataset)
    config["evaluation"]["every"] = 15
    arguments = {"output": tmp_path / "run", "progress": False}
    callback = dmamba.WandbCallback("hopping", entity="lab", tags=["tiny"])
    with pytest.raises(KeyboardInterrupt):
        dmamba.train(config, callbacks=[callback, Stops()], **arguments)
    first = loggers[0]
    assert first.exit_code == 1
    assert first.arguments["project"] == "hopping" and first.arguments["entity"] == "lab"
    assert first.arguments["tags"] == ["tiny"] and first.arguments["name"] == "run"
    assert first.arguments["config"]["training"]["steps"] == 30
    assert first.arguments["id"] is None
    assert first.metrics["training/*"] == first.metrics["evaluation/*"] == "step"
    dmamba.train(None, resume=True, callbacks=[callback], **arguments)
    second = loggers[1]
    assert second.arguments["id"] == "fresh" and second.arguments["resume"] == "allow"
    assert second.exit_code == 0
    run = dmamba.Run(tmp_path / "run")
    training = {row["step"]: row for row in second.rows if "training/loss" in row}
    assert list(training) == [24, 28, 30]  # from the checkpoint at step 20
    assert training[30]["training/loss"] == run.metrics()["training/loss"][-1]
    evaluations = [row for row in first.rows + second.rows if "training/loss" not in row]
    assert [row["step"] for row in evaluations] == [15, 30]
    last = run.evaluations()[-1]["targets"][0]
    assert evaluations[1]["evaluation/target_100_return_mean"] == last["return_mean"]
    assert evaluations[1]["evaluation/target_100_d4rl_score"] == last["score_mean"]
    assert second.summary["last/target_100_return_mean"] == last["return_mean"]


def test_without_evaluation(dataset, tmp_path, loggers):
    dmamba.train(
        tiny(dataset),
        output=tmp_path / "run",
        progress=False,
        evaluate=False,
        callbacks=[dmamba.WandbCallback(name="mine", mode="offline")],
    )
    assert loggers[0].arguments["mode"] == "offline" and loggers[0].arguments["name"] == "mine"
    assert loggers[0].summary == {} and loggers[0].exit_code == 0


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # an import of it fails
    with pytest.raises(dmamba.Error, match="pip install wandb"):
        dmamba.WandbCallback()
