"""A C++ project of its own uses an installed DMamba: examples/find_package, built and run.

What is installed comes from the build folder that `pip install .` leaves in the checkout.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch

import dmamba
from dmamba import _build_info

ROOT = Path(__file__).parents[2]
TORCH_LIBRARIES = Path(torch.__file__).parent / "lib"


def build_folder() -> Path:
    """Where pip builds: pyproject.toml's build-dir."""
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    platform = re.sub(r"[-.]", "_", sysconfig.get_platform())
    folder = ROOT / "build" / f"{tag}-{tag}-{platform}"
    assert (folder / "CMakeCache.txt").is_file(), f"{folder} is not there: pip install . makes it"
    return folder


def run(*command: object, **environment: str) -> subprocess.CompletedProcess:
    """Runs a program with its output as text, without a path for libraries in its environment."""
    inherited = {k: v for k, v in os.environ.items() if k != "LD_LIBRARY_PATH"}
    return subprocess.run(
        [str(word) for word in command],
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=1800,
    )


def succeed(*command: object) -> str:
    done = run(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def configure(build: Path, prefix: Path, *options: str) -> list[object]:
    launcher = ["-DCMAKE_CXX_COMPILER_LAUNCHER=ccache"] if shutil.which("ccache") else []
    example = ROOT / "examples" / "find_package"
    return [
        "cmake",
        "-S",
        example,
        "-B",
        build,
        f"-DCMAKE_PREFIX_PATH={prefix}",
        *launcher,
        *options,
    ]


@pytest.fixture(scope="module")
def prefix(tmp_path_factory) -> Path:
    """A folder into which DMamba is installed for C++."""
    folder = tmp_path_factory.mktemp("prefix")
    succeed("cmake", "--install", build_folder(), "--prefix", folder)
    return folder


@pytest.fixture(scope="module")
def predict(prefix, tmp_path_factory) -> Path:
    """The example's program."""
    build = tmp_path_factory.mktemp("example")
    succeed(*configure(build, prefix))
    succeed("cmake", "--build", build)
    return build / "predict"


def runpath(binary: Path) -> list[str]:
    (found,) = re.findall(r"RUNPATH.*\[(.+)\]", succeed("readelf", "-d", binary))
    return found.split(":")


def test_only_what_cpp_users_need_is_installed(prefix):
    assert sorted(path.name for path in prefix.iterdir()) == ["include", "lib"]
    library = prefix / "lib" / "libdmamba.so"
    folders = runpath(library)
    assert folders[0] == str(TORCH_LIBRARIES) and not any("$ORIGIN" in name for name in folders)
    assert str(build_folder()) not in library.with_name("cmake").joinpath(
        "dmamba/dmambaTargets.cmake"
    ).read_text(encoding="utf-8")


def test_a_new_model_runs(predict):
    assert succeed(predict) == "actions of a new model: [3, 4, 3]\n"


def test_a_checkpoint_gives_pythons_actions(predict, trained):
    folder = trained.latest_checkpoint()[1]
    printed = succeed(predict, folder)
    model, _ = dmamba.nn.load(folder)
    steps = model.config.context_length
    timesteps = torch.arange(steps)[None]
    with torch.no_grad():
        expected = model.eval()(
            (0.1 * timesteps).float()[..., None].expand(1, steps, 11).contiguous(),
            torch.zeros(1, steps, 3),
            torch.ones(1, steps, 1),
            timesteps,
        )
    got = np.array([[float(value) for value in line.split()] for line in printed.splitlines()])
    np.testing.assert_allclose(got, expected[0].numpy(), rtol=1e-6, atol=1e-7)


def test_what_is_no_checkpoint_is_named(predict, tmp_path):
    done = run(predict, tmp_path / "nowhere")
    assert done.returncode == 1
    assert f"predict: {tmp_path / 'nowhere'}: not a checkpoint" in done.stderr


def test_a_python_without_torch_is_an_error_that_says_so(prefix, tmp_path):
    python = tmp_path / "python"  # one that has no packages
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    python.chmod(0o755)
    options = [f"-DPython_EXECUTABLE={python}"]
    done = run(*configure(tmp_path / "build", prefix, *options))
    assert done.returncode != 0
    message = " ".join(done.stderr.split())
    assert f"the torch of {python}, and it has none: install torch" in message


def test_another_minor_version_of_torch_is_refused(prefix, tmp_path):
    fake = tmp_path / "site" / "torch"
    fake.mkdir(parents=True)
    (fake / "__init__.py").touch()
    (fake / "version.py").write_text("__version__ = '2.99.1'\ncuda = None\n")
    done = run(
        *configure(tmp_path / "build", prefix),
        PYTHONPATH=str(fake.parent),
    )
    assert done.returncode != 0
    message = " ".join(done.stderr.split())
    assert f"built for torch {_build_info.torch_minor}, " in message and "has 2.99.1" in message
