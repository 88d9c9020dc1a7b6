"""The notebooks, executed in Jupyter's kernel with their tiny settings, as their reader would.

They run in an empty folder: nothing in them may depend on where they are opened. Whatever comes out
on standard error is a failure, as is a cell that floods.
"""

import os
from pathlib import Path

import matplotlib
import matplotlib.font_manager  # finds the fonts here once; the kernels then know them  # noqa: F401
import nbformat
import pytest
from conftest import tiny
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FONTS = matplotlib.get_cachedir()
MAX_OUTPUTS = 8  # of a cell: lines, pictures, bars
BLOCK_WIDGETS = "import sys; sys.modules['ipywidgets'] = None"


def execute(notebook, folder: Path):
    """Runs all cells; an error in one is raised with its traceback."""
    (folder / "home").mkdir(exist_ok=True)  # IPython says so where there is none
    variables = {**os.environ, "DMAMBA_NOTEBOOK_QUICK": "1", "MPLCONFIGDIR": FONTS}
    variables["TMPDIR"] = str(folder)
    # With it the kernel leaves alone what C++ code writes, which users do see.
    del variables["PYTEST_CURRENT_TEST"]
    resources = {"metadata": {"path": str(folder)}}
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources)
    client.execute(env=variables)
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def complaints(cells):
    """What came out on standard error, and what floods."""
    found = []
    for cell in cells:
        streams = [output for output in cell.outputs if output.output_type == "stream"]
        found += [output.text for output in streams if output.name == "stderr"]
        found += [output.text for output in streams if "\r" in output.text]
        if len(cell.outputs) > MAX_OUTPUTS:
            found.append(f"{len(cell.outputs)} outputs of: {cell.source}")
    return found


def shown(cells, kind):
    """What the cells show in one format."""
    outputs = [output for cell in cells for output in cell.outputs]
    return [output.data[kind] for output in outputs if kind in output.get("data", {})]


def test_there_are_notebooks():
    assert [path.stem[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04", "05"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = execute(notebook, tmp_path)
    assert complaints(cells) == []
    assert len(shown(cells, "image/png")) >= 2, "pictures stand in the notebook"
    widgets = shown(cells, "application/vnd.jupyter.widget-view+json")
    assert widgets, "progress is tqdm's"
    assert not (tmp_path / "runs").exists(), "a second execution would find the folder in use"
    for cell in cells:
        assert cell.execution_count is not None


def test_a_failing_cell_and_a_warning_are_noticed(tmp_path):
    warns = nbformat.v4.new_notebook()
    warns.cells = [nbformat.v4.new_code_cell("import warnings; warnings.warn('look out')")]
    [said] = complaints(execute(warns, tmp_path))
    assert "look out" in said
    fails = nbformat.v4.new_notebook()
    fails.cells = [nbformat.v4.new_code_cell("import os; os.write(2, b'from C'); 1 / 0")]
    with pytest.raises(Exception, match="ZeroDivisionError"):
        execute(fails, tmp_path)
    assert complaints(fails.cells) == ["from C"]


def test_widgets_are_not_needed(dataset, tmp_path):
    """Bars are then lines that are replaced; results show themselves as tables."""
    config = tiny(dataset, steps=60)
    config["evaluation"] |= {"episodes": 1, "every": 30}
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [
        nbformat.v4.new_code_cell(source)
        for source in (
            BLOCK_WIDGETS,
            "import dmamba",
            f"run = dmamba.train({config!r}, output='run', evaluate='between')",
            "run",
            "dmamba.evaluate(run)",
            "run.plot()",
            f"dmamba.sweep({config!r}, ['K=3', 'training.steps=4'], output='sweep')",
        )
    ]
    cells = execute(notebook, tmp_path)
    assert complaints(cells) == []
    training, run, evaluated, plot, sweep = cells[2:]
    lines = shown([training], "text/html")
    assert 'value="60" max="60"' in lines[0] and "60/60" in lines[0]
    assert lines[1:-1] == [""], "the evaluation within the training has gone"
    assert "evaluating Hopper-v4: 100%" in lines[-1]
    [table] = shown([run], "text/html")
    assert "Hopper-v4, step 60" in table
    assert any("<table" in html for html in shown([evaluated], "text/html"))
    [size] = [output.metadata["image/png"] for output in plot.outputs]
    assert size["width"] == 880
    lines, table = shown([sweep], "text/html")
    assert "1 done, 0 failed" in lines and "<table" in table
