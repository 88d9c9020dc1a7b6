"""A search: what is refused, what Optuna chooses, how it continues, what it leaves."""

import csv
import fcntl
import json
import math
import re

import pytest
from conftest import LENGTHS, tiny

import dmamba
from dmamba.commands import main
from dmamba.engines.runner import STOPPED
from dmamba.runs import seeds
from dmamba.sweeps import search
from dmamba.sweeps.ranges import Range, parse_range

SPACE = ["learning_rate=log:1e-4..1e-2", "dropout=0.0..0.3", "K=3,5,7"]


@pytest.fixture
def config(dataset):
    made = tiny(dataset, steps=8)
    made["evaluation"]["episodes"] = 1
    return made


class Trainings:
    """In place of real ones: a run's score follows from its settings; the search is real."""

    def __init__(self, monkeypatch):
        self.trained, self.settings, self.seen = [], {}, {}
        self.outcome = lambda settings, folder: ""
        monkeypatch.setattr(search, "run_all", self.run_all)
        monkeypatch.setattr(search, "read_run", self.read)
        monkeypatch.setattr(seeds, "read_run", self.read)

    def run_all(self, runner, runs, folder, shown):
        failures = {}
        for run, (point, seed) in runs.items():
            if (run / "summary.json").is_file():
                continue
            self.settings[run] = point.settings
            failure = self.outcome(point.settings, run)
            if failure == "kill":
                raise SystemExit(9)
            self.trained.append(run.name)
            shown.ended(run, f"{point.label} seed {seed}: {failure}", failure)
            if failure:
                failures[run] = failure
            else:
                run.mkdir(parents=True)
                (run / "summary.json").write_text("{}")
        return failures

    def read(self, run):
        found = self.settings[run]
        seed = int(run.name[-1])
        score = -abs(math.log10(found.get("training.learning_rate", 1e-3)) + 3) + seed
        parts = ("training", "evaluation", "waiting")
        rows = {
            100.0: {"return_mean": 1.0, "return_stderr": None, "score_mean": score},
            500.0: {"return_mean": 2.0, "return_stderr": None, "score_mean": score + 10.0},
        }
        return {
            "environment": "Hopper-v4",
            "device": "cpu",
            "loss": 0.5,
            "last": rows,
            "best": rows,
            "times": {"first_step": 0, **{f"{part}_seconds": 1.0 for part in parts}},
        }


@pytest.fixture
def trainings(monkeypatch):
    return Trainings(monkeypatch)


def by_trial(result):
    return sorted(result.rows, key=lambda row: row["trial"])


def chosen(result):
    keys = ("learning_rate", "dropout", "context_length")
    return [tuple(row[key] for key in keys if key in row) for row in by_trial(result)]


def test_ranges():
    assert parse_range("k", "log:1e-4..1e-2", 1.0) == Range(1e-4, 1e-2, True)
    assert parse_range("k", "0..0.3", 1.0) == Range(0.0, 0.3, False)
    found = parse_range("k", "5..20", 3)
    assert found == Range(5, 20, False) and found.whole and found.ends == ["5", "20"]
    assert parse_range("k", "5", 3) is None and parse_range("k", "../data", "x") is None


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["dropout=0.3..0.1"], "model.dropout=0.3..0.1: an empty range"),
        (["dropout=0.1..0.1"], "an empty range"),
        (["dropout=0.1..x"], "not a range of numbers"),
        (["dropout=0..inf"], "not a range of numbers"),
        (["K=1.5..3"], "model.context_length=1.5..3: not a range of whole numbers"),
        (["learning_rate=log:1e-3"], "not a range of numbers; write low..high or log:low..high"),
        (["learning_rate=log:0..1e-3"], "log: needs a lower end greater than 0"),
        (["dropout=0.0..1.0"], "point model.dropout=1.0: .*model.dropout.* less than 1"),
        (["learning_rate=0..1"], "point training.learning_rate=0.0: .* greater than 0"),
        (["K=0..9"], "point model.context_length=0: .* must be from 1"),
        (["K=5,10..20"], "a range in a list; give it alone"),
        (["seed=0..3", "K=3,5"], "seed=0:3 gives each trial seeds"),
        (["K=5", "seed=0:2"], "nothing to search"),
        (["K=3,5,3"], "model.context_length 3 is in the grid twice"),
        (["K=3,5", "targets=[7]"], "target 100 is not evaluated at point .* are 7;"),
    ],
)
def test_spaces_that_cannot_be_used(config, elsewhere, texts, message):
    with pytest.raises(dmamba.ConfigError, match=message):
        dmamba.sweep(config, texts, trials=3, target=100.0)
    assert not (elsewhere / "runs").exists(), "nothing has started"


