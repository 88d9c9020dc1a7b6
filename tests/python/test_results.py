"""What notebooks and IPython show of results, and progress where a notebook shows it."""

import copy
import json
import pickle
import sys
from types import SimpleNamespace

import pytest
from made_runs import make_run
from tqdm import notebook as widgets

import dmamba
from dmamba.common.files import write_json
from dmamba.display import notebook, progress
from dmamba.display.describing import Evaluation
from dmamba.runs import Run
from dmamba.sweeps import Sweep
from dmamba.sweeps.sweep_progress import SweepProgress


class Shown:
    """Stands in for notebook.Shown: keeps what is shown, also outside of a kernel."""

    made = []

    def __init__(self):
        self.states = []
        Shown.made.append(self)

    def replace(self, text, html):
        self.states.append((text, html))


@pytest.fixture
def shown(monkeypatch):
    """A notebook without ipywidgets; what was shown, in order of appearance."""
    monkeypatch.setattr(Shown, "made", [])
    monkeypatch.setattr(notebook, "Shown", Shown)
    monkeypatch.setattr(notebook, "inside", lambda: True)
    monkeypatch.setattr(widgets, "IProgress", None)
    return Shown.made


class Printer:
    """IPython's pretty printer, as far as it is used."""

    def __init__(self):
        self.said = ""

    def text(self, text):
        self.said += text


def test_a_kernel_is_known_by_its_shell(monkeypatch):
    monkeypatch.setitem(sys.modules, "ipykernel", SimpleNamespace())
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert not notebook.inside(), "that something has imported it makes no kernel"
    for shell, inside in (
        (None, False),
        (SimpleNamespace(), False),
        (SimpleNamespace(kernel=1), True),
    ):
        ipython = SimpleNamespace(get_ipython=lambda shell=shell: shell)
        monkeypatch.setitem(sys.modules, "IPython", ipython)
        assert notebook.inside() == inside


def test_a_bar_without_widgets_is_one_line_that_is_replaced(shown, capfd):
    with progress.bar(50, "training <b>", "step") as bar:
        for _ in range(50):
            bar.set_postfix_str("loss 0.5", refresh=False)
            bar.update()
    [line] = shown
    text, html = line.states[-1]
    assert "50/50" in text and "loss 0.5" in text and "\r" not in text + html
    assert 'value="50" max="50"' in html and "training &lt;b&gt;: 100%" in html
    assert len(line.states) < 10, "not for every step"
    assert capfd.readouterr() == ("", "")


def test_a_bar_within_another_goes(shown):
    with progress.bar(2, "training", "step") as outer:
        with progress.bar(1, "evaluating", "episode") as inner:
            inner.update()
        outer.update(2)
    with progress.bar(1, "evaluating", "episode") as after:
        after.update()
    assert [line.states[-1][0][:10] for line in shown] == ["training: ", "", "evaluating"]


def test_a_bar_that_is_not_wanted_shows_nothing(shown, capfd):
    with progress.bar(2, "training", "step", enabled=False) as bar:
        bar.update(2)
    assert shown == [] and capfd.readouterr() == ("", "")


def test_a_sweep_in_a_notebook(shown, tmp_path, capsys):
    with SweepProgress(2) as sweep:
        folder = tmp_path / "run"
        sweep.watch([folder])
        folder.mkdir()
        (folder / "config.yaml").write_text("training:\n  steps: 100\n")
        header = "step,training/loss,training/grad_norm,training/learning_rate,training/skipped\n"
        (folder / "metrics.csv").write_text(f"{header}40,0.5,1.0,0.001,0\n")
        sweep.tick()
        sweep.ended(folder, "run: well", "")
    [table] = shown
    running = next(html for text, html in table.states if "1 running" in text)
    assert running.count("<progress") == 2 and 'value="40" max="100"' in running
    assert table.states[-1][0] == "1 done, 0 failed, 0 running, 1 left, 0:00 to go"
    assert capsys.readouterr() == ("run: well\n", "")


