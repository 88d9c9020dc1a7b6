"""The training loop: configurations, logs, callbacks, checkpoints, what is refused."""

import csv
import json

import numpy as np
import pytest
import torch
from conftest import tiny, write_dataset
from safetensors.numpy import load_file

import dmamba
from dmamba import configuration, training
from dmamba.training.callbacks import Callback


def quiet(config, folder, **arguments):
    return dmamba.train(config, output=folder, progress=False, evaluate=False, **arguments)


def model_bytes(run):
    return (run.latest_checkpoint()[1] / "model.safetensors").read_bytes()


class Recorder(Callback):
    """Writes down what is called, with the step."""

    def __init__(self):
        self.events = []

    def on_start(self, run):
        self.events.append(("start", run.folder.name))

    def on_log(self, run, row):
        self.events.append(("log", row["step"]))

    def on_checkpoint(self, run, path):
        assert (path / "state.json").is_file()
        self.events.append(("checkpoint", int(path.name.removeprefix("step-"))))

    def on_evaluation(self, run, result):
        self.events.append(("evaluation", result["checkpoint_step"]))

    def on_end(self, run):
        assert run.summary()["steps"] == 30
        self.events.append(("end", run.folder.name))


def test_a_run_folder_holds_everything(trained):
    assert [step for step, _ in trained.checkpoints()] == [20, 30]
    metrics = trained.metrics()
    assert metrics["step"].tolist() == [4, 8, 12, 16, 20, 24, 28, 30]
    assert metrics["training/loss"][-1] < metrics["training/loss"][0]
    assert np.all(metrics["training/learning_rate"] > 0)
    assert [result["checkpoint_step"] for result in trained.evaluations()] == [15, 30]
    with open(trained.folder / "evaluation.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["target"]) for row in rows] == [
        ("15", "100.0"),
        ("15", "500.0"),
        ("30", "100.0"),
        ("30", "500.0"),
    ]
    assert float(rows[0]["return_low"]) <= float(rows[0]["return_mean"])
    assert list(trained.folder.glob("events.out.tfevents.*"))


def test_the_summary(trained, dataset):
    summary = trained.summary()
    store = dmamba.data.load(dataset)
    assert summary["dataset"]["return_mean"] == pytest.approx(store.episode_returns.mean())
    assert summary["last"]["step"] == 30
    assert summary["loss"] == trained.metrics()["training/loss"][-1]
    assert summary["versions"]["torch"] == str(torch.__version__)
    assert summary["times"]["first_step"] == 0
    weights = load_file(trained.latest_checkpoint()[1] / "model.safetensors")
    assert summary["parameters"] == sum(weight.size for weight in weights.values())
    # A process that has loaded torch holds far more than 50 MB, and this one less than 100 GB.
    assert 50e6 < summary["memory"]["host_bytes"] < 100e9
    assert summary["memory"]["gpu_bytes"] is None
    assert "maximum" in summary["best"]["note"]
    for index, best in enumerate(summary["best"]["targets"]):
        means = [result["targets"][index]["return_mean"] for result in trained.evaluations()]
        assert best["return_mean"] == max(means)
        assert best["step"] == [15, 30][means.index(max(means))]


def test_the_saved_configuration_is_resolved(trained, dataset):
    config = trained.config
    assert config.dataset.path == str(dataset.resolve())
    assert config.dataset.environment == "Hopper-v4"
    assert config.dataset.rtg_scale == 10.0
    assert config.evaluation.targets == [100.0, 500.0]


def test_callbacks_and_their_order(dataset, tmp_path):
    recorder = Recorder()
    config = tiny(dataset, log_every=12, checkpoint_every=10)
    config["evaluation"] = {"episodes": 1, "targets": [10], "every": 15}
    dmamba.train(config, output=tmp_path / "run", callbacks=[recorder], progress=False)
    assert recorder.events == [
        ("start", "run"),
        ("checkpoint", 10),
        ("log", 12),
        ("checkpoint", 15),  # saved before the evaluation
        ("evaluation", 15),
        ("checkpoint", 20),
        ("log", 24),
        ("log", 30),
        ("checkpoint", 30),
        ("evaluation", 30),
        ("end", "run"),
    ]


def test_neither_evaluation_nor_bursts_change_the_bits(dataset, tmp_path, trained, monkeypatch):
    plain = quiet(tiny(dataset), tmp_path / "plain")
    monkeypatch.setattr(training, "BURST_SECONDS", 0.0)  # one step a burst
    single = quiet(tiny(dataset), tmp_path / "single")
    assert model_bytes(plain) == model_bytes(single) == model_bytes(trained)
    for run in (single, trained):
        expected = (plain.folder / "metrics.csv").read_bytes()
        assert (run.folder / "metrics.csv").read_bytes() == expected