@pytest.mark.parametrize("low", [1, 3])
def test_a_context_that_no_episode_fills(config, low):
    text = f"K={low}..{max(LENGTHS) + 1}"
    with pytest.raises(dmamba.DataError, match=f"context_length={max(LENGTHS) + 1}: .* longest"):
        dmamba.sweep(config, [text], trials=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trials": 0}, "trials must be at least 1, got 0"),
        ({"sampler": "bayes"}, "sampler must be one of tpe, .*, got 'bayes'"),
        ({"sampler_seed": -1}, "sampler_seed must be at least 0"),
        ({"target": "worst"}, "target must be a return or one of mean, best, got 'worst'"),
        ({"jobs": 0}, "jobs must be at least 1"),
        ({"sampler": "grid"}, "sampler grid: training.learning_rate is a range of fractions"),
    ],
)
def test_options_that_cannot_be_used(config, elsewhere, options, message):
    with pytest.raises(dmamba.ConfigError, match=message):
        dmamba.sweep(config, SPACE, **{"trials": 3, **options})
    assert not (elsewhere / "runs").exists()


def test_a_range_needs_trials_and_options_too(config, elsewhere, capfd):
    (elsewhere / "tiny.json").write_text(json.dumps(config))
    assert main(["sweep", "tiny.json", "K=3..7"]) == 2
    assert "model.context_length=3..7 is a range" in capfd.readouterr().err
    assert main(["sweep", "tiny.json", "K=3,7", "--sampler-seed", "1"]) == 2
    assert "--sampler-seed is for a search" in capfd.readouterr().err


