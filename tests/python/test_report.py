"""The report on a folder of runs: numbers, texts, escaping, errors, and the page in a browser."""

import csv
import json

import numpy as np
import pytest
from browser import Browser
from made_runs import edit_summary, make_run

import dmamba
from dmamba.commands import main

MIN, MAX = -20.272305, 3234.3  # Hopper's, D4RL's infos.py


def make_grid(trained, folder, seeds=(0, 1, 2)):
    """K 3, 5, 10 with two channel mixers; better with K, and with the seed."""
    for context in (3, 5, 10):
        for mixing in ("mlp", "none"):
            for seed in seeds:
                words = [f"context_length={context}", f"channel_mixing={mixing}", f"seed={seed}"]
                factor = context + seed + 5.0 * (mixing == "mlp")
                make_run(trained, folder / f"K={context},{mixing}-seed{seed}", words, factor)
    return folder


def by_title(made):
    return {table.title: table for table in made.tables}


def test_numbers_of_a_grid(trained, tmp_path):
    folder = make_grid(trained, tmp_path / "grid")
    made = dmamba.report(folder)
    assert (made.html, made.csv) == (folder / "report.html", folder / "report.csv")
    tables = by_title(made)
    last = tables["Last evaluation: Hopper-v4, tiny"]
    assert last.columns[:4] == ["context_length", "channel_mixing", "target", "seeds"]
    rows = [row[:4] for row in last.rows]
    assert rows[0] == ["3", "mlp", "100", "3"] and rows[-1] == ["10", "none", "500", "3"]
    # Three episodes of 100, 101, 103 and the target's hundredth, times 3, 4, 5 plus 5 for mlp.
    means = np.array([8.0, 9.0, 10.0]) * (304 / 3 + 1)
    score = 100 * (means - MIN) / (MAX - MIN)
    stderr = score.std(ddof=1) / np.sqrt(3)
    assert last.rows[0][4] == f"{score.mean():.1f} ± {stderr:.1f}"
    assert last.rows[0][6] == f"{score.mean():.1f}", "of three values nothing is cut off"
    assert last.rows[0][8] == f"{means.mean():.1f}"
    best = tables["Best evaluation (biased upwards): Hopper-v4, tiny"]
    assert float(best.rows[0][8]) == pytest.approx(means.mean() + 90, abs=0.06)
    assert "biased upwards" in best.note and "over seeds" in last.note
    (scale,) = tables["Scores"].rows
    assert scale[2:5] == ["hopper", "-20.2723", "3234.3"] and "borrowed" in scale[5]
    (cost, *_) = tables["Time and memory"].rows
    assert cost[4] == f"{trained.summary()['parameters']:,}" and float(cost[9]) > 50
    (origin,) = tables["Devices and versions"].rows
    assert origin[0] == "18" and dmamba.__version__ in origin

    with open(made.csv) as file:
        found = list(csv.DictReader(file))
    assert len(found) == 18 * 2 * 2 and len({row["run"] for row in found}) == 18
    row = next(
        row
        for row in found
        if (row["run"], row["target"], row["which"]) == ("K=3,mlp-seed0", "100.0", "best")
    )
    assert float(row["return_mean"]) == pytest.approx(means[0] + 80)
    assert (row["setting:context_length"], row["setting:channel_mixing"]) == ("3", "mlp")
    assert float(row["constants_max"]) == MAX and row["step"] == "15"

    # A figure for each target and its curve, the loss, targets, time; files beside the text.
    names = [figure.name for figure in made.figures]
    assert names == [
        *("score-target-100", "score-target-500", "loss"),
        *("curve-target-100", "curve-target-500", "targets", "time"),
    ]
    text = made.markdown.read_text()
    for place, name in enumerate(names, start=1):
        assert f"(<report-plots/{place:02d}-{name}.svg>)" in text
        assert (folder / "report-plots" / f"{place:02d}-{name}.svg").is_file()
    assert f"context_length 3, channel_mixing mlp: {score.mean():.1f} [" in made.figures[0].alt
    assert "<iframe sandbox" in made._repr_html_()

    # Once more: the same bytes, and no figure of an earlier report stays.
    written = [made.html, made.markdown, made.csv, *sorted((folder / "report-plots").iterdir())]
    before = {path: path.read_bytes() for path in written}
    (folder / "report-plots" / "99-old.svg").write_text("old")
    dmamba.report(folder)
    after = [made.html, made.markdown, made.csv, *sorted((folder / "report-plots").iterdir())]
    assert {path: path.read_bytes() for path in after} == before


