"""Sweeps on a Ray cluster of this machine, on what looks like Slurm, and beside each other here."""

import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import tiny

import dmamba
from dmamba import engines
from dmamba.commands import main
from dmamba.engines import runner
from dmamba.engines import slurm as slurm_engine

COMMANDS = Path(__file__).with_name("slurm_commands.py")


@pytest.fixture
def config(dataset, elsewhere):
    """tiny.json: it trains in an instant, and evaluates nothing but one episode."""
    made = tiny(dataset)
    made["evaluation"] |= {"episodes": 1, "targets": [100]}
    (elsewhere / "tiny.json").write_text(json.dumps(made))
    return made


@pytest.fixture
def long(config, elsewhere):
    """long.json: it is still at work when a test stops it, and ends soon all the same."""
    config["training"] |= {"steps": 1000, "checkpoint_every": 20, "log_every": 20}
    (elsewhere / "long.json").write_text(json.dumps(config))
    return config


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Slurm's commands on the PATH; the folder with their records."""
    home, programs = tmp_path / "slurm", tmp_path / "bin"
    programs.mkdir()
    (home / "jobs").mkdir(parents=True)
    for name in ("sbatch", "squeue", "sacct", "scancel", "srun"):
        program = programs / name
        program.write_text(f"#!{sys.executable}\n" + COMMANDS.read_text())
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(home))
    return home


def calls(home, name):
    lines = (home / "calls.log").read_text().splitlines()
    return [line for line in lines if line.split()[0] == name]


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.02)


