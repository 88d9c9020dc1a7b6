"""A sweep of tiny runs: processes, failures, continuation, tables."""

import csv
import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import tiny

import dmamba
from dmamba.commands import main
from dmamba.display import plots
from dmamba.runs.seeds import summarize
from dmamba.sweeps import sweep_report


@pytest.fixture
def config(dataset):
    """A configuration that trains in an instant, and evaluates two targets."""
    made = tiny(dataset, steps=8)
    made["evaluation"]["episodes"] = 1
    return made


def stamps(folder):
    return {path: path.stat().st_mtime_ns for path in folder.glob("*/summary.json")}


def test_a_sweep_with_a_run_that_fails(config, elsewhere, capfd):
    folder = elsewhere / "out"
    bad = folder / "context_length=5-seed1"
    bad.mkdir(parents=True)
    (bad / "notes.txt").write_text("not a run")
    result = dmamba.sweep(config, ["K=3,5", "seed=0:2"], output=folder, jobs=2)
    out = capfd.readouterr().out
    assert list(result.failures) == [bad]
    log = folder / "context_length=5-seed1.log"
    line = f"context_length=5 seed 1: exit code 2: {log.read_text().strip()} ({log})"
    assert "the folder holds other files" in line and line in out
    assert "context_length=3 seed 0: 100 -> " in out and f"runs in {folder}: 4, 2 at a time" in out
    assert "not finished: 1 of 4" in out and f"dmamba report {folder}" in out

    # The table: of the runs that have finished.
    first, second = result.rows
    assert (first["context_length"], first["seeds"], first["failed_seeds"]) == (3, 2, "")
    assert (second["context_length"], second["seeds"], second["failed_seeds"]) == (5, 1, "1")
    runs = [dmamba.Run(folder / f"context_length=3-seed{seed}") for seed in (0, 1)]
    assert [(run.config.seed, run.config.model.context_length) for run in runs] == [(0, 3), (1, 3)]
    targets = [run.summary()["last"]["targets"][1] for run in runs]
    returns = [row["return_mean"] for row in targets]
    assert first["last_return_500"] == pytest.approx(np.mean(returns))
    assert first["last_score_500"] == pytest.approx(np.mean([t["score_mean"] for t in targets]))
    assert first["last_score_low_500"] < first["last_score_500"] < first["last_score_high_500"]
    assert first["loss"] == pytest.approx(
        np.mean([run.metrics()["training/loss"].mean() for run in runs])
    )
    table = (folder / "sweep.md").read_text()
    assert "| context_length | seeds | last 100 | best 100 |" in table
    assert "| 3 | 2 | " in table and "| 5 | 1 | " in table and f"- {line}" in table
    with open(folder / "sweep.csv") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["last_return_500"]) for row in rows] == [
        row["last_return_500"] for row in result.rows
    ]
    points = json.loads((folder / "sweep.json").read_text())["points"]
    assert points[0]["targets"][1]["last"]["returns"] == returns
    assert "exit code 2" in points[1]["failures"]["1"]
    assert (folder / "plots" / "score-against-context_length.png").is_file()

    # Again, from the command line: what has finished is kept; quiet; other settings are refused.
    before = stamps(folder)
    (bad / "notes.txt").unlink()
    (elsewhere / "tiny.json").write_text(json.dumps(config))
    words = ["sweep", "tiny.json", "K=3,5", "seed=0:2", "--output", str(folder)]
    assert main([*words, "--no-progress"]) == 0
    assert capfd.readouterr() == ("", "")
    after = stamps(folder)
    assert set(after) - set(before) == {bad / "summary.json"}
    assert all(after[path] == before[path] for path in before)
    assert main([*words, "episodes=2"]) == 2
    error = capfd.readouterr().err
    assert f"{folder}/context_length=3-seed0 was made with other settings: " in error
    assert "evaluation.episodes was 1, now 2" in error


