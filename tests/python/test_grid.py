"""The grid of a sweep: how it is written, and what is refused before a run starts."""

import re
from pathlib import Path

import pytest
from conftest import LENGTHS, tiny

import dmamba
from dmamba.common.values import split_values
from dmamba.data import sources
from dmamba.sweeps.grid import make_grid


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("5", ["5"]),
        ("5,10, 20", ["5", "10", "20"]),
        ("0:3", ["0", "1", "2"]),
        ("7,2:4", ["7", "2", "3"]),
        ("[1800,3600],[3600]", ["[1800,3600]", "[3600]"]),
        ("[[1,2],3]", ["[[1,2],3]"]),
        ("'a,b',c", ["'a,b'", "c"]),
        ("'[',b", ["'['", "b"]),
        ("/data/a:1,b", ["/data/a:1", "b"]),
    ],
)
def test_values(text, values):
    assert split_values(text) == values


def test_the_product_of_the_lists(dataset):
    texts = ["K=3,5", "evaluation.targets=[100,200],[300]", "seed=0:2,9", "training.steps=7"]
    grid = make_grid(tiny(dataset), texts)
    assert grid.keys == ["model.context_length", "evaluation.targets"]
    assert grid.seeds == [0, 1, 9] and grid.base.training.steps == 7
    assert [point.label for point in grid.points] == [
        "context_length=3,targets=[100,200]",
        "context_length=3,targets=[300]",
        "context_length=5,targets=[100,200]",
        "context_length=5,targets=[300]",
    ]
    last = grid.points[3]
    assert last.settings == {"model.context_length": 5, "evaluation.targets": [300.0]}
    assert last.folder(Path("out"), 9) == Path("out/context_length=5,targets=[300]-seed9")
    assert {seed: config.seed for seed, config in last.configs.items()} == {0: 0, 1: 1, 9: 9}
    config = last.configs[9]
    assert (config.model.context_length, config.evaluation.targets) == (5, [300.0])
    assert config.dataset.environment == "Hopper-v4", "resolved, as the run will be"
    store = dmamba.data.load(dataset)
    assert grid.dataset_mean == pytest.approx(store.episode_returns.mean())


def test_names(dataset, tmp_path):
    other = tmp_path / "other.hdf5"
    other.write_bytes(dataset.read_bytes())
    texts = [f"dataset.path={dataset},{other}", "evaluation.seed=1,2"]
    grid = make_grid(tiny(dataset), texts)
    label = grid.points[0].label
    assert label == f"path={dataset},evaluation.seed=1", "two keys end in seed"
    assert "/" not in grid.points[0].folder(Path("out"), 7).name
    assert grid.seeds == [7] and grid.dataset_mean is None
    assert [p.label for p in make_grid(tiny(dataset), ["learning_rate=1e-3,0.01"]).points] == [
        "learning_rate=0.001",
        "learning_rate=0.01",
    ]
    (only,) = make_grid(tiny(dataset), ["seed=3:5", "context_length=4"]).points
    assert only.label == "tiny" and only.settings == {} and sorted(only.configs) == [3, 4]


def test_a_dataset_that_is_not_here_is_downloaded(dataset, monkeypatch):
    asked = []
    monkeypatch.setattr(sources, "obtain", lambda name, **_: asked.append(name) or dataset)
    grid = make_grid(tiny(dataset), ["dataset.path=hopper-medium-v2", "K=3,5"])
    assert asked == ["hopper-medium-v2"] and len(grid.points) == 2


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["foo=1,2"], "key 'foo': unknown"),
        (["K"], "'K': expected key=value"),
        (["K=3,x"], "grid point model.context_length=x: "),
        (["K=3,0"], "grid point model.context_length=0: .* must be from 1"),
        (["seed=0,x"], "override 'seed=x'"),
        (["K=3", "context_length=5"], "model.context_length is given twice"),
        (["K=3,,5"], "'K=3,,5': .* empty value"),
        (["targets=[1,2"], "lacks a closing ]"),
        (["seed=3:3"], "range '3:3' has 0 values"),
        (["seed=0:1000000000"], "range '0:1000000000' has 1000000000 values"),
        (["K=1:30", "seed=0:1000"], "the grid has 29000 runs"),
        (["learning_rate=1e-3,0.001"], "learning_rate=0.001 is in the grid twice"),
        (["seed=0:3,1"], "seed 1 is in the grid twice"),
        (["environment=Hopper-v4,Ant-v4"], "grid point dataset.environment=Ant-v4: .* has 27"),
        (["dataset.path=nowhere,there"], "grid point dataset.path=nowhere: dataset 'nowhere' not"),
    ],
)
def test_grids_that_cannot_be_used(dataset, texts, message):
    message = message.replace("]", re.escape("]"))
    with pytest.raises(dmamba.Error, match=message):
        make_grid(tiny(dataset), texts)


def test_no_episode_is_as_long_as_the_context(dataset):
    longest = max(LENGTHS)
    make_grid(tiny(dataset), [f"K=1,{longest}"])
    message = f"grid point model.context_length={longest + 1}: .* longest episode, {longest} steps"
    with pytest.raises(dmamba.DataError, match=message):
        make_grid(tiny(dataset), [f"K=1,{longest + 1}"])
