"""One model on several processes: the loss of one process, bits, resumption, errors, lost ranks."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny
from replay_games import write_recording

import dmamba
from dmamba.engines import runner

HERE = Path(__file__).parent
WORLD = 2
STEPS = 30


def torchrun(*arguments, **options):
    """Two processes, as users start them, each with one thread."""
    path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *(f"--nproc-per-node={WORLD}", *map(str, arguments)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        **options,
    )


def finish(process, timeout=300):
    output, _ = process.communicate(timeout=timeout)
    return output


def config_for(dataset, **training):
    """Dropout, padding, shares of three segments, whose dropout masks begin within a stretch."""
    config = tiny(dataset, steps=STEPS, batch_size=6, log_every=1, keep_checkpoints=9, **training)
    config["model"] |= {"dropout": 0.2, "embedding_dropout": 0.1}
    return config


def game_config(recording):
    # Small steps: frames of noise make larger ones chaotic, so that a last bit changes a thousandth
    # of the loss within 30 steps, on one process, too (with another instruction set, say).
    config = config_for(recording, learning_rate=1e-5)
    config["model"] |= {"context_length": 12}  # more than the shortest game has: padding
    config["dataset"] |= {"environment": "ALE/Breakout-v5", "cache": "memory"}
    return config


@pytest.fixture(scope="module")
def folder(dataset, tmp_path_factory):
    """The folder in which two processes have gone through rank_scenarios.py."""
    root = tmp_path_factory.mktemp("ranks")
    recording = write_recording(root / "Breakout", lengths=(40, 9, 60))
    arguments = {"config": config_for(dataset), "games": game_config(recording)}
    (root / "arguments.json").write_text(json.dumps(arguments))
    process = torchrun(HERE / "rank_scenarios.py", root, cwd=root)
    output = finish(process)
    assert process.returncode == 0, output
    return root


@pytest.fixture(scope="module")
def results(folder):
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(WORLD)]


def arguments_of(folder):
    return json.loads((folder / "arguments.json").read_text())


def assert_same_curve(run, one):
    assert list(run.metrics()["step"]) == list(one.metrics()["step"]) == list(range(1, STEPS + 1))
    for name in ("training/loss", "training/grad_norm"):
        np.testing.assert_allclose(run.metrics()[name], one.metrics()[name], rtol=2e-6)
    np.testing.assert_array_equal(
        run.metrics()["training/learning_rate"], one.metrics()["training/learning_rate"]
    )


def assert_same_bytes(run, other):
    for name in ("metrics.csv", "config.yaml"):
        assert (run.folder / name).read_bytes() == (other.folder / name).read_bytes(), name
    assert run.latest_checkpoint()[0] == other.latest_checkpoint()[0] == STEPS
    for name in ("model.safetensors", "optimizer.safetensors", "state.json"):
        mine, theirs = run.latest_checkpoint()[1] / name, other.latest_checkpoint()[1] / name
        assert mine.read_bytes() == theirs.read_bytes(), name


@pytest.mark.parametrize(("scenario", "key"), [("whole", "config"), ("games", "games")])
def test_the_curve_is_that_of_one_process_with_the_whole_batch(folder, tmp_path, scenario, key):
    one = dmamba.train(
        arguments_of(folder)[key], output=tmp_path / "one", progress=False, evaluate=False
    )
    assert_same_curve(dmamba.Run(folder / scenario), one)


def test_ranks_see_the_same_end(results):
    assert [result["step"] for result in results] == [STEPS] * WORLD


@pytest.mark.parametrize("other", ["again", "in a group of the caller's"])
def test_the_same_ranks_give_the_same_bytes(folder, other):
    assert_same_bytes(dmamba.Run(folder / other), dmamba.Run(folder / "whole"))


def test_a_model_of_ones_own_is_trained_by_ranks(folder):
    own, whole = dmamba.Run(folder / "own"), dmamba.Run(folder / "whole")
    assert (own.folder / "metrics.csv").read_bytes() == (whole.folder / "metrics.csv").read_bytes()


def test_what_is_not_finite_on_one_rank_stops_all_of_them(folder, results):
    for result in results:
        kind, message = result["not finite"]["stopped"]
        assert kind == "NotFiniteError"
        assert (
            "in step 9 (seed 7); its batch: 6 segments of" in message and "step-00000000" in message
        )
    assert dmamba.Run(folder / "stopped").metrics()["step"].tolist() == list(range(1, 9))


def test_what_is_not_finite_on_one_rank_is_passed_over_by_all(folder, results):
    first, other = (result["not finite"] for result in results)
    assert first["step"] == other["step"] == STEPS and first["digest"] == other["digest"]
    skipped = dmamba.Run(folder / "passed over").metrics()["training/skipped"]
    assert skipped.tolist() == [int(step in (9, 10)) for step in range(1, STEPS + 1)]


def cut_back(folder, copy, step):
    """A copy of a run as it was after an early checkpoint."""
    shutil.copytree(folder, copy)
    for later, path in dmamba.Run(copy).checkpoints():
        if later > step:
            shutil.rmtree(path)
    assert dmamba.Run(copy).latest_checkpoint()[0] == step
    return copy


def test_resumed_ranks_end_with_the_same_bytes(folder, tmp_path):
    copy = cut_back(folder / "whole", tmp_path / "copy", 10)
    options = ("--resume", copy, "--no-evaluate", "--no-progress")
    process = torchrun("-m", "dmamba", "train", *options)
    output = finish(process)
    assert process.returncode == 0, output
    assert_same_bytes(dmamba.Run(copy), dmamba.Run(folder / "whole"))


def test_one_process_resumes_what_two_began(folder, tmp_path):
    copy = cut_back(folder / "whole", tmp_path / "copy", 10)
    run = dmamba.train(None, output=copy, resume=True, progress=False, evaluate=False)
    assert_same_curve(run, dmamba.Run(folder / "whole"))


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        (
            "indivisible",
            "ConfigError",
            "training.batch_size: 7 segments for 2 ranks, which need equal shares; use 6 or 8, or "
            "another number of ranks",
        ),
        (
            "too many ranks",
            "ConfigError",
            "training.batch_size: 1 segments for 2 ranks, which need equal shares; use 2, or "
            "another number of ranks",
        ),
        (
            "configuration",
            "ConfigError",
            "the ranks do not train the same: training.learning_rate is 0.001 on rank 0, 0.002 on "
            "rank 1. Start all of them with the same arguments, data and versions",
        ),
        (
            "buffers",
            "ConfigError",
            "model: Net has buffers, such as 'calls', which would differ between processes; train "
            "in one process, or register them with persistent=False",
        ),
    ],
)
def test_errors_are_raised_on_every_rank(results, name, kind, message):
    for result in results:
        assert result["errors"][name] == [kind, message]


def test_other_data_is_an_error(results):
    for result in results:
        kind, message = result["errors"]["data"]
        assert kind == "ConfigError"
        assert "the data's digest is '" in message


def test_what_fails_on_one_rank_ends_the_others(results):
    assert results[0]["errors"]["one rank"][0] == "Error"
    assert results[1]["errors"]["one rank"][0] == "DataError"
    for result in results:
        assert "/nowhere.hdf5" in result["errors"]["one rank"][1]
    assert results[0]["errors"]["one rank"][1].startswith("rank 1 of 2: ")


@pytest.mark.skipif(dmamba._C.resolve_device("auto") != "cpu", reason="this machine has a GPU")
def test_no_gpu_is_an_error(results):
    for result in results:
        assert result["errors"]["no GPU"][0] == "ConfigError"


def test_an_error_of_rank_0_reaches_the_others(results):
    assert results[0]["callback"] == ["RuntimeError", "the disk is full"]
    assert results[1]["callback"] == [
        "LostRankError",
        "rank 0 of 2 has ended: RuntimeError: the disk is full",
    ]


def test_bits_do_not_depend_on_the_buckets(results):
    for size in ("1", "3000", str(1 << 30)):
        for result in results:
            assert result["trainers"][size] == results[0]["trainers"]["1"]


def test_frozen_parameters_are_left_out(results):
    assert results[0]["trainers"]["frozen"] == results[1]["trainers"]["frozen"]
    frozen, alone = (results[0]["trainers"][name][1] for name in ("frozen", "alone"))
    assert len(frozen) == 12
    np.testing.assert_allclose(frozen, alone, rtol=2e-6)


# ---- A run that is stopped ----


def start_long(dataset, tmp_path, steps):
    config = config_for(dataset, checkpoint_every=20) | {"name": "long"}
    config["training"]["steps"] = steps
    path = tmp_path / "long.yaml"
    path.write_text(json.dumps(config))
    options = ("--output", tmp_path / "run", "--no-evaluate", "--no-progress")
    return torchrun("-m", "dmamba", "train", path, *options), dmamba.Run(tmp_path / "run")


def wait_for_checkpoint(process, run, step):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, finish(process)
        latest = run.latest_checkpoint() if run.folder.exists() else None
        if latest is not None and latest[0] >= step:
            return
        time.sleep(0.01)
    raise AssertionError(f"step {step} was not reached")


def process_of(process, rank):
    """The process that torchrun has started as this rank."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for child in map(int, children):
        if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return child
    raise AssertionError(f"no rank {rank} among {children}")