def test_the_seed_decides(dataset, tmp_path):
    torch.manual_seed(1)
    first = quiet(tiny(dataset), tmp_path / "first")
    after = torch.get_rng_state()
    torch.manual_seed(1)
    torch.testing.assert_close(after, torch.get_rng_state(), rtol=0, atol=0)
    torch.manual_seed(2)
    same = quiet(tiny(dataset), tmp_path / "same")
    other = quiet(tiny(dataset), tmp_path / "other", overrides=["seed=8"])
    assert model_bytes(first) == model_bytes(same) != model_bytes(other)


def test_the_default_folder(dataset, elsewhere):
    run = dmamba.train(tiny(dataset, steps=2), progress=False, evaluate=False)
    assert run.folder.absolute() == elsewhere / "runs" / "tiny-seed7"
    assert run.summary()["last"] is None


def test_progress_and_the_closing_table(dataset, tmp_path, capsys):
    config = tiny(dataset, steps=4)
    config["evaluation"].update(every=2, episodes=2)
    run = dmamba.train(config, output=tmp_path / "run")
    out, err = capsys.readouterr()
    assert "dataset mean" in out and "D4RL score" in out and "best of 2 evaluations" in out
    assert str(run.folder) in out and str(run.plot_path) in out
    assert "training" in err and "loss" in err and "step/s" in err
    dmamba.train(config, output=tmp_path / "silent", progress=False)
    assert capsys.readouterr() == ("", "")


def test_load_config(dataset, elsewhere):
    by_name = configuration.load_config("hopper-sample", ["training.steps=7", "seed=3"])
    assert (by_name.name, by_name.training.steps, by_name.seed) == ("hopper-sample", 7, 3)
    (elsewhere / "mine.yaml").write_text("model:\n  d_model: 24\n")
    by_path = configuration.load_config("mine.yaml")
    assert (by_path.name, by_path.model.d_model) == ("mine", 24)
    assert configuration.load_config(elsewhere / "mine.yaml").model.d_model == 24
    from_dict = configuration.load_config(tiny(dataset))
    assert (from_dict.name, from_dict.model.context_length) == ("tiny", 5)
    copied = configuration.load_config(from_dict, ["seed=9"])
    assert (copied.seed, from_dict.seed) == (9, 7)


def test_every_packaged_recipe_loads():
    names = configuration.recipes()
    assert "hopper-sample" in names and "hopper-medium-replay" in names
    for name in names:
        assert configuration.load_config(name).name == name


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("hopper-sampel", "no configuration named 'hopper-sampel'; there are .*hopper-sample"),
        ("missing.yaml", "missing.yaml: no such configuration file"),
        ({"model": {"d_modle": 3}}, "d_modle"),
        ({"training": {"steps": "many"}}, "training.steps"),
    ],
)
def test_bad_configurations(config, message):
    with pytest.raises(dmamba.ConfigError, match=message):
        dmamba.train(config)


def test_nothing_is_left_behind_by_a_refused_run(dataset, elsewhere):
    config = tiny(write_dataset(elsewhere / "robot.hdf5"))
    with pytest.raises(dmamba.ConfigError, match=r"names an environment; set dataset\.environment"):
        dmamba.train(config)
    config["dataset"]["environment"] = "Walker2d-v4"
    with pytest.raises(dmamba.DataError) as error:
        dmamba.train(config)
    assert "states of 11 values and actions of 3" in str(error.value)
    assert "Walker2d-v4 has 17 and 6" in str(error.value)
    config = tiny(dataset)
    config["model"]["context_length"] = 46
    with pytest.raises(dmamba.DataError, match=r"46.*45"):
        dmamba.train(config, evaluate=False)
    assert not (elsewhere / "runs").exists()


def test_without_an_environment_one_can_still_train(elsewhere):
    path = write_dataset(elsewhere / "robot.hdf5", state_dim=4, act_dim=2)
    run = quiet(tiny(path), elsewhere / "run")
    assert run.summary()["environment"] == ""
    with pytest.raises(dmamba.ConfigError, match="the run names no environment"):
        dmamba.evaluate(run)


def test_a_used_folder_is_refused(dataset, trained):
    with pytest.raises(dmamba.Error, match="holds a run, at step 30"):
        quiet(tiny(dataset), trained.folder)


def test_a_callback_that_raises_ends_the_training(dataset, tmp_path):
    class Broken(Callback):
        def on_log(self, run, row):
            if row["step"] == 20:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        quiet(tiny(dataset), tmp_path / "run", callbacks=[Broken()])
    run = quiet(tiny(dataset), tmp_path / "run", resume=True)
    assert json.loads((run.folder / "summary.json").read_text())["times"]["first_step"] == 10