def test_one_seed_is_of_its_episodes(trained, tmp_path, capsys):
    run = make_run(trained, tmp_path / "alone", factor=2.0)
    page = tmp_path / "pages" / "alone.html"
    assert main(["report", str(run.folder), "--output", str(page)]) == 0
    assert f"report  {page}" in capsys.readouterr().out
    assert page.with_suffix(".md").is_file() and page.with_suffix(".csv").is_file()
    assert "they say nothing about another seed" in page.read_text()
    last = by_title(dmamba.report(run.folder))["Last evaluation: Hopper-v4, tiny"]
    assert last.columns[:2] == ["target", "seeds"] and last.rows[0][1] == "1"
    episodes = 100 * (2 * (np.array([100, 101, 103]) + 1.0) - MIN) / (MAX - MIN)
    assert last.rows[0][2].startswith(f"{episodes.mean():.1f} ± ")
    assert "over seeds" not in last.note


def test_several_datasets_are_strata(trained, tmp_path):
    for seed in range(3):
        for environment in ("Hopper-v4", "Walker2d-v4"):
            name = f"sweeps/{environment}/seed{seed}"
            words = [f"seed={seed}", f"learning_rate={0.01 if environment[0] == 'H' else 0.02}"]
            make_run(trained, tmp_path / name, words, 5.0 + seed, environment)
    made = dmamba.report(tmp_path / "sweeps")
    tables = by_title(made)
    # A setting that follows from the dataset tells no runs of one dataset apart.
    table = tables["Over all datasets: last evaluation"]
    assert table.columns[:4] == ["score", "target", "datasets", "runs"]
    assert [row[:4] for row in table.rows] == [
        ["D4RL score", "no. 1", "2", "6"],
        ["D4RL score", "no. 2", "2", "6"],
    ]
    every = []
    for environment in ("Hopper-v4", "Walker2d-v4"):
        for factor in (5.0, 6.0, 7.0):
            mean = factor * (304 / 3 + 1)
            every.append(dmamba.envs.normalized_score(environment, mean))
    assert table.rows[0][4] == f"{np.mean(every):.1f}"
    assert table.rows[0][6] == f"{np.mean(sorted(every)[1:-1]):.1f}"
    assert {row[0] for row in tables["Scores"].rows} == {"Hopper-v4, tiny", "Walker2d-v4, tiny"}


def test_raw_returns_and_words(trained, tmp_path):
    for padding in ("masked", "paper"):
        run = make_run(trained, tmp_path / "runs" / padding, [f"padding={padding}"])
        edit_summary(run, lambda summary: summary.update(constants=None))
    made = dmamba.report(tmp_path / "runs")
    last = by_title(made)["Last evaluation: Hopper-v4, tiny"]
    assert last.columns[0] == "padding" and last.columns[3] == "return: mean ± error"
    assert last.rows[0][3].startswith("102.3 ±")
    assert by_title(made)["Scores"].rows[0][5] == "no reference constants: raw returns"
    assert {row["score_name"] for row in made.rows} == {None}


def test_runs_without_evaluation_and_of_earlier_versions(trained, tmp_path):
    run = make_run(trained, tmp_path / "runs" / "bare")

    def strip(summary):
        summary.update(last=None, best=None)
        del summary["parameters"], summary["memory"]

    edit_summary(run, strip)
    for path in (run.folder / "evaluations").iterdir():
        path.unlink()
    made = dmamba.report(tmp_path / "runs")
    assert [figure.name for figure in made.figures] == ["loss", "time"]
    assert "No run was evaluated, so there are no scores." in made.html.read_text()
    (row,) = made.rows
    assert (row["target"], row["parameters"], row["peak_host_bytes"]) == (None, None, None)


def test_failed_episodes_are_told(trained, tmp_path):
    for seed in (0, 1):
        run = make_run(trained, tmp_path / "runs" / f"seed{seed}", [f"seed={seed}"])
        if seed == 1:
            edit_summary(run, lambda s: s["last"]["targets"][0].update(failed=2))
    made = dmamba.report(tmp_path / "runs")
    note = by_title(made)["Last evaluation: Hopper-v4, tiny"].note
    assert "Episodes that failed, which the means leave out: seed1 2 of 6." in note
    assert "leave out: seed1 2 of 6." in made.html.read_text()
    assert "failed" not in by_title(made)["Best evaluation (biased upwards): Hopper-v4, tiny"].note
    found = {(r["seed"], r["target"], r["which"]): r["failed"] for r in made.rows}
    assert found.pop((1, 100.0, "last")) == 2 and set(found.values()) == {0}


