"""What is optional stays so: the core works without it, and a feature names the pip line it needs.

Without them means: in a process in which they cannot be imported. Which packages are optional is
read off the sources: all that they import beside Python's own and the core's.
"""

import ast
import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import without_optional_packages

import dmamba

PACKAGE = Path(dmamba.__file__).parent
# What the requirements of the core install, as modules; PIL is matplotlib's.
CORE = {"dmamba", "torch", "numpy", "scipy", "matplotlib", "PIL", "tensorboard", "jinja2", "tqdm"}
FEATURES = list(without_optional_packages.FEATURES)


def imported_packages() -> set[str]:
    """Top-level names of all absolute imports in the package's sources, inside functions too."""
    names = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names.add(str(node.module).partition(".")[0])
    return names - set(sys.stdlib_module_names)


@pytest.fixture(scope="module")
def optional() -> set[str]:
    found = imported_packages() - CORE
    assert {"gymnasium", "ale_py", "optuna", "ray", "submitit", "imageio"} <= found
    return found


@pytest.fixture(scope="module")
def bare(optional, trained, tmp_path_factory) -> dict:
    """What the program in without_optional_packages.py says: see there."""
    folder = tmp_path_factory.mktemp("bare")
    program = without_optional_packages.__file__
    done = subprocess.run(
        [sys.executable, program, str(trained.folder), ",".join(sorted(optional))],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_every_module_of_the_core_imports(bare):
    simulate = {
        f"dmamba.envs.{name}" for name in ("atari", "pool", "processes", "slots", "vector")
    } | {"dmamba.evaluation.feedback"}
    assert bare["modules"] > 50
    assert set(bare["failed"]) <= simulate, bare["failed"]


def test_the_core_trains(bare):
    assert bare["trained"] == 4


@pytest.mark.parametrize("feature", FEATURES)
def test_a_feature_names_the_pip_line_that_it_needs(bare, feature):
    package, line = without_optional_packages.FEATURES[feature]
    kind, message = bare["features"][feature]
    assert issubclass(getattr(dmamba, kind, type(None)), dmamba.Error), (kind, message)
    assert package in message and f"pip install '{line}'" in message, message


def test_the_command_line_says_so_in_one_line(bare):
    code, output = bare["command"]
    assert code == 2
    assert output.startswith("dmamba: error: ") and output.count("\n") == 1
    assert "pip install 'gymnasium[mujoco]>=1.1'" in output


def test_extras_that_messages_name_are_there():
    extras = set(importlib.metadata.metadata("dmamba").get_all("Provides-Extra"))
    for path in PACKAGE.rglob("*.py"):
        for named in re.findall(r"dmamba\[([\w,-]+)\]", path.read_text(encoding="utf-8")):
            assert set(named.split(",")) <= extras, f"{path}: there is no extra {named}"
