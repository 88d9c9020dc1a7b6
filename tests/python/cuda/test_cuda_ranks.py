"""One model on several GPUs: the loss of one process, bits with and without graph, lost ranks."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from rank_scenarios_cuda import CASES, train
from support import needs_cuda, write_recording
from test_cuda_training import largest_relative_difference

sys.path.append(str(Path(__file__).parents[1]))
from conftest import tiny, write_dataset  # noqa: E402
from test_ranks import finish, process_of, torchrun, wait_for_checkpoint  # noqa: E402

import dmamba  # noqa: E402

HERE = Path(__file__).parent
needs_two = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
BACKENDS = ["gloo", pytest.param("nccl", marks=needs_two)]

pytestmark = needs_cuda


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """A tiny dataset."""
    return write_dataset(tmp_path_factory.mktemp("data") / "tiny.hdf5")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A function from a backend to what its two ranks have found, and to their recorded game."""
    folder = write_recording(tmp_path_factory.mktemp("games") / "Breakout", lengths=(40, 9, 60))
    known = {}

    def of(backend):
        if backend not in known:
            process = torchrun(HERE / "rank_scenarios_cuda.py", folder, backend)
            output = finish(process, timeout=600)
            assert process.returncode == 0, output
            known[backend] = [
                json.loads((folder / f"{backend}-{rank}.json").read_text()) for rank in range(2)
            ]
        return known[backend], folder

    return of


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_the_losses_are_those_of_one_process(results, backend, case):
    ranks, folder = results(backend)
    one = train(case, folder, None, "off")
    tolerance = 2e-2 if case == "bf16" else 1e-3
    for name in ("losses", "norms"):
        got, expected = ranks[0][case][0][name], one[name]
        # The first steps are as exact as the arithmetic; differences grow with the steps.
        assert largest_relative_difference(got[:3], expected[:3]) <= tolerance / 50
        assert largest_relative_difference(got, expected) <= tolerance * 10 ** (name == "norms")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_ranks_repetitions_and_graphs_have_the_same_bits(results, backend, case):
    ranks, _ = results(backend)
    runs = [run for rank in ranks for run in rank[case]]
    if backend == "nccl":
        assert [run["graph"] for run in ranks[0][case]] == [True, False, True]
    for run in runs:
        assert (run["losses"], run["digest"]) == (runs[0]["losses"], runs[0]["digest"])


def start(dataset, folder, steps, *more):
    config = tiny(dataset, steps=steps, batch_size=8, log_every=1, checkpoint_every=20)
    config["training"] |= {"device": "cuda", "graph": "on", "schedule": "constant"}
    config["model"]["d_model"] = 64
    path = folder.with_suffix(".yaml")
    path.write_text(json.dumps(config))
    options = ("--output", folder, "--no-evaluate", "--no-progress", *more)
    return torchrun("-m", "dmamba", "train", path, *options), dmamba.Run(folder)


@needs_two
def test_the_command_trains_and_resumes_to_the_same_bytes(recording, tmp_path):
    process, whole = start(recording, tmp_path / "whole", 60)
    output = finish(process)
    assert process.returncode == 0, output
    process, cut = start(recording, tmp_path / "cut", 10**6)
    wait_for_checkpoint(process, cut, 20)
    os.kill(process_of(process, 1), signal.SIGTERM)
    assert "dmamba: error" not in finish(process)
    stopped = cut.latest_checkpoint()[0]
    assert cut.metrics()["step"][-1] == stopped
    process, again = start(recording, tmp_path / "cut", 10**6, "--resume")
    wait_for_checkpoint(process, again, stopped + 40)
    os.kill(process.pid, signal.SIGTERM)
    finish(process)
    steps = whole.metrics()["step"]
    assert list(again.metrics()["training/loss"][: len(steps)]) == list(
        whole.metrics()["training/loss"]
    )


@needs_two
def test_a_killed_rank_ends_the_run_with_a_usable_checkpoint(recording, tmp_path):
    process, run = start(recording, tmp_path / "run", 10**7)
    wait_for_checkpoint(process, run, 40)
    os.kill(process_of(process, 1), signal.SIGKILL)
    output = finish(process, timeout=120)
    assert process.returncode != 0
    assert "rank 1 of 2 is lost" in output, output
    step, checkpoint = run.latest_checkpoint()
    _, info = dmamba.nn.load(checkpoint)
    assert info["step"] == step >= 40