def test_failures_are_said_without_progress_too(config, elsewhere, capfd):
    (elsewhere / "tiny.json").write_text(json.dumps(config))
    bad = elsewhere / "runs" / "sweep-tiny" / "tiny-seed7"
    bad.mkdir(parents=True)
    (bad / "notes.txt").write_text("not a run")
    assert main(["sweep", "tiny.json", "--no-progress", "--jobs", "1"]) == 1
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("tiny seed 7: exit code 2: dmamba: error: ")
    table = (bad.parent / "sweep.md").read_text()
    assert "| seeds | loss |" in table and "| 0 | - |" in table
    with pytest.raises(dmamba.ConfigError, match="jobs must be at least 1, got 0"):
        dmamba.sweep(config, jobs=0)


def test_a_stopped_sweep_continues(config, elsewhere):
    config["training"] |= {"steps": 400, "checkpoint_every": 20, "log_every": 20}
    (elsewhere / "tiny.json").write_text(json.dumps(config))
    words = ["sweep", "tiny.json", "seed=0:2", "--jobs", "1", "--output", "out"]
    command = [sys.executable, "-m", "dmamba", *words]
    first, second = (elsewhere / "out" / f"tiny-seed{seed}" for seed in (0, 1))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while not dmamba.Run(first).checkpoints() and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGINT
    assert "tiny seed 0: stopped" in out and "not finished: 2 of 2" in out
    assert not (first / "summary.json").exists() and not second.exists()
    stopped = dmamba.Run(first).latest_checkpoint()[0]
    assert 0 < stopped < 400
    assert main([*words, "--no-progress"]) == 0
    assert dmamba.Run(first).summary()["times"]["first_step"] == stopped
    assert dmamba.Run(second).summary()["times"]["first_step"] == 0


def made_point(value, returns, environment="Hopper-v4", target=100.0):
    """A point as :func:`dmamba.sweeps.sweep_report.collect` gives it, of one target."""
    scored = environment == "Hopper-v4"
    records = {}
    for seed, mean in enumerate(returns):
        row = {"return_mean": mean, "return_stderr": 2.0, "score_mean": 1.0 if scored else None}
        parts = ("training", "evaluation", "waiting")
        records[seed] = {
            "environment": environment,
            "device": "cpu",
            "loss": 0.5,
            "last": {target: row},
            "best": {target: row},
            "times": {"first_step": 0, **{f"{part}_seconds": 1.0 for part in parts}},
        }
    failures = {} if records else {0: "stopped"}
    summary = summarize(f"K={value}", records, list(range(len(returns))) or [0])
    return {
        "settings": {"K": value},
        "environment": environment,
        "failures": failures,
        **summary,
    }


def test_tables_of_unlike_points():
    points = [made_point(5, []), made_point(10, [4.0, 6.0]), made_point(20, [3.0], target=200.0)]
    header, empty, two, one = sweep_report.table_cells(points)
    assert header[:6] == ["K", "seeds", "last 100", "best 100", "last 200", "best 200"]
    assert empty == ["5", "0", *["-"] * 7]
    assert two[:2] == ["10", "2"] and two[2].endswith("]") and two[4] == "-"
    assert one[2] == "-" and one[4].endswith("± 0.1"), "2 / 32.545, of the episodes"
    rows = sweep_report.flat_rows(points)
    assert len({tuple(row) for row in rows}) == 1, "all rows have the same keys"
    assert rows[0]["last_return_100"] is None and rows[0]["failed_seeds"] == "0"
    assert (rows[1]["last_return_100"], rows[1]["last_return_stderr_100"]) == (5.0, 1.0)
    unscored = sweep_report.table_cells([made_point(5, [4.0, 6.0], "CartPole-v1")])
    assert unscored[1][2] == "5.0 ± 1.0"


@pytest.mark.parametrize("environment", ["Hopper-v4", "CartPole-v1"])
@pytest.mark.parametrize("values", [[5], [5, 10], [1, 10, 100]])
def test_any_sweep_can_be_drawn(tmp_path, environment, values):
    points = [made_point(value, [4.0, 6.0][: 1 + value % 2], environment) for value in values]
    path = plots.plot_sweep("tiny", "K", points, 3.0, tmp_path / "plots" / "sweep.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [entry.name for entry in path.parent.iterdir()] == ["sweep.png"]
