"""A search on engines other than this machine's processes."""

import json

import pytest
from conftest import tiny

import dmamba
from dmamba.commands import main


@pytest.fixture
def config(dataset, elsewhere):
    """tiny.json: it trains in an instant, and evaluates one episode."""
    made = tiny(dataset, steps=8)
    made["evaluation"] |= {"episodes": 1, "targets": [100]}
    (elsewhere / "tiny.json").write_text(json.dumps(made))
    return made


@pytest.fixture
def cluster(monkeypatch):
    """A Ray cluster of this machine."""
    import ray

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def test_a_search_on_ray(config, elsewhere, cluster, capfd):
    words = ["sweep", "tiny.json", "K=3,5", "dropout=0.0..0.3", "--trials", "2", "--output", "out"]
    words += ["--engine", "ray", "--ray", "cpus=1", "--jobs", "2", "--sampler", "random"]
    assert main(words) == 0
    assert (
        "trials in out: 2 of 1 runs, on Ray with 1 CPUs and 0 GPUs each" in capfd.readouterr().out
    )
    runs = [elsewhere / "out" / f"trial-000{number}-seed7" for number in (0, 1)]
    before = [(run / "summary.json").stat().st_mtime_ns for run in runs]

    # The same trials here: an engine is where runs are trained, nothing of what they are.
    here = words[: words.index("--engine")] + words[words.index("--jobs") :]
    assert main(here) == 0
    assert before == [(run / "summary.json").stat().st_mtime_ns for run in runs]
    options = {"trials": 2, "sampler": "random", "jobs": 2, "progress": False}
    other = dmamba.sweep("tiny.json", ["K=3,5", "dropout=0.0..0.3"], output="other", **options)
    chosen = [dmamba.Run(run).config for run in runs]
    again = [dmamba.Run(other.folder / run.name).config for run in runs]
    assert [one.to_yaml() for one in chosen] == [one.to_yaml() for one in again]


def test_a_search_elsewhere_needs_the_size_of_a_round(config, elsewhere, capfd):
    words = ["sweep", "tiny.json", "K=3,5", "--trials", "2", "--output", "out"]
    assert main([*words, "--engine", "ray"]) == 2
    assert "a search on engine ray needs --jobs N" in capfd.readouterr().err
    assert main([*words, "--engine", "dask"]) == 2
    assert "engine: no 'dask'" in capfd.readouterr().err
    assert main([*words, "--jobs", "0"]) == 2
    assert "jobs must be at least 1, got 0" in capfd.readouterr().err
    assert not (elsewhere / "out").exists()
