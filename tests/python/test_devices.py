"""Choosing a device and a precision: what is recorded, what is refused; GPUs: tests/python/cuda."""

import numpy as np
import pytest
import torch
from conftest import tiny

import dmamba
from dmamba import _C, _build_info
from dmamba.commands import main

if _build_info.cuda_reason:
    MISSING = "built without them .*dmamba info"
elif not torch.cuda.is_available():
    MISSING = "torch finds no usable one; look at nvidia-smi"
else:
    MISSING = ""
without_gpu = pytest.mark.skipif(not MISSING, reason="this machine has a GPU to use")


def test_the_device_of_a_choice():
    assert _C.resolve_device("cpu") == "cpu"
    assert _C.resolve_device("auto") == ("cpu" if MISSING else "cuda:0")
    with pytest.raises(dmamba.ConfigError, match=r"'my key': 'tpu' is not .* auto, cpu, cuda"):
        _C.resolve_device("tpu", "my key")


@without_gpu
def test_a_gpu_that_is_missing_is_named(dataset, trained, tmp_path):
    with pytest.raises(dmamba.ConfigError, match=f"training.device: cuda needs .*{MISSING}"):
        dmamba.train(tiny(dataset, device="cuda"), output=tmp_path / "run", evaluate=False)
    assert not (tmp_path / "run").exists()
    with pytest.raises(dmamba.ConfigError, match=f"evaluation device: cuda needs .*{MISSING}"):
        dmamba.evaluate(trained, device="cuda", progress=False)


def test_the_device_is_recorded(dataset, trained, tmp_path, capsys):
    summary = trained.summary()
    assert (summary["device"], summary["precision"]) == ("cpu", "fp32")
    assert {result["device"] for result in trained.evaluations()} == {"cpu"}
    dmamba.train(tiny(dataset, steps=2), output=tmp_path / "run", evaluate=False)
    out, _ = capsys.readouterr()
    assert out.startswith("tiny: training on cpu, fp32\n")
    assert "trained 2 steps on cpu, loss" in out


def test_an_evaluation_names_its_device(trained, tmp_path, capsys):
    arguments = {"targets": [100], "episodes": 2, "progress": False}
    default, chosen = (dmamba.evaluate(trained, device=d, **arguments) for d in (None, "cpu"))
    assert default["device"] == chosen["device"] == "cpu"
    np.testing.assert_array_equal(default["targets"][0]["returns"], chosen["targets"][0]["returns"])
    command = ["evaluate", str(trained.folder), "--targets", "100", "--episodes", "1"]
    assert main([*command, "--device", "cpu"]) == 0


def test_a_run_may_go_on_elsewhere_but_not_in_another_precision(dataset, tmp_path):
    arguments = {"output": tmp_path / "run", "progress": False, "evaluate": False}
    dmamba.train(tiny(dataset, steps=8, device="auto"), **arguments)
    run = dmamba.train(None, ["training.device=cpu"], resume=True, **arguments)
    assert run.config.training.device == "cpu"
    with pytest.raises(dmamba.ConfigError, match=r"training\.precision was 'fp32', now 'bf16'"):
        dmamba.train(None, ["training.precision=bf16"], resume=True, **arguments)


def test_bfloat16_on_the_cpu(dataset, trained, tmp_path):
    run = dmamba.train(
        tiny(dataset, precision="bf16"), output=tmp_path / "run", progress=False, evaluate=False
    )
    got, expected = run.metrics()["training/loss"], trained.metrics()["training/loss"]
    assert not np.array_equal(got, expected)
    np.testing.assert_allclose(got, expected, rtol=0.05)
    model, _ = dmamba.nn.load(run.latest_checkpoint()[1])
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_tf32_is_refused_on_the_cpu(dataset, tmp_path):
    with pytest.raises(dmamba.ConfigError, match=r"training\.precision: tf32 .* on the CPU"):
        dmamba.train(tiny(dataset, precision="tf32"), output=tmp_path / "run", evaluate=False)
