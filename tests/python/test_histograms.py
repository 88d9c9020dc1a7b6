"""Histograms of datasets: their bins, their text, their picture."""

import numpy as np
import pytest
from conftest import LENGTHS

import dmamba
from dmamba import data
from dmamba.commands import main
from dmamba.data.histograms import MOST_BINS, format_histograms, histogram
from dmamba.display import plots


@pytest.mark.parametrize(
    "values",
    [
        np.array([3.5]),
        np.full(7, -2.0),
        np.array([0.0, 1e-3, 1e9]),
        np.random.default_rng(0).normal(size=5000),
        np.array([5]),
        np.arange(300) % 97,
        np.array([1, 1_000_000]),
        np.array([1000] * 90 + [1001]),
    ],
    ids=str,
)
def test_every_value_is_counted_once(values):
    found = histogram(values)
    edges, counts = np.array(found["edges"]), np.array(found["counts"])
    assert counts.sum() == len(values) and 1 <= len(counts) <= MOST_BINS
    assert len(edges) == len(counts) + 1 and (np.diff(edges) > 0).all()
    assert np.allclose(np.diff(edges), edges[1] - edges[0])
    assert (found["min"], found["max"]) == (values.min(), values.max())
    assert edges[0] <= values.min() and edges[-1] >= values.max()


def test_bins_of_integers_hold_whole_numbers():
    assert histogram(np.array([1, 1, 2, 4])) == {
        "edges": [1, 2, 3, 4, 5],
        "counts": [2, 1, 0, 1],
        "min": 1,
        "max": 4,
    }
    assert {type(edge) for edge in histogram(np.arange(1000))["edges"]} == {int}


def test_many_values_get_more_bins_than_few():
    values = np.random.default_rng(0).normal(size=10_000)
    assert len(histogram(values[:10])["counts"]) < len(histogram(values)["counts"])


def test_the_text_shows_the_counts():
    found = {"edges": [1, 2, 3, 4], "counts": [2, 4, 2], "min": 1, "max": 3}
    drawn = format_histograms({"return": found}, width=40, blocks=False)
    rows = [line.rstrip() for line in drawn.splitlines()]
    assert rows[0] == "  episodes by return" and rows[1] == "  4 |      ######"
    assert rows[3] == "    |######" + "######" * 2, "half of the height, rounded up"
    assert rows[5] == "    |" + "#" * 18 and rows[6] == "  0 +" + "-" * 18
    assert rows[7] == "     1                3"
    blocks = format_histograms({"return": found}, width=40, blocks=True)
    assert "│▄▄▄▄▄▄██████▄▄▄▄▄▄" in blocks, "two and a half lines of five"


def test_a_bar_of_one_among_thousands_is_seen():
    found = {"edges": [0, 1, 2], "counts": [9999, 1], "min": 0, "max": 1}
    for blocks, mark in ((True, "▁"), (False, "#")):
        lowest = format_histograms({"x": found}, width=60, blocks=blocks).splitlines()[5]
        assert lowest.endswith(mark * 6)


@pytest.mark.parametrize("width", [30, 50, 70, 90, 200])
def test_the_text_fits_the_terminal(width):
    random = np.random.default_rng(1)
    found = {
        "return": histogram(random.normal(1e6, 1e5, 3000)),
        "length": histogram(random.integers(1, 1001, 3000)),
    }
    lines = format_histograms(found, width=width).splitlines()
    assert max(map(len, lines)) <= width
    assert ("episodes by length" in lines[0]) == (width >= 70), "side by side where there is room"


def test_info_has_them(dataset, capsys, monkeypatch):
    result = data.info(dataset)
    assert sum(result["histograms"]["return"]["counts"]) == len(LENGTHS)
    assert result["histograms"]["length"]["max"] == max(LENGTHS)
    monkeypatch.setenv("COLUMNS", "60")
    assert main(["data", "info", str(dataset)]) == 0
    out = capsys.readouterr().out
    drawn = out[out.index("  episodes by return") : out.index("  environment: ")]
    assert "episodes by length" in drawn and max(map(len, drawn.splitlines())) <= 60


def test_a_game_has_them():
    result = data.info("samples/Breakout")
    assert sum(result["histograms"]["length"]["counts"]) == result["episodes"]
    assert "games by return" in data.format_info(result)


@pytest.mark.parametrize(
    ("name", "begins"), [("a.png", b"\x89PNG"), ("new/a.PDF", b"%PDF"), ("a.svg", b"<?xml")]
)
def test_the_picture(dataset, elsewhere, capsys, name, begins):
    words = ["data", "info", str(dataset), "samples/Breakout", "--plot", name]
    assert main(words) == 0
    assert (elsewhere / name).read_bytes().startswith(begins)
    assert capsys.readouterr().out.endswith(f"histograms  {name}\n")
    assert [path.name for path in (elsewhere / name).parent.iterdir() if "tmp" in path.name] == []


def test_the_picture_shows_bins_means_and_borrowed_scores(dataset, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "_save", lambda figure, path, form: drawn.append(figure))
    result = data.info(dataset)
    plots.plot_datasets([result], dataset.parent / "x.png")
    returns, lengths = drawn[0].axes
    counts = [bar.get_height() for bar in returns.patches]
    assert counts == result["histograms"]["return"]["counts"]
    assert lengths.patches[0].get_x() == min(LENGTHS) - 0.5, "whole numbers lie inside of bars"
    assert returns.lines[0].get_xdata()[0] == pytest.approx(result["return_mean"])
    assert returns.child_axes[0].get_xlabel() == "D4RL normalised score (borrowed constants)"


def test_pictures_of_other_formats_are_refused(dataset, capsys):
    assert main(["data", "info", "nothing-there", "--plot", "a.jpg"]) == 2
    assert (
        "a.jpg: a picture's name must end with one of .png, .pdf, .svg" in capsys.readouterr().err
    )
    with pytest.raises(dmamba.ConfigError, match=r"must end with"):
        plots.plot_datasets([data.info(dataset)], dataset.parent / "picture")
    assert main(["data", "list", "--plot", "a.png"]) == 2
    assert "data list takes no --plot" in capsys.readouterr().err
