"""The picture of a run."""

import copy
import warnings

import matplotlib.image
import pytest

from dmamba.display import plots
from dmamba.runs import Run, RunWriter

PNG = b"\x89PNG\r\n\x1a\n"


def size(path):
    assert path.read_bytes().startswith(PNG)
    height, width = matplotlib.image.imread(path).shape[:2]
    return width, height


def test_the_training_leaves_a_plot(trained):
    assert trained.plot_path == trained.folder / "plots" / "training.png"
    width, height = size(trained.plot_path)
    assert width > 2 * height, "two panels"
    assert [entry.name for entry in trained.plot_path.parent.iterdir()] == ["training.png"]


def test_without_evaluations_there_is_one_panel(tmp_path, trained):
    with RunWriter(tmp_path / "run", resume=False) as writer:
        writer.start(trained.config, 0)
    width, height = size(plots.plot_run(Run(tmp_path / "run")))
    assert width < 2 * height


@pytest.mark.parametrize(
    "targets",
    [[100.0], [100.0, 72000.0], [-500.0, 20.0], [0.0, 0.0]],
    ids=["one", "far", "negative", "zero"],
)
def test_any_targets_can_be_drawn(tmp_path, trained, monkeypatch, targets):
    result = copy.deepcopy(trained.evaluations()[-1])
    rows = [copy.deepcopy(result["targets"][0]) for _ in targets]
    for row, target in zip(rows, targets, strict=True):
        row["target"], row["return_interval"] = target, None
    result["targets"] = rows
    result["environment"] = "CartPole-v1"
    monkeypatch.setattr(Run, "evaluations", lambda self: [result, result])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        size(plots.plot_run(trained, 50.0, tmp_path / "new" / "plot.png"))


@pytest.mark.parametrize(("target", "drawn"), [(110.0, True), (72000.0, False)])
def test_the_line_of_the_targets_is_named_where_it_can_be_seen(trained, monkeypatch, target, drawn):
    result = copy.deepcopy(trained.evaluations()[-1])
    result["targets"] = result["targets"][:1]
    result["targets"][0] |= {"target": target, "return_mean": 105.0, "return_interval": (99, 111)}
    monkeypatch.setattr(Run, "evaluations", lambda self: [result])
    labels = [text.get_text() for text in plots.draw_run(trained).axes[1].get_legend().get_texts()]
    assert ("return = target" in labels) == drawn
