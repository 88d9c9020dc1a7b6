"""A training whose evaluations fail goes on, and says so; what can be made up for is."""

import csv
import json

import gymnasium
import pytest
from conftest import tiny, write_dataset
from faulty import Faulty

import dmamba
from dmamba.engines.runner import failure_of
from dmamba.runs import Run

ID = "dmamba-test/Failing-v0"


@pytest.fixture
def config(tmp_path):
    """A run that is evaluated at steps 10, 20 and 30, in an environment that always raises."""
    register("raises")
    path = write_dataset(tmp_path / "d.hdf5", 2, 1, metadata={"environment": ID})
    config = tiny(path)
    config["evaluation"]["every"] = 10
    yield config
    gymnasium.registry.pop(ID, None)


class Every(dict):
    """A fault in every episode."""

    def get(self, seed, default=None):
        return self["kind"]


class Failing(Faulty):
    def __init__(self, kind=""):
        super().__init__()
        self.faults = Every(kind=kind)


def register(kind):
    gymnasium.registry.pop(ID, None)
    gymnasium.register(ID, Failing, max_episode_steps=9, kwargs={"kind": kind})


class Mend(dmamba.training.callbacks.Callback):
    """Mends the environment once the model of a step has been saved."""

    def __init__(self, step):
        self.step = step

    def on_checkpoint(self, run, path):
        if path.name == f"step-{self.step:08d}":
            register("")


def read_csv(run):
    with open(run.folder / "evaluation.csv") as file:
        return [(int(row["step"]), row["target"], row["error"]) for row in csv.DictReader(file)]


WHY = "1 of 3 episodes for target 100 failed, of which at most 0 may"


@pytest.mark.parametrize("where", ["between", "beside"])
def test_a_training_goes_on(config, tmp_path, where, capsys):
    with pytest.warns(UserWarning, match=f"step 10 could not be evaluated: .*{WHY}.*by design"):
        run = dmamba.train(
            config,
            output=tmp_path / "run",
            evaluate=where,
            callbacks=[Mend(20)] * (where == "between"),
        )
    failed = run.failed_evaluations()
    steps = [10] if where == "between" else [10, 20, 30]
    assert [one["checkpoint_step"] for one in failed] == steps
    assert all(WHY in one["error"] and one["environment"] == ID for one in failed)
    assert run.metrics()["step"][-1] == 30 and run.snapshots() == []
    done = [step for step in (10, 20, 30) if step not in steps]
    assert [result["checkpoint_step"] for result in run.evaluations()] == done
    rows = read_csv(run)
    assert [step for step, target, _ in rows if not target] == steps
    assert all((WHY in error) == (step in steps) for step, _, error in rows)
    summary = run.summary()
    assert summary["failed_evaluations"] == failed
    assert (summary["last"] is None) == (where == "beside")
    assert run.complete == (where == "between")
    assert f"step 10 could not be evaluated: evaluation in {ID}" in capsys.readouterr().out
    json.dumps(summary, allow_nan=False)


def test_the_last_evaluation_is_made_up_for(config, tmp_path):
    whole = tmp_path / "whole"
    register("")
    expected = dmamba.train(config, output=whole, progress=False)
    register("raises")
    with pytest.warns(UserWarning, match="could not be evaluated"):
        run = dmamba.train(config, output=tmp_path / "run", progress=False)
    assert run.finished and not run.complete
    assert failure_of(0, run.folder).startswith("not evaluated: evaluation in")
    register("")
    run = dmamba.train(None, output=run.folder, resume=True, progress=False)
    assert run.complete and failure_of(0, run.folder) == ""
    assert [one["checkpoint_step"] for one in run.failed_evaluations()] == [10, 20]
    [made], last = run.evaluations(), expected.evaluations()[-1]
    for row, same in zip(made["targets"], last["targets"], strict=True):
        assert row["returns"] == same["returns"]


def test_an_environment_that_cannot_be_made_at_all_ends_the_run_at_once(config, tmp_path):
    del gymnasium.registry[ID]
    with pytest.raises(dmamba.ConfigError, match=f"'{ID}' cannot be made"):
        dmamba.train(config, output=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_bandit_that_is_told_nothing_stays_with_what_it_has(config, tmp_path, capsys):
    config["training"] |= {"context": "bandit", "contexts": [1, 3, 5], "context_every": 10}
    config["evaluation"]["every"] = 0
    with pytest.warns(UserWarning, match="step 30 could not be evaluated"):
        run = dmamba.train(config, output=tmp_path / "run")
    with open(run.folder / "contexts.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["signal"], row["drawn_next"]) for row in rows] == [
        (step, "", "1") for step in ("10", "20", "30")
    ]
    out = capsys.readouterr().out
    assert "step 10: nothing decided, goes on with K 1; K 1: evaluation in" in out
    state = json.loads((run.latest_checkpoint()[1] / "state.json").read_text())
    assert "by design" in json.dumps(state)


def test_a_sweep_names_a_run_without_a_result(config, tmp_path):
    folder = tmp_path / "run"
    with pytest.warns(UserWarning):
        dmamba.train(config, output=folder, progress=False)
    from dmamba.runs.seeds import read_finished

    assert read_finished({7: folder}) == {}
    assert WHY in failure_of(0, folder)
    html = Run(folder)._repr_html_()
    assert "no evaluations" in html
