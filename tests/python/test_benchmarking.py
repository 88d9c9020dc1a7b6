"""What ``dmamba benchmark`` times, how, and what it says."""

import json
import sys
import types

import pytest
import torch

import dmamba
from dmamba import _C, benchmarking, reference
from dmamba.benchmarking import cases, machine, timing
from dmamba.commands import main

CPU = torch.device("cpu")


def small_config(device="cpu", precision="fp32"):
    config = _C.Config()
    config.override(
        ["model.d_model=16", "model.n_layer=1", "model.context_length=2", "training.batch_size=2"]
    )
    config.dataset.rtg_scale = 1000.0
    config.training.device, config.training.precision = device, precision
    return config


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(cases, "standard_config", small_config)
    monkeypatch.setattr(timing, "TURN_SECONDS", 0.0)


@pytest.fixture
def fake_mamba_ssm(monkeypatch):
    """A package of its interface, in plain PyTorch, that seems usable on any device."""

    class Mamba(reference.Mamba):
        def __init__(self, d_model, d_state, d_conv, expand, dt_rank):
            super().__init__(d_model, d_state, d_conv, expand, 0 if dt_rank == "auto" else dt_rank)

    def selective_scan_fn(u, delta, A, B, C, D, z, delta_bias, delta_softplus):
        turned = [tensor.transpose(1, 2) for tensor in (u, delta, B, C, z)]
        u, delta, B, C, z = turned
        y = reference.selective_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
        return y.transpose(1, 2)

    package = types.ModuleType("mamba_ssm")
    package.Mamba = Mamba
    inner = types.ModuleType("mamba_ssm.ops.selective_scan_interface")
    inner.selective_scan_fn = selective_scan_fn
    monkeypatch.setitem(sys.modules, "mamba_ssm", package)
    monkeypatch.setitem(sys.modules, "mamba_ssm.ops", types.ModuleType("mamba_ssm.ops"))
    monkeypatch.setitem(sys.modules, inner.__name__, inner)
    monkeypatch.setattr(cases, "mamba_ssm_reason", lambda device: "")


def test_calls_take_turns():
    done = []
    calls = {name: timing.Timed(lambda name=name: done.append(name), 2) for name in "abc"}
    times = timing.take_turns(calls, 0.0)
    assert {len(values) for values in times.values()} == {timing.MIN_ROUNDS}
    turns = [name for i, name in enumerate(done) if i == 0 or done[i - 1] != name]
    assert "".join(turns) == "abc" + "abc" + "ba" + "bc"  # warm-up, then forth, back, and forth
    assert all(value > 0 for values in times.values() for value in values)


def test_slow_calls_warm_up_once_and_quick_ones_fill_a_turn(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])

    def taking(seconds, done):
        def call():
            clock[0] += seconds
            done.append(seconds)

        return timing.Timed(call)

    slow, quick = [], []
    times = timing.take_turns({"slow": taking(1.0, slow), "quick": taking(0.01, quick)}, 2.5)
    assert len(slow) == 1 + 3 and len(quick) == timing.WARM_UP_CALLS + 3 * 5
    assert times["slow"] == pytest.approx([1.0] * 3)
    assert times["quick"] == pytest.approx([0.01] * 3)
    assert timing.ratio(times["slow"], times["quick"]) == pytest.approx(100.0)


def test_spread():
    found = timing.spread([4.0, 1.0, 3.0, 2.0, 5.0])
    assert found == {"median": 3.0, "low": 1.5, "high": 4.5, "rounds": 5}


def test_other_programs_are_noticed(monkeypatch):
    readings = iter([100.0, 103.0])
    clock = iter([10.0, 12.0])
    monkeypatch.setattr(machine, "_core_seconds", lambda: next(readings))
    monkeypatch.setattr(machine.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 4)
    with machine.OtherWork() as others:
        assert not others.disturbs
    assert others.cores == 1.5 and others.disturbs
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 16)
    assert not others.disturbs


def test_the_system_says_how_long_its_cores_have_worked():
    first, second = machine._core_seconds(), machine._core_seconds()
    assert first is not None and second is not None
    assert 0 < first < second + 1.0  # in steps of a tick, less what this process has used


@pytest.mark.parametrize("channel_mixing", ["mlp", "none"])
def test_the_plain_model_is_ours(channel_mixing):
    torch.manual_seed(3)
    config = small_config().model
    config.channel_mixing, config.n_layer, config.dt_rank = channel_mixing, 2, 3
    ours = dmamba.nn.DMamba(5, 2, config).eval()
    plain = reference.DMamba(5, 2, config).eval()
    plain.load_state_dict(ours.state_dict())
    shapes = [(3, 7, 5), (3, 7, 2), (3, 7, 1)]
    inputs = [torch.randn(shape) for shape in shapes] + [torch.randint(0, 50, (3, 7))]
    mask = torch.ones(3, 7, dtype=torch.bool)
    mask[0, 4:] = mask[1, :2] = False
    for given in (None, mask):
        torch.testing.assert_close(plain(*inputs, given), ours(*inputs, given))


