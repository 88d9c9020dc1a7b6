"""scripts/reproduce.py on a tiny experiment: runs, repetition, continuation, tables."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny, write_dataset

import dmamba
from dmamba.common import scores
from dmamba.runs.seeds import read_evaluation

ROOT = Path(__file__).parents[2]
TINY = """
seeds: [0, 1]
author: {step_ms: 10, action_ms: 2, environment_ms: 1, source: nobody}
config: config.yaml
data: tiny
overrides: [evaluation.episodes=2]
references:
  - {target: 100, return: 1, stderr: 0.5, source: made up}
  - {target: best, which: best, score: 1000, stderr: 1, source: made up}
experiments:
  - name: first
    reference_loss: 0.5
  - name: other
    overrides: [training.learning_rate=0.01]
    references: []
  - name: recurrent
    of: first
    policy: recurrent
  - name: short
    of: first
    context_length: 2
"""


@pytest.fixture
def folder(dataset, elsewhere):
    """A folder with the experiment's file; the dataset is found by --data only."""
    config = tiny(dataset, steps=12)
    config["dataset"] = {"path": "nowhere"}
    (elsewhere / "config.yaml").write_text(json.dumps(config))
    (elsewhere / "tiny.yaml").write_text(TINY)
    return elsewhere


@pytest.fixture
def read_file(monkeypatch):
    """The script's reader of experiment files."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    from reproduce import read_file

    return read_file


def reproduce(dataset, *arguments):
    script = ROOT / "scripts" / "reproduce.py"
    command = [sys.executable, str(script), "tiny.yaml", "--data", str(dataset.parent)]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=300)


def test_a_whole_experiment(folder, dataset):
    done = reproduce(dataset, "--jobs", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    output = folder / "runs" / "reproduce-tiny"
    results = json.loads((output / "results.json").read_text())["experiments"]
    assert [r["experiment"] for r in results] == ["first", "other", "recurrent", "short"]
    first, other, recurrent, short = results
    runs = [dmamba.Run(output / "runs" / f"first-seed{seed}") for seed in (0, 1)]
    means = [run.summary()["last"]["targets"][0]["return_mean"] for run in runs]
    assert [run.config.seed for run in runs] == [0, 1]
    assert first["targets"][0]["last"]["returns"] == means
    assert first["targets"][0]["last"]["return_mean"] == pytest.approx(np.mean(means))
    assert [(row["target"], row.get("not_below")) for row in first["targets"]] == [
        (100.0, True),
        (500.0, None),
        ("best", False),
    ]
    assert first["author_seconds"]["training"] == pytest.approx(0.12)
    lengths = [sum(sum(t["lengths"]) for t in run.evaluations()[0]["targets"]) for run in runs]
    assert first["author_seconds"]["evaluation"] == pytest.approx(np.mean(lengths) * 0.003)
    assert first["loss"] != other["loss"] and recurrent["loss"] is None
    assert recurrent["training_seconds"] == 0.0 and len(recurrent["targets"][0]["last"]) > 0
    again = dmamba.evaluate(runs[0], context_length=2, progress=False)
    assert short["targets"][0]["last"]["returns"][0] == again["targets"][0]["return_mean"]
    assert short["targets"][0]["last"]["returns"] != first["targets"][0]["last"]["returns"]
    table = (output / "results.md").read_text()
    assert "| first | 100 | 2 |" in table and " pass |" in table and " fail |" in table
    assert table in done.stdout
    with open(output / "results.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["experiment"] for row in rows].count("other") == 2
    assert float(rows[0]["last_return"]) == pytest.approx(np.mean(means))

    # Again: nothing runs, one run is continued, another seed is new, changed settings are refused.
    stamps = {path: path.stat().st_mtime_ns for path in output.glob("runs/*/summary.json")}
    removed = output / "runs" / "first-seed1" / "summary.json"
    removed.unlink()
    done = reproduce(dataset, "--seeds", "1", "2", "--only", "first", "--jobs", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    after = {path: path.stat().st_mtime_ns for path in output.glob("runs/*/summary.json")}
    assert {path for path in stamps if after[path] != stamps[path]} == {removed}
    assert dmamba.Run(removed.parent).summary()["times"]["first_step"] == 12
    assert len(after) == 5 and "(since resumed)" in done.stdout
    done = reproduce(dataset, "training.steps=13", "--only", "recurrent")
    assert done.returncode == 1
    assert "first seed 0: runs/reproduce-tiny/runs/first-seed0 was made with" in done.stdout
    assert "recurrent seed 0: done" in done.stdout


def test_a_run_that_fails_leaves_the_others(folder, dataset):
    (folder / "tiny.yaml").write_text(
        TINY.replace("[training.learning_rate=0.01]", "[training.nonsense=1]")
    )
    done = reproduce(dataset, "--seeds", "0", "--only", "first", "other")
    assert done.returncode == 1
    assert "first seed 0: done" in done.stdout and "| first | 100 | 1 |" in done.stdout
    assert "other seed 0: exit code 2: dmamba: error: " in done.stdout
    assert "other: no finished run of seed 0" in done.stdout


def test_it_stops_in_time(folder, dataset):
    arguments = ["training.steps=1000000", "--seeds", "0", "--only", "first"]
    done = reproduce(dataset, *arguments, "--stop-after", "8")
    assert done.returncode == 1 and "first seed 0: stopped" in done.stdout
    run = dmamba.Run(folder / "runs" / "reproduce-tiny" / "runs" / "first-seed0")
    assert not (run.folder / "summary.json").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("experiments: [{name: a, config: b, sedes: [1]}]", "unknown keys ['sedes']"),
        ("experiments: [{config: b}]", "an experiment has no name"),
        ("experiments: [{name: a}]", "a needs a config"),
        ("experiments: [{name: a, of: b}]", "a: there is no experiment 'b'"),
        ("experiments: [{name: a, config: c}, {name: a, config: d}]", "two experiments 'a'"),
    ],
)
def test_files_that_cannot_be_used(elsewhere, read_file, text, message):
    (elsewhere / "bad.yaml").write_text(text)
    with pytest.raises(SystemExit, match=f"bad.yaml: .*{re.escape(message)}"):
        read_file(Path("bad.yaml"))


def test_the_files_that_come_with_the_project(read_file):
    for path in sorted((ROOT / "configs" / "reproduce").glob("*.yaml")):
        experiments, author = read_file(path)
        assert experiments
        # Compared with each other, which his program cannot; batch 128.
        compared = path.stem in ("ablations", "mixers", "transfer") or "context" in path.stem
        assert (author is None) == (compared or path.stem == "atari")
        assert author is None or author["step_ms"] == 16.7
        for experiment in experiments:
            assert experiment.seeds == [0, 1, 2]
            assert bool(experiment.references) != compared
            assert all("source" in r for r in experiment.references)
            if not experiment.of:
                known = [o for o in experiment.overrides if not o.startswith("training.graph=")]
                known += ["transfer.init_from=runs/other"] * bool(experiment.begins)
                config = dmamba.configuration.load_config(experiment.config, known)
                assert {r["target"] for r in experiment.references} <= {
                    *config.evaluation.targets,
                    "best",
                }


def test_a_damaged_evaluation_is_named(tmp_path):
    path = tmp_path / "bf16.json"
    path.write_text('{"targets": [')
    with pytest.raises(dmamba.DataError, match=r"bf16\.json: damaged, not JSON .* evaluates again"):
        read_evaluation(path)


def test_interval_over_seeds():
    # Student's factor for 2 degrees of freedom is 4.302653; the standard error is 1 / sqrt(3).
    low, high = scores.student_interval(np.array([1.0, 2.0, 3.0]))
    assert (low, high) == pytest.approx((2 - 4.302653 / np.sqrt(3), 2 + 4.302653 / np.sqrt(3)))
    assert scores.student_interval(np.array([1.0])) is None


def test_two_combined_standard_errors():
    assert scores.not_below(90.1, 3.0, 100.0, 4.0)
    assert not scores.not_below(89.9, 3.0, 100.0, 4.0)


def test_fine_tuning_against_from_scratch(elsewhere, tmp_path):
    """configs/reproduce/transfer.yaml at the smallest sizes, on the bundled sample."""
    sample = Path(dmamba.data.locate("samples/hopper-medium.hdf5"))
    for name in ("hopper-medium", "hopper-medium-replay"):
        shutil.copyfile(sample, tmp_path / f"{name}.hdf5")
    for name in ("halfcheetah-medium", "halfcheetah-medium-replay"):
        write_dataset(tmp_path / f"{name}.hdf5", 17, 6)
    overrides = ["model.d_model=8", "model.n_layer=1", "model.context_length=2", "batch_size=4"]
    overrides += ["training.steps=3", "warmup_steps=1", "evaluation.episodes=1", "device=cpu"]
    script = ROOT / "scripts" / "reproduce.py"
    file = ROOT / "configs" / "reproduce" / "transfer.yaml"
    command = [sys.executable, str(script), str(file), *overrides, "--data", str(tmp_path)]
    command += ["--seeds", "1", "--jobs", "2", "--output", str(tmp_path / "out")]
    command += ["--only", "scratch", "fine-tune", "fine-tune-own-heads"]  # and what they need
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())["experiments"]
    assert [r["experiment"] for r in results] == [
        "pretrain (halfcheetah-medium)",
        "pretrain (halfcheetah-medium-replay)",
        "pretrain (hopper-medium-replay)",
        "scratch",
        "fine-tune",
        "fine-tune-own-heads",
    ]
    assert all(r["seeds"] == [1] and r["targets"] for r in results)
    runs = tmp_path / "out" / "runs"
    for name, fresh in (("fine-tune", 6), ("fine-tune-own-heads", 0)):
        began = json.loads((runs / f"{name}-seed1" / "transfer.json").read_text())
        assert f"pretrain-seed1{os.sep}" in began["from"] and len(began["fresh"]) == fresh
    for name in ("scratch", "fine-tune"):
        assert dmamba.Run(runs / f"{name}-seed1").summary()["dataset"]["episodes"] == 23


def test_experiments_that_need_each_other(folder, read_file):
    def refuse(text, message):
        (folder / "bad.yaml").write_text("config: config.yaml\nexperiments:\n" + text)
        with pytest.raises(SystemExit, match=message):
            read_file(folder / "bad.yaml")

    refuse("  - {name: a, from: b}\n", "there is no experiment 'b'")
    refuse("  - {name: a, from: b}\n  - {name: b, from: a}\n", "a -> b -> a: leads back to itself")
