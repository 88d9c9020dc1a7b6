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
# What C++ has no words for: it stands in files that the emulation replaces.
INSTRUCTION = re.compile(r"\basm\b|<<<|extern __shared__")
OVERLAY = ROOT / "tests" / "emulation" / "overlay"


def include_problem(file: Path, header: str) -> str | None:
    """Says why `file` (relative to the root) may not include `header`, or returns None."""
    top = file.parts[0]
    if top == "kernels" and TORCH.match(header):
        return "kernels/ knows no framework: pass pointers, sizes, strides and a stream"
    if PRIVATE.match(header) and top != "tests" and (top != "src" or file.suffix != ".cpp"):
        return "HDF5, yaml-cpp and spdlog belong into .cpp files of src/ (and into tests)"
    inside = top == "kernels" or file.parts[:3] == ("src", "ops", "cuda")
    if LAUNCH.match(header) and not inside and file.parts[:2] != ("tests", "emulation"):
        return "only src/ops/cuda (and tests/emulation) launches kernels"
    return None


def instruction_problem(file: Path, line: str) -> str | None:
    """Says why a line of `file` (relative to the root) cannot be emulated, or returns None."""
    code = line.partition("//")[0]
    if file.parts[0] != "kernels" or not INSTRUCTION.search(code) or (OVERLAY / file).is_file():
        return None
    return "give it a name in kernels/common, and its counterpart in tests/emulation/overlay"


def loaded(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yields what runs as a file is loaded: neither functions nor what type checkers alone read."""
    for line in body:
        if isinstance(line, ast.If) and ast.unparse(line.test) == "TYPE_CHECKING":
            yield from loaded(line.orelse)
        elif not isinstance(line, ast.FunctionDef | ast.AsyncFunctionDef):
            yield line
            for field in ("body", "orelse", "finalbody"):
                yield from loaded(getattr(line, field, []))
            for handler in getattr(line, "handlers", []):
                yield from loaded(handler.body)


def imported(line: ast.stmt, package: str) -> Iterator[str]:
    """Yields the full names that a line of a file of `package` imports."""
    if isinstance(line, ast.Import):
        yield from (name.name for name in line.names)
    elif isinstance(line, ast.ImportFrom):
        above = package.split(".")[: 1 - line.level or None] if line.level else []
        source = ".".join([*above, *([line.module] if line.module else [])])
        yield from (f"{source}.{name.name}" for name in line.names)


def import_problems(file: Path, text: str) -> Iterator[tuple[int, str]]:
    """Yields line number and problem for imports of a file of the Python package that go up.

    Imports inside functions, which break a circle, and those for type checkers are left out.
    """
    parts = file.relative_to(PACKAGE).parts
    room = parts[0].removesuffix(file.suffix)
    if room == "__init__":
        return
    if room not in ROOMS:
        yield 1, f"no room {room} in the list of house_rules.py: choose one, or place the new one"
        return
    below = ROOMS[: ROOMS.index(room) + 1]
    for line in loaded(ast.parse(text).body):
        for name in imported(line, ".".join(["dmamba", *parts[:-1]])):
            if name == "dmamba.data.record":
                name = "dmamba.evaluation.recording.record"  # which is found in a function
            package, _, inside = f"{name}.".partition(".")
            if package == "dmamba" and inside.split(".")[0] not in below:
                yield line.lineno, f"{room} imports {name}, and stands below it"


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
        problem = instruction_problem(name, line)
        if problem:
            yield f"{name}:{number}: {line.strip()}: {problem}"


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