def test_plain_training_is_the_trainer_s():
    """The same losses, step by step, where nothing is drawn but the batch."""
    config = small_config()
    config.model.dropout = config.model.embedding_dropout = 0.0
    config.training.weight_decay = 0.0  # torch's AdamW would decay A and the biases, too
    config.training.warmup_steps = 0
    config.training.schedule = "constant"
    config.training.log_every = 1
    store = dmamba.data.load("samples/hopper-medium")
    model = dmamba.nn.DMamba(store.state_dim, store.act_dim, config.model)
    plain = cases.PlainTraining(config, store, CPU, None)
    plain.model.load_state_dict(model.state_dict())
    config.training.steps = 10
    trainer = _C.Trainer(config, store, model.cpp_module)
    rows = trainer.run(seconds=1e9, max_steps=3)
    for _ in rows:
        plain.step()
    for name, parameter in plain.model.named_parameters():
        torch.testing.assert_close(
            parameter, model.get_parameter(name), msg=lambda text, name=name: f"{name}: {text}"
        )


def test_benchmark(small, monkeypatch):
    threads = torch.get_num_threads()
    result = benchmarking.benchmark("cpu", seconds=0.01, threads=1, progress=False)
    assert torch.get_num_threads() == threads
    assert result["machine"]["threads"] == 1 and result["machine"]["gpu"] is None
    assert result["versions"]["dmamba"] == dmamba.__version__
    assert result["recipe"]["batch_size"] == 2
    assert [part["name"] for part in result["parts"]] == list(benchmarking.PARTS)
    for part in result["parts"]:
        own, *peers = part["rows"]
        assert own["name"].startswith("dmamba") and own["ratio"] is None
        assert [peer["name"].split(",")[0] for peer in peers][-1] == "plain PyTorch"
        for row in part["rows"]:
            assert 0 < row["low"] <= row["median"] <= row["high"] and row["rounds"] >= 3
        assert all(peer["ratio"] > 0 for peer in peers)
    assert result["absent"] == {"mamba_ssm": "needs a GPU"}
    text = benchmarking.format_result(result)
    assert "mamba_ssm: needs a GPU" in text and "10,000 training steps take about" in text


def test_what_the_table_says():
    row = {"low": 1.0, "high": 3.0, "rounds": 7}
    parts = [
        {
            "name": "training step",
            "unit": "ms",
            "rows": [
                {"name": "dmamba", "median": 120.0, "ratio": None, **row},
                {"name": "plain PyTorch", "median": 1234.5, "ratio": 10.29, **row},
            ],
        }
    ]
    facts = {"processor": "P", "instructions": "avx2", "cores": 8, "usable_cores": 4, "threads": 4}
    result = {
        "machine": {**facts, "gpu": "H", "disturbs": True, "other_programs_cores": 2.34},
        "versions": {"dmamba": "1", "torch": "2", "cuda": "13", "python": "3", "mamba_ssm": "2.3"},
        "recipe": benchmarking._recipe(small_config()),
        "absent": {},
        "parts": parts,
    }
    text = benchmarking.format_result(result)
    assert text.startswith("H; P (avx2), 4 of 8 cores, 4 threads\ndmamba 1, torch 2 (CUDA 13)")
    assert "mamba_ssm 2.3" in text and "d_model 16, 1 layers, K 2, batch 2, fp32" in text
    assert "  plain PyTorch" in text and text.split("plain PyTorch")[1].split()[0] == "1234"
    assert " ".join(text.split("plain PyTorch")[1].split()[1:6]) == "1 to 3 7 10"
    assert "10,000 training steps take about 20 min here" in text
    assert "other programs kept 2.3 of 8 cores busy" in text


def test_mamba_ssm_is_a_peer_where_it_is_installed(small, fake_mamba_ssm):
    result = benchmarking.benchmark("cpu", seconds=0.01, progress=False)
    assert result["absent"] == {}
    for part in result["parts"]:
        assert sum(row["name"].startswith("mamba_ssm") for row in part["rows"]) == 1


def test_mamba_ssm_s_scan_gets_its_own_layout(fake_mamba_ssm):
    config = small_config()
    forward, _ = cases.scan(config, CPU)
    ours, theirs = forward[cases.OURS].call(), forward[cases.MAMBA_SSM].call()
    torch.testing.assert_close(theirs.transpose(1, 2), ours)


def test_why_mamba_ssm_is_not_there(monkeypatch):
    assert cases.mamba_ssm_reason(CPU) == "needs a GPU"
    monkeypatch.setitem(sys.modules, "mamba_ssm", None)
    reason = cases.mamba_ssm_reason(torch.device("cuda"))
    assert reason == "not installed; pip install mamba-ssm"

    def broken(name):
        raise ImportError("undefined symbol")

    monkeypatch.setattr(cases.importlib, "import_module", broken)
    reason = cases.mamba_ssm_reason(torch.device("cuda"))
    assert reason == "cannot be imported: undefined symbol"


def test_the_command(small, capsys):
    words = ["benchmark", "--device", "cpu", "--seconds", "0.01", "--precision", "bf16"]
    assert main([*words, "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["recipe"]["precision"] == "bf16" and len(found["parts"]) == 4
    assert "benchmark" in err  # the bar
    assert main([*words, "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(found["machine"]["processor"]) and err == ""