@pytest.mark.parametrize("victim", [1, 0])
def test_a_killed_rank_ends_the_run_with_a_usable_checkpoint(dataset, tmp_path, victim):
    process, run = start_long(dataset, tmp_path, steps=10**6)
    wait_for_checkpoint(process, run, 40)
    os.kill(process_of(process, victim), signal.SIGKILL)
    output = finish(process, timeout=60)
    assert process.returncode != 0
    assert f"rank {victim} of 2 is lost" in output, output
    step, checkpoint = run.latest_checkpoint()
    if victim == 1:  # rank 0 saves what there is
        assert f"continue with --resume {run.folder}, from step {step}" in output
        assert run.metrics()["step"][-1] <= step
    _, info = dmamba.nn.load(checkpoint)
    assert info["step"] == step >= 40


def test_a_signal_stops_all_ranks_at_one_step(dataset, tmp_path):
    process, run = start_long(dataset, tmp_path, steps=10**6)
    wait_for_checkpoint(process, run, 20)
    os.kill(process_of(process, 1), signal.SIGTERM)
    output = finish(process, timeout=60)
    assert process.returncode != 0
    assert "dmamba: error" not in output
    step, _ = run.latest_checkpoint()
    assert run.metrics()["step"][-1] == step >= 20


def test_torchruns_variables_have_to_be_there(dataset, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK")}
    done = subprocess.run(
        [sys.executable, "-m", "dmamba", "train", "hopper-sample", "--output", tmp_path / "run"],
        env=environment | {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "WORLD_SIZE is 2, but RANK, LOCAL_RANK is not set; start the processes" in done.stderr


def test_a_sweep_is_started_by_one_process(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(dmamba.ConfigError, match="without torchrun"):
        runner.Runner(jobs=1)
