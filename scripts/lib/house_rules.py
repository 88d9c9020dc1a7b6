"""Rules of the house that no off-the-shelf tool knows; scripts/lint.sh runs this.

Who may include whom (CONTRIBUTING.md), in C++ and between the rooms of the Python package, the
length of files, and a comment at the head of each.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("src", "include", "kernels", "bindings", "tests", "scripts", "examples")
CPP = (".cpp", ".h", ".cu", ".cuh")
MAX_LINES = 500

PACKAGE = ROOT / "bindings" / "dmamba"
# Its rooms, from the ground up: what a file imports as it is loaded lies in its room or below.
ROOMS = (
    *("_C", "_build_info", "_openmp", "_uncompiled", "configuration", "ops", "reference"),
    *("common", "envs", "display", "nn", "data", "runs", "evaluation", "training"),
    *("engines", "sweeps", "benchmarking", "reporting", "commands", "__main__"),
)

INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]')
TORCH = re.compile(r"^(torch|ATen|c10|caffe2)/")
PRIVATE = re.compile(r"^(hdf5\.h|H5\w+\.h|yaml-cpp/|spdlog/|fmt/)")
LAUNCH = re.compile(r"^kernels/.*launch\.h$|^launch\.h$")


def include_problem(file: Path, header: str) -> str | None:
    """Says why `file` (relative to the root) may not include `header`, or returns None."""
    top = file.parts[0]
    if top == "kernels" and TORCH.match(header):
        return "kernels/ knows no framework: pass pointers, sizes, strides and a stream"
    if PRIVATE.match(header) and top != "tests" and (top != "src" or file.suffix != ".cpp"):
        return "HDF5, yaml-cpp and spdlog belong into .cpp files of src/ (and into tests)"
    inside = top == "kernels" or file.parts[:3] == ("src", "ops", "cuda")
    if LAUNCH.match(header) and not inside and file.parts[:2] != ("tests", "cuda"):
        return "only src/ops/cuda (and tests/cuda) launches kernels"
    return None


def imported_rooms(line: ast.stmt) -> Iterator[str]:
    """Yields the rooms of the package that a line `from dmamba... import ...` names."""
    if isinstance(line, ast.ImportFrom) and line.module and not line.level:
        package, _, inside = line.module.partition(".")
        if package == "dmamba":
            yield from [inside.split(".")[0]] if inside else [name.name for name in line.names]


def import_problems(file: Path, text: str) -> Iterator[tuple[int, str]]:
    """Yields line number and problem for imports of a file of the Python package that go up.

    Those inside functions, which break a circle, and those for type checkers alone are left out.
    """
    room = file.relative_to(PACKAGE).parts[0].removesuffix(file.suffix)
    if room == "__init__":
        return
    if room not in ROOMS:
        yield 1, f"no room {room} in the list of house_rules.py: choose one, or place the new one"
        return
    for line in ast.parse(text).body:
        for other in imported_rooms(line):
            if other not in ROOMS or ROOMS.index(other) > ROOMS.index(room):
                yield line.lineno, f"{room} imports {other}, which stands above it"


def problems_of(file: Path) -> Iterator[str]:
    """Yields `path:line: what is wrong` for one source file."""
    name = file.relative_to(ROOT)
    text = file.read_text(encoding="utf-8")
    lines = text.splitlines()
    if len(lines) > MAX_LINES:
        yield f"{name}:{MAX_LINES + 1}: {len(lines)} lines, at most {MAX_LINES}: split the file"
    if file.is_relative_to(PACKAGE) and file.suffix == ".py":
        for number, problem in import_problems(file, text):
            yield f"{name}:{number}: {problem}"
    if file.suffix not in CPP:
        return
    if not lines or not lines[0].startswith(("//", "/*")):
        yield f"{name}:1: a file opens with a comment that says what it is for"
    for number, line in enumerate(lines, start=1):
        match = INCLUDE.match(line)
        problem = include_problem(name, match[1]) if match else None
        if problem:
            yield f"{name}:{number}: includes {match[1]}: {problem}"


def main() -> int:
    """Prints every problem; returns the exit status."""
    suffixes = (*CPP, ".py", ".pyi", ".sh")
    files = sorted(
        path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in suffixes
    )
    problems = [problem for file in files for problem in problems_of(file)]
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