def test_optuna_is_named_where_it_is_missing(config, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(dmamba.ConfigError, match=re.escape("pip install 'dmamba[sweep]'")):
        dmamba.sweep(config, SPACE, trials=3)


@pytest.mark.parametrize("sampler", ["tpe", "random", "cmaes", "gp", "qmc"])
def test_the_same_seed_gives_the_same_trials(config, elsewhere, trainings, sampler):
    options = {"sampler": sampler, "progress": False, "jobs": 1}
    # More than the ten trials with which TPE and GP begin at random.
    whole = dmamba.sweep(config, SPACE, trials=13, output="whole", **options)
    assert len(set(chosen(whole))) > 10
    for rate, dropout, context in chosen(whole):
        assert 1e-4 <= rate <= 1e-2 and 0.0 <= dropout <= 0.3 and context in (3, 5, 7)
    dmamba.sweep(config, SPACE, trials=4, output="parts", **options)
    parts = dmamba.sweep(config, SPACE, trials=13, output="parts", **options)
    assert chosen(parts) == chosen(whole), "continued, as if it had not been stopped"
    other = dmamba.sweep(config, SPACE, trials=4, output="other", sampler_seed=1, **options)
    assert chosen(other) != chosen(whole)[:4]


def test_tables_and_the_best(config, elsewhere, trainings, capfd):
    texts = ["learning_rate=log:1e-4..1e-2", "dropout=0.0..0.3", "seed=0:2"]
    result = dmamba.sweep(config, texts, trials=12, target=500.0, output="out", jobs=4)
    folder = elsewhere / "out"
    values = [row["objective"] for row in result.rows]
    assert len(values) == 12 and values == sorted(values, reverse=True)
    best = result.rows[0]
    expected = -abs(math.log10(best["learning_rate"]) + 3) + 0.5 + 10.0
    assert values[0] == pytest.approx(expected), "mean over seeds, at the target"
    assert (best["seeds"], best["state"]) == (2, "complete")
    content = json.loads((folder / "sweep.json").read_text())
    assert content["best_trial"] == best["trial"]
    weights = content["importances"]
    assert list(weights) == ["training.learning_rate", "model.dropout"]
    assert sum(weights.values()) == pytest.approx(1.0)
    loaded = dmamba.Config.load(str(folder / "best.yaml"))
    assert loaded.training.learning_rate == best["learning_rate"]
    assert (loaded.model.dropout, loaded.seed) == (best["dropout"], 0)
    with open(folder / "sweep.csv") as file:
        assert [float(row["objective"]) for row in csv.DictReader(file)] == values
    text = (folder / "sweep.md").read_text()
    assert "| trial | state | objective | learning_rate | dropout | seeds |" in text
    assert f"- best: trial {best['trial']}, " in text and "importance (PED-ANOVA): train" in text
    assert f"best: trial {best['trial']}, " in capfd.readouterr().out


@pytest.mark.parametrize(("target", "value"), [(100.0, 3.0), ("mean", 4.0), ("best", 5.0)])
def test_objective(target, value):
    scored = {"return_mean": 30.0, "score_mean": 3.0}
    rows = {100.0: scored, 500.0: {**scored, "score_mean": 5.0}}
    assert search.objective({"last": rows}, target) == value
    raw = {"return_mean": 7.0, "score_mean": None}
    assert search.objective({"last": {100.0: raw}}, "mean" if target == "mean" else 100.0) == 7.0


def test_a_failed_run_is_a_failed_trial(config, elsewhere, trainings, capfd):
    trainings.outcome = lambda found, run: "exit code 2" if run.name == "trial-0001-seed1" else ""
    options = {"output": "out", "jobs": 1, "progress": False}
    result = dmamba.sweep(config, [*SPACE, "seed=0:2"], trials=3, **options)
    assert [run.name for run in result.failures] == ["trial-0001-seed1"]
    assert "trial-0001 seed 1: exit code 2" in capfd.readouterr().err
    assert [row["state"] for row in by_trial(result)] == ["complete", "fail", "complete"]
    failed = result.rows[-1]
    assert (failed["trial"], failed["objective"], failed["failed_seeds"]) == (1, None, "1")
    assert "trial-0001 seed 1: seed 1: exit code 2" not in (elsewhere / "out/sweep.md").read_text()
    assert "- trial-0001 seed 1: exit code 2" in (elsewhere / "out/sweep.md").read_text()
    before = list(trainings.trained)
    again = dmamba.sweep(config, [*SPACE, "seed=0:2"], trials=3, **options)
    assert trainings.trained == before and chosen(again) == chosen(result)


def test_settings_that_do_not_go_together_are_a_failed_trial(config, trainings):
    config["model"]["token_mixer"] = ["attention"]
    result = dmamba.sweep(
        config, ["n_head=1..4"], trials=4, sampler="grid", output="out", progress=False
    )
    (failed,) = [row for row in result.rows if row["state"] == "fail"]
    assert failed["n_head"] == 3, "16 channels are not divided by 3 heads"
    assert "n_head" in next(iter(result.failures.values()))
    assert sorted(row["n_head"] for row in result.rows) == [1, 2, 3, 4]


def test_the_grid_ends_with_its_points(config, trainings):
    texts = ["K=3..5", "n_layer=1,2"]
    result = dmamba.sweep(config, texts, trials=99, sampler="grid", output="out", progress=False)
    rows = [(row["context_length"], row["n_layer"]) for row in result.rows]
    assert sorted(rows) == [(k, n) for k in (3, 4, 5) for n in (1, 2)]
    assert rows != sorted(rows), "in a random order"


def test_equal_settings_are_trained_once(config, trainings):
    result = dmamba.sweep(config, ["K=3,5"], trials=8, output="out", jobs=1, progress=False)
    assert len(trainings.trained) == 2 and len(result.rows) == 8
    assert len({(row["context_length"], row["objective"]) for row in result.rows}) == 2
    assert sum(row["state"].startswith("as ") for row in result.rows) == 6


@pytest.mark.parametrize("how", ["kill", STOPPED])
def test_a_killed_search_continues(config, elsewhere, trainings, how):
    options = {"jobs": 1, "progress": False}
    texts = [*SPACE, "seed=0:2"]
    whole = dmamba.sweep(config, texts, trials=5, output="whole", **options)
    trainings.trained.clear()
    trainings.outcome = lambda found, run: how if run.name == "trial-0002-seed1" else ""
    if how == "kill":
        with pytest.raises(SystemExit):
            dmamba.sweep(config, texts, trials=5, output="out", **options)
    else:
        stopped = dmamba.sweep(config, texts, trials=5, output="out", **options)
        states = [row["state"] for row in by_trial(stopped)]
        assert states == ["complete", "complete", "running"]
    first = [name for name in trainings.trained if name != "trial-0002-seed1"]
    trainings.trained.clear()
    trainings.outcome = lambda found, run: ""
    result = dmamba.sweep(config, texts, trials=5, output="out", **options)
    assert trainings.trained[0] == "trial-0002-seed1", "the trial that was running"
    assert not set(first) & set(trainings.trained) and len(first) + len(trainings.trained) == 10
    assert chosen(result) == chosen(whole)


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ([*SPACE, "batch_size=4"], {}, "other settings: training.batch_size was 8, now 4"),
        (["dropout=0.0..0.2"], {}, "searched otherwise: space was "),
        (SPACE, {"sampler_seed": 3}, "searched otherwise: sampler_seed was 0, now 3"),
        (SPACE, {"trials": None}, "is a range"),
        (["K=3,5"], {"trials": None}, "holds a search"),
    ],
)
def test_a_folder_of_another_search(config, trainings, texts, options, message):
    dmamba.sweep(config, SPACE, trials=1, output="out", progress=False)
    with pytest.raises(dmamba.ConfigError, match=message):
        dmamba.sweep(config, texts, **{"trials": 1, "output": "out", **options})