def test_unfinished_runs_are_listed(trained, tmp_path):
    folder = make_grid(trained, tmp_path / "grid", seeds=(0,))
    (folder / "K=10,mlp-seed0" / "summary.json").unlink()
    point = {"experiment": "K=20,mlp", "failures": {"3": "exit code 2: no memory"}}
    (folder / "sweep.json").write_text(json.dumps({"points": [point]}))
    made = dmamba.report(folder)
    assert by_title(made)["Not finished"].rows == [
        ["K=10,mlp-seed0", "not finished, no checkpoint"],
        ["K=20,mlp-seed3", "exit code 2: no memory"],
    ]
    assert "| K=20,mlp-seed3 | exit code 2: no memory |" in made.markdown.read_text()


def test_texts_of_runs_are_escaped(trained, tmp_path):
    evil = "<script>alert(1)<b> $x_{$ | [a](b)"
    for index in (0, 1):
        folder = tmp_path / f"{evil}" / f"{evil}{index}"
        make_run(trained, folder, [f"name='{evil}{index}'", f"seed={index}"])
    (tmp_path / evil / "bad<script>").mkdir()
    (tmp_path / evil / "bad<script>" / "config.yaml").write_text("")
    made = dmamba.report(tmp_path / evil)
    page = made.html.read_text()
    assert "<script" not in page and "<b>" not in page
    assert "&lt;script&gt;alert(1)&lt;b&gt;" in page
    assert not any("<script" in figure.svg for figure in made.figures)
    text = made.markdown.read_text()
    assert "\\<script\\>alert(1)\\<b\\> \\$x\\_\\{\\$ \\| \\[a](b)" in text


def test_what_cannot_be_reported(trained, tmp_path, capsys):
    with pytest.raises(dmamba.DataError, match="no such folder"):
        dmamba.report(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert main(["report", str(tmp_path / "empty")]) == 2
    assert "no finished run in it (0 unfinished)" in capsys.readouterr().err
    assert not list((tmp_path / "empty").iterdir())
    run = make_run(trained, tmp_path / "runs" / "one")
    with pytest.raises(dmamba.ConfigError, match="ends in .html"):
        dmamba.report(tmp_path / "runs", tmp_path / "report.pdf")
    (run.folder / "summary.json").write_text('{"name": ')
    with pytest.raises(dmamba.DataError, match=r"one/summary.json: damaged, not JSON .*--resume"):
        dmamba.report(tmp_path / "runs")
    (run.folder / "summary.json").write_text("{}")
    with pytest.raises(dmamba.DataError, match=r"one/summary.json: has no seed, steps.*--resume"):
        dmamba.report(tmp_path / "runs")


def test_the_page_in_a_browser(trained, tmp_path):
    made = dmamba.report(make_grid(trained, tmp_path / "grid"))
    bad = tmp_path / "bad.html"
    bad.write_text("<img src='http://127.0.0.1:9/x.png'><script>console.error('no')</script>")
    with Browser(tmp_path / "profile") as browser:
        # First what the test is worth: it sees a request, and an error.
        requests, said = browser.open(bad.as_uri(), 1200)
        assert "http://127.0.0.1:9/x.png" in requests and said
        for width in (1200, 390):
            for dark in (False, True):
                requests, said = browser.open(made.html.as_uri(), width, dark)
                assert [url for url in requests if not url.startswith("data:")] == [
                    made.html.as_uri()
                ]
                assert said == []
                assert browser.evaluate("document.documentElement.scrollWidth") <= width
                assert browser.evaluate("window.innerWidth") == width
                ground = browser.evaluate("getComputedStyle(document.body).backgroundColor")
                assert (ground == "rgb(255, 255, 255)") is not dark
                assert len(browser.screenshot()) > 20_000
        # On a phone the widest table is wider than the page, and scrolls by itself.
        widest = "Math.max(...[...document.querySelectorAll('.scroll')].map(e => e.scrollWidth))"
        assert browser.evaluate(widest) > 390
        assert browser.evaluate("document.querySelectorAll('figure svg').length") == 7
        ids = "[...document.querySelectorAll('[id]')].map(e => e.id)"
        assert browser.evaluate(f"new Set({ids}).size === {ids}.length")