def begin(*words):
    command = [sys.executable, "-m", "dmamba", "sweep", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def first_step(folder):
    return dmamba.Run(folder).summary()["times"]["first_step"]


def uses(process, folder):
    try:
        return str(folder) in (process / "cmdline").read_text(errors="replace").split("\0")
    except OSError:
        return False


def trainings(run):
    """The processes that train a run, as folders of /proc."""
    return [path for path in Path("/proc").glob("[0-9]*") if uses(path, run.folder)]


def train_while(run, elsewhere, engine, options, kill):
    """The failure of a run whose engine is hurt after its first checkpoint."""
    training = engines.Training(elsewhere / "long.json", (), run.folder)
    ended = []

    def hurt():
        wait_for(run.checkpoints)
        kill()

    with engines.make_engine(engine, options, None, "cpu", run.folder.parent) as made:
        thread = threading.Thread(target=hurt)
        thread.start()
        failures = made.run_all([training], lambda *end: ended.append(end))
        thread.join()
    assert ended == [(0, failures[0])]
    return failures[0]


# Ray


@pytest.fixture(scope="module")
def cluster():
    """A cluster of this machine for all tests with Ray, and its address."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))  # else it is kept in the home folder
        # It ignores SIGINT, as what a shell starts in the background does.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            context = ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        finally:
            signal.signal(signal.SIGINT, before)
        yield context.address_info["gcs_address"]
        ray.shutdown()


def test_ray(config, elsewhere, cluster, capfd):
    bad = elsewhere / "out" / "tiny-seed2"
    bad.mkdir(parents=True)
    (bad / "notes.txt").write_text("not a run")
    words = ["sweep", "tiny.json", "seed=0:3", "--output", "out", "--engine", "ray"]
    assert main([*words, "--ray", "cpus=1"]) == 1
    out = capfd.readouterr().out
    assert "runs in out: 3, on Ray with 1 CPUs and 0 GPUs each" in out
    assert "tiny seed 2: exit code 2: dmamba: error: " in out and "not finished: 1 of 3" in out
    folders = [elsewhere / "out" / f"tiny-seed{seed}" for seed in (0, 1)]
    before = [(folder / "summary.json").stat().st_mtime_ns for folder in folders]
    assert [dmamba.Run(folder).config.seed for folder in folders] == [0, 1]
    assert (elsewhere / "out" / "tiny-seed0.log").is_file()

    # Again: nothing but the third, and on another engine nothing at all.
    (bad / "notes.txt").unlink()
    result = dmamba.sweep("tiny.json", ["seed=0:3"], output="out", engine="ray", progress=False)
    assert result.failures == {} and result.rows[0]["seeds"] == 3
    assert before == [(folder / "summary.json").stat().st_mtime_ns for folder in folders]

    with pytest.raises(dmamba.ConfigError, match=r"50 CPUs and 0 GPUs, and no node has as many"):
        dmamba.sweep("tiny.json", engine="ray", engine_options={"cpus": 50}, progress=False)


def test_ctrl_c_on_ray(long, elsewhere, cluster):
    steps = 50_000  # far from done when Ray has told its worker
    words = ["long.json", f"training.steps={steps}", "seed=0:2", "--output", "out"]
    words += ["--engine", "ray"]
    options = f"address={cluster},cpus=2"
    runs = [dmamba.Run(elsewhere / "out" / f"tiny-seed{seed}") for seed in (0, 1)]
    with begin(*words, "--ray", options) as process:
        wait_for(lambda: runs[0].checkpoints() or process.poll() is not None)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=180)  # Ray loses requests, which are repeated
    assert process.returncode == 128 + signal.SIGINT, out
    assert "tiny seed 0: stopped" in out and "tiny seed 1: stopped" in out, out
    assert not runs[1].folder.exists()
    assert 0 < runs[0].latest_checkpoint()[0] < steps


def test_an_interrupt_that_loses_the_exit_status(long, elsewhere, monkeypatch):
    """Between waiting for a process and noting its status: Python then takes it to be 0."""
    run = engines.Training(elsewhere / "long.json", (), elsewhere / "run")
    run.folder.mkdir()
    codes = iter([KeyboardInterrupt(), 0])

    def lose(process):
        code = next(codes)
        if isinstance(code, BaseException):
            raise code
        process.wait()
        return code

    monkeypatch.setattr("dmamba.engines.base.wait_for", lose)
    assert run.run() == runner.STOPPED


def test_a_search_on_ray(config, elsewhere, cluster, capfd):
    words = ["sweep", "tiny.json", "K=3,5", "dropout=0.0..0.3", "seed=7", "--trials", "2"]
    words += ["--output", "out", "--jobs", "2", "--sampler", "random"]
    assert main([*words, "--engine", "ray", "--ray", "cpus=1"]) == 0
    assert "on Ray with 1 CPUs and 0 GPUs each" in capfd.readouterr().out
    runs = [elsewhere / "out" / f"trial-000{number}-seed7" for number in (0, 1)]
    before = [(run / "summary.json").stat().st_mtime_ns for run in runs]
    # The same trials here: an engine is where runs are trained, nothing of what they are.
    assert main(words) == 0
    assert before == [(run / "summary.json").stat().st_mtime_ns for run in runs]


def test_a_search_elsewhere_needs_the_size_of_a_round(config, elsewhere, capfd):
    words = ["sweep", "tiny.json", "K=3,5", "--trials", "2", "--output", "out"]
    assert main([*words, "--engine", "ray"]) == 2
    assert "a search on engine ray needs --jobs N" in capfd.readouterr().err
    assert main([*words, "--engine", "dask"]) == 2
    assert "engine: no 'dask'" in capfd.readouterr().err
    assert main([*words, "--jobs", "0"]) == 2
    assert "jobs must be at least 1, got 0" in capfd.readouterr().err


def test_a_task_of_ray_that_dies_is_a_failed_run(long, elsewhere, cluster):
    run = dmamba.Run(elsewhere / "out" / "tiny-seed7")

    def kill():
        status = (trainings(run)[0] / "status").read_text()
        os.kill(int(status.split("PPid:")[1].split()[0]), signal.SIGKILL)

    assert train_while(run, elsewhere, "ray", {"cpus": 1}, kill).startswith("lost by Ray: ")
    wait_for(lambda: not trainings(run))


# Slurm

SLURM = ["--engine", "slurm", "--slurm", "time=60,partition=gpu,cpus_per_task=2"]


def test_slurm(config, elsewhere, slurm, capfd):
    bad = elsewhere / "out" / "tiny-seed2"
    bad.mkdir(parents=True)
    (bad / "notes.txt").write_text("not a run")
    words = ["sweep", "tiny.json", "seed=1:3", "--output", "out", *SLURM, "--jobs", "5"]
    assert main(words) == 1
    out = capfd.readouterr().out
    assert "tiny seed 1: 100 -> " in out and "not finished: 1 of 2" in out
    assert "tiny seed 2: exit code 2: dmamba: error: " in out
    script = next(slurm.glob("script-*")).read_text()
    for line in ("partition=gpu", "time=60", "cpus-per-task=2", "array=0-1%2"):
        assert f"#SBATCH --{line}\n" in script
    # The one that has failed, alone.
    (bad / "notes.txt").unlink()
    assert main(words) == 0
    assert len(calls(slurm, "sbatch")) == 2 and len(list((slurm / "jobs").iterdir())) == 3
    assert main(words) == 0
    assert len(calls(slurm, "sbatch")) == 2


def test_a_sweep_on_slurm_that_was_killed_and_one_that_was_stopped(long, elsewhere, slurm):
    words = ["long.json", "training.steps=4000", "seed=0:2", "--output", "out", *SLURM]
    first, second = (dmamba.Run(elsewhere / "out" / f"tiny-seed{seed}") for seed in (0, 1))
    with begin(*words) as process:
        wait_for(lambda: first.checkpoints() or process.poll() is not None)
        process.kill()
    assert process.returncode == -signal.SIGKILL

    # It attaches to the jobs that the other has submitted, and cancels them when it is stopped.
    before = len(calls(slurm, "squeue"))
    with begin(*words) as process:
        wait_for(lambda: len(calls(slurm, "squeue")) > before)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT, out
    assert "tiny seed 0: stopped" in out and "tiny seed 1: stopped" in out
    assert len(calls(slurm, "sbatch")) == 1
    stopped = first.latest_checkpoint()[0]
    assert 0 < stopped < 4000 and not second.folder.exists()

    # The third time they resume.
    assert main(["sweep", *words, "--no-progress"]) == 0
    assert len(calls(slurm, "sbatch")) == 2
    assert (first_step(first.folder), first_step(second.folder)) == (stopped, 0)


def test_jobs_whose_ids_were_lost_are_cancelled(config, elsewhere, slurm):
    """A sweep was killed after sbatch and before it could write down what sbatch said."""
    (slurm / "jobs" / "7_0").write_text(
        json.dumps({"name": "out-1234", "state": "PENDING", "group": 0})
    )
    (elsewhere / "out" / "slurm").mkdir(parents=True)
    record = {"name": "out-1234", "jobs": {}, "submitting": True}
    (elsewhere / "out" / "slurm" / "jobs.json").write_text(json.dumps(record))
    assert main(["sweep", "tiny.json", "--output", "out", *SLURM, "--no-progress"]) == 0
    assert calls(slurm, "scancel") == ["scancel 7_0"]
    record = json.loads((elsewhere / "out" / "slurm" / "jobs.json").read_text())
    assert record == {"name": "out-1234", "jobs": {"tiny-seed7": "100"}}


def test_a_damaged_record_of_jobs_is_named(config, elsewhere, slurm, capsys):
    (elsewhere / "out" / "slurm").mkdir(parents=True)
    (elsewhere / "out" / "slurm" / "jobs.json").write_text('{"name": "out')
    assert main(["sweep", "tiny.json", "--output", "out", *SLURM, "--no-progress"]) != 0
    message = capsys.readouterr().err
    assert "jobs.json: damaged, not JSON" in message and "scancel" in message
    assert not (slurm / "calls.log").exists()


def test_a_job_of_slurm_that_dies_is_a_failed_run(long, elsewhere, slurm, monkeypatch):
    monkeypatch.setattr(slurm_engine, "QUEUE_SECONDS", 0.5)
    run = dmamba.Run(elsewhere / "out" / "tiny-seed7")

    def kill():
        os.killpg(json.loads((slurm / "jobs" / "100").read_text())["group"], signal.SIGKILL)

    failure = train_while(run, elsewhere, "slurm", {"time": 60}, kill)
    assert failure.startswith("Slurm job 100 has ended without a result, NODE_FAIL (")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("partition=gpu", "give the time limit of a run in whole minutes"),
        ("time=1:00", "in whole minutes, such as --slurm time=60; got '1:00'"),
        ("time=60,partitoin=gpu", "partitoin"),
        ("time=60,nodes=2", "engine slurm chooses nodes itself"),
        ("time=60,cpus_per_task=two", "cpus_per_task"),
        ("time=60,time=70", "time is given twice"),
        ("time", "expected name=value,name=value"),
    ],
)
def test_options_of_slurm_are_checked_before_anything_starts(
    config, elsewhere, slurm, capfd, options, message
):
    words = ["sweep", "tiny.json", "--output", "out", "--engine", "slurm", "--slurm", options]
    assert main(words) == 2
    assert message in capfd.readouterr().err
    assert not (slurm / "calls.log").exists() and not (elsewhere / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--engine", "dask"], "engine: no 'dask'; there are local, ray, slurm"),
        (["--ray", "cpus=2"], "--ray is for --engine ray, not local"),
        (["--engine", "ray", "--ray", "cpu=2"], "engine ray has no option cpu"),
        (["--engine", "ray", "--ray", "gpus=-1"], "gpus must be a number of at least 0, got -1"),
        (["--engine", "slurm", "--slurm", "time=60"], "srun"),
    ],
)
def test_engines_that_cannot_be_used(config, elsewhere, capfd, words, message):
    assert main(["sweep", "tiny.json", "--output", "out", *words]) == 2
    assert message in capfd.readouterr().err and not (elsewhere / "out").exists()


@pytest.mark.parametrize(("engine", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_missing_package_is_named(config, monkeypatch, engine, package):
    monkeypatch.setitem(sys.modules, package, None)
    extra = {"ray": "sweep", "slurm": "slurm"}[engine]
    with pytest.raises(dmamba.ConfigError, match=rf"pip install 'dmamba\[{extra}\]'"):
        dmamba.sweep("tiny.json", engine=engine, engine_options={})


# This machine


def test_a_killed_sweep_stops_its_trainings(long, elsewhere):
    run = dmamba.Run(elsewhere / "out" / "tiny-seed7")
    lengths = ["training.steps=100000", "training.checkpoint_every=100000"]
    with begin("long.json", *lengths, "--output", "out") as process:
        table = run.folder / "metrics.csv"  # with a row, beside its head: it trains
        wait_for(lambda: table.is_file() and len(table.read_text().splitlines()) > 1)
        assert len(trainings(run)) == 1
        process.kill()
    wait_for(lambda: not trainings(run))
    assert 0 < run.latest_checkpoint()[0] < 100000


@pytest.mark.parametrize(
    ("visible", "count", "expected"),
    [
        (None, 2, ["0", "1", "0", "1"]),
        ("3,5,6", 3, ["3", "5", "6", "3"]),
        ("GPU-aa,-1,1", 1, ["GPU-aa,-1,1"] * 4),
        (None, 1, ["unset"] * 4),
        (None, 0, ["unset"] * 4),
    ],
)
def test_runs_are_spread_over_the_gpus(tmp_path, monkeypatch, visible, count, expected):
    program = tmp_path / "program"
    program.write_text('#!/bin/sh\necho "${CUDA_VISIBLE_DEVICES-unset}"\n')
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(runner.torch.cuda, "device_count", lambda: count)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    beside = runner.Runner(4)
    runs = [tmp_path / f"run{index}" for index in range(4)]
    for run in runs:  # one after the other, so that the shares come in their order
        assert beside.run(["train"], run) == ""
    assert [runner.log_of(run).read_text().strip() for run in runs] == expected