def test_an_evaluation_is_a_dict_and_a_table(trained):
    result = trained.evaluations()[-1]
    assert isinstance(result, dict) and json.loads(json.dumps(result)) == result
    for twin in (copy.deepcopy(result), pickle.loads(pickle.dumps(result))):
        assert twin == result and isinstance(twin, Evaluation)
    html, printer = result._repr_html_(), Printer()
    result._repr_pretty_(printer, False)
    for row in result["targets"]:
        assert f">{row['return_mean']:.1f}</td>" in html
        assert f"{row['return_mean']:.1f}" in printer.said
    assert "borrowed" in html and html.count("<tr>") == 3


def test_evaluations_with_several_lengths(trained):
    several = dmamba.evaluate(trained, context_length=[2, 5], episodes=1, progress=False)
    html, printer = several._repr_html_(), Printer()
    several._repr_pretty_(printer, False)
    assert html.count("<tr>") == 5 and printer.said.count("\n") == 5
    chosen = dmamba.evaluate(trained, context_length="auto", episodes=2, progress=False)
    assert "chosen by the mean return" in chosen._repr_html_()
    chosen._repr_pretty_(printer, False)
    assert "chosen by the mean return" in printer.said


def test_a_run_is_a_table(trained, tmp_path):
    html = trained._repr_html_()
    assert "<b>tiny, seed 7: " in html and "trained 30 steps on cpu" in html
    assert "dataset mean" in html and html.count("<tr>") == 4
    copied = make_run(trained, tmp_path / "<run>")
    (copied.folder / "summary.json").unlink()
    html = copied._repr_html_()
    assert "not finished: step 30 of 30" in html and "&lt;run&gt;" in html
    assert "no config.yaml" in Run(tmp_path / "nothing")._repr_html_()
    (copied.folder / "summary.json").write_text("{")
    assert "damaged, not JSON" in copied._repr_html_(), "said, not raised"


def test_a_run_on_several_sets_has_a_table_for_each(trained, tmp_path):
    run = make_run(trained, tmp_path / "run")
    for name in ("one", "two"):
        make_run(trained, run.folder / "sets" / name)
    assert [part.folder.name for part in run.parts()] == ["one", "two"]
    html = run._repr_html_()
    assert html.count("<table") == 2 and "<b>two</b>" in html
    assert trained.parts() == []


def test_pictures_show_themselves(trained):
    picture = trained.plot()
    data, size = picture._repr_png_()
    assert data.startswith(b"\x89PNG") and size == {"width": 880, "height": 336}
    assert int.from_bytes(data[16:20], "big") == 2 * 880, "fine on a fine screen"
    assert len(picture.axes) == 2


def test_a_sweep_is_a_table_and_a_plot(trained, tmp_path):
    from dmamba.sweeps import sweep_report
    from dmamba.sweeps.grid import make_grid

    config = trained.config
    grid = make_grid(config, ["K=3,5", "seed=0:2"])
    for point in grid.points:
        for seed in grid.seeds:
            if (point.label, seed) != ("context_length=5", 1):
                make_run(trained, point.folder(tmp_path, seed))
    points = sweep_report.collect(grid, tmp_path, {})
    sweep_report.write(grid, tmp_path, points)
    sweep = Sweep(tmp_path, sweep_report.flat_rows(points), {})
    html = sweep._repr_html_()
    assert "tiny: 2 points" in html and "context_length=5 seed 1: not finished" in html
    assert html.count("<tr>") == 3
    picture = sweep.plot()
    assert [label.get_text() for label in picture.axes[0].get_xticklabels()] == ["3", "5"]
    content = json.loads((tmp_path / "sweep.json").read_text())
    for point in content["points"]:
        point["settings"]["d_model"] = 16
    write_json(tmp_path / "sweep.json", content)
    with pytest.raises(dmamba.ConfigError, match="one swept key with numbers"):
        sweep.plot()
    assert "no such file" in Sweep(tmp_path / "none", [], {})._repr_html_().lower()