def test_a_folder_of_a_grid(config, elsewhere, trainings):
    (elsewhere / "out").mkdir()
    (elsewhere / "out" / "run.yaml").write_text("name: x\n")
    with pytest.raises(dmamba.ConfigError, match="out holds a sweep over a grid"):
        dmamba.sweep(config, SPACE, trials=1, output="out")


def test_a_run_that_is_still_training(config, elsewhere, trainings):
    dmamba.sweep(config, SPACE, trials=1, output="out", progress=False)
    lock = elsewhere / "out" / "trial-0000-seed7" / ".lock"
    with open(lock, "w") as file:
        file.write("123\n")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(dmamba.Error, match="seed7: process 123 is training in this folder"):
            dmamba.sweep(config, SPACE, trials=2, output="out", progress=False)
    assert len(dmamba.sweep(config, SPACE, trials=2, output="out", progress=False).rows) == 2


def test_a_real_search(config, elsewhere, capfd):
    (elsewhere / "tiny.json").write_text(json.dumps(config))
    words = ["sweep", "tiny.json", "learning_rate=log:1e-4..1e-2", "--output", "out"]
    words += ["--trials", "3", "--jobs", "2", "--target", "500", "--sampler", "random"]
    assert main(words) == 0
    out = capfd.readouterr().out
    assert "trial-0000 seed 7: 100 -> " in out and "best: trial " in out
    content = json.loads((elsewhere / "out" / "sweep.json").read_text())
    objectives = {}
    for number in range(3):
        run = dmamba.Run(elsewhere / "out" / f"trial-{number:04d}-seed7")
        objectives[number] = run.summary()["last"]["targets"][1]["score_mean"]
    assert content["best_trial"] == max(objectives, key=objectives.get)
    for point in content["points"]:
        settings = point["settings"]
        assert settings["objective"] == pytest.approx(objectives[settings["trial"]])
        config_of = dmamba.Run(elsewhere / "out" / f"{point['experiment']}-seed7").config
        assert config_of.training.learning_rate == settings["learning_rate"]
