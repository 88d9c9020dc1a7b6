"""DMamba beside other packages: safetensors reads its files, h5py shares its process."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import dmamba


def last_checkpoint(run):
    return sorted((Path(run.folder) / "checkpoints").iterdir())[-1]


def test_safetensors_package_reads_the_model(trained):
    safetensors = pytest.importorskip("safetensors.torch")
    folder = last_checkpoint(trained)
    model, _ = dmamba.nn.load(folder)
    tensors = safetensors.load_file(folder / "model.safetensors")
    expected = model.state_dict()
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor), name
    model.load_state_dict(tensors)


def test_safetensors_package_reads_the_optimizer(trained):
    safetensors = pytest.importorskip("safetensors.torch")
    folder = last_checkpoint(trained)
    moments = safetensors.load_file(folder / "optimizer.safetensors")
    names = dmamba.nn.load(folder)[0].state_dict()
    assert moments.keys() == {f"{m}.{n}" for m in ("exp_avg", "exp_avg_sq") for n in names}
    for name, tensor in names.items():
        assert moments[f"exp_avg.{name}"].shape == tensor.shape
        assert (moments[f"exp_avg_sq.{name}"] >= 0).all()


READ_WITH_BOTH = """
import sys
{imports}
path = sys.argv[1]
for _ in range(2):
    store = dmamba.data.load(path)
    with h5py.File(path) as file:
        rows = file["observations"].shape[0]
        with_open = dmamba.data.load(path)
    assert rows == store.num_transitions == with_open.num_transitions, rows
try:
    dmamba.data.load(sys.argv[0])
except dmamba.DataError:
    pass
with h5py.File(path) as file:
    print(rows, file["rewards"][0])
"""


@pytest.mark.parametrize("first", ["h5py", "dmamba"])
def test_h5py_works_in_either_import_order(first, dataset, tmp_path):
    second = {"h5py": "dmamba", "dmamba": "h5py"}[first]
    script = tmp_path / "both.py"
    script.write_text(READ_WITH_BOTH.format(imports=f"import {first}\nimport {second}"))
    done = subprocess.run(
        [sys.executable, str(script), str(dataset)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rows, reward = done.stdout.split()
    assert int(rows) == 115
    assert 1.0 <= float(reward) <= 3.0


def library_files():
    # Beside the package, as installed; a development tree may link to them.
    folder = Path(dmamba._C.__file__).resolve().parent
    library = next(
        path
        for path in (folder / "libdmamba.so", *folder.parent.rglob("libdmamba.so"))
        if path.exists()
    )
    return library, Path(dmamba._C.__file__).resolve()


def exported(path):
    done = subprocess.run(
        ["nm", "-D", "--defined-only", "--demangle", str(path)],
        capture_output=True,
        text=True,
        check=True,
    )
    return [line.split(maxsplit=2)[2] for line in done.stdout.splitlines()]


def test_libraries_export_names_of_dmamba_only():
    library, extension = library_files()
    names = exported(library)
    assert any("dmamba::ops::selective_scan" in name for name in names)
    foreign = [name for name in names if "dmamba" not in name]
    assert foreign == []
    for word in ("H5", "YAML", "spdlog", "fmt::", "nlohmann"):
        assert [n for n in names + exported(extension) if n.startswith(word)] == []
    assert "PyInit__C" in exported(extension)


def test_tensors_of_numpy_and_torch_share_the_bits():
    u = np.random.default_rng(0).normal(size=(1, 5, 3)).astype(np.float32)
    weight = np.ones((3, 2), dtype=np.float32)
    out = dmamba.ops.causal_conv1d(torch.from_numpy(u), torch.from_numpy(weight), silu=False)
    expected = u + np.concatenate([np.zeros((1, 1, 3), np.float32), u[:, :-1]], axis=1)
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-6)
