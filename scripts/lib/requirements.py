"""What development installs, pinned and hashed: requirements/*.txt, made from pyproject.toml.

    python scripts/lib/requirements.py             whether the files fit pyproject.toml; no network
    python scripts/lib/requirements.py --fix       has uv write those that do not; pins are kept
    python scripts/lib/requirements.py --upgrade   has uv write all anew, with today's releases

A file has a hash for every archive of every release in it, for all Pythons that pyproject.toml
allows. torch is not among them: which build of it is wanted is the machine's matter, and
scripts/lib/setup.sh installs it before these, with what it needs itself. The files are installed
with `pip install --require-hashes --no-deps`.
"""

import argparse
import hashlib
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from pip._vendor.packaging.requirements import Requirement

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    from pip._vendor import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "requirements"
# In the order in which they are made: each keeps to the versions of those before it.
EXTRAS = ("lint", "docs", "test")
WITHOUT_PACKAGE = ("lint",)  # installed where DMamba and what it needs are not
LEFT_OUT = ("torch",)

PIN = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^\]]*\])?==([^\s;]+)")
HASH = re.compile(r"^ +--hash=sha256:[0-9a-f]{64}( \\)?$")
ADDRESS = re.compile(r"https?://|file:|--(extra-)?index-url|--find-links")


def inputs(extra: str) -> list[str]:
    """The requirements that a file is made from, as pyproject.toml has them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    own = [] if extra in WITHOUT_PACKAGE else project["dependencies"]
    wanted = [*own, *project["optional-dependencies"][extra]]
    return sorted({text for text in wanted if name_of(Requirement(text).name) not in LEFT_OUT})


def name_of(text: str) -> str:
    """A package's name as PyPI normalises it."""
    return re.sub(r"[-_.]+", "-", text).lower()


def digest(requirements: list[str]) -> str:
    """What stands in a file's head, to tell whether its inputs have changed."""
    return hashlib.sha256("\n".join(requirements).encode()).hexdigest()[:16]


def problems(extra: str) -> list[str]:
    """What is wrong with a file."""
    path = FOLDER / f"{extra}.txt"
    name = path.relative_to(ROOT)
    if not path.is_file():
        return [f"{name}: missing"]
    lines = path.read_text(encoding="utf-8").splitlines()
    wanted = inputs(extra)
    found = []
    if f"# inputs: {digest(wanted)}" not in lines:
        found.append(f"{name}: made from other requirements than those of pyproject.toml")
    pins: dict[str, list[str]] = {}
    for number, line in enumerate(lines, start=1):
        pin = PIN.match(line)
        if ADDRESS.search(line):
            found.append(f"{name}:{number}: names an address: the user's index is to be asked")
        elif pin:
            pins.setdefault(name_of(pin[1]), []).append(pin[2])
            if number == len(lines) or not HASH.match(lines[number]):
                found.append(f"{name}:{number}: {pin[1]} has no hash")
        elif line and not HASH.match(line) and not line.lstrip().startswith("#"):
            found.append(f"{name}:{number}: neither a pinned package nor a hash")
    for left_out in LEFT_OUT:
        if left_out in pins:
            found.append(f"{name}: {left_out} must not be in it")
    for text in wanted:
        requirement = Requirement(text)
        versions = pins.get(name_of(requirement.name), [])
        if not versions:
            found.append(f"{name}: {text} is missing")
        found += [
            f"{name}: {requirement.name} {version} is not {text}"
            for version in versions
            if not requirement.specifier.contains(version, prereleases=True)
        ]
    return found


def pin(extra: str, upgrade: bool) -> None:
    """Has uv write a file."""
    path = FOLDER / f"{extra}.txt"
    before = [FOLDER / f"{other}.txt" for other in EXTRAS[: EXTRAS.index(extra)]]
    wanted = inputs(extra)
    with tempfile.TemporaryDirectory() as folder:
        source, excluded = Path(folder) / "inputs.in", Path(folder) / "excluded.txt"
        made = Path(folder) / "made.txt"
        source.write_text("\n".join(wanted) + "\n")
        excluded.write_text("\n".join(LEFT_OUT) + "\n")
        if path.is_file() and not upgrade:
            made.write_text(path.read_text())  # whose versions uv keeps where they fit
        command = [sys.executable, "-m", "uv", "pip", "compile", str(source), "-o", str(made)]
        command += ["--universal", "--python-version", "3.10", "--generate-hashes", "--quiet"]
        command += ["--no-header", "--no-annotate", "--no-emit-index-url"]
        command += ["--no-emit-find-links", "--excludes", str(excluded)]
        command += [part for other in before for part in ("--constraint", str(other))]
        command += ["--upgrade"] if upgrade else []
        subprocess.run(command, check=True)
        head = (
            f"# The extra `{extra}` of pyproject.toml, pinned and hashed; written by\n"
            "# scripts/lib/requirements.py, which says what is left out. Not edited by hand.\n"
            f"# inputs: {digest(wanted)}\n"
        )
        FOLDER.mkdir(exist_ok=True)
        path.write_text(head + made.read_text())


def main() -> int:
    """Checks the files, or has them written; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fix", action="store_true")
    parser.add_argument("--upgrade", action="store_true")
    options = parser.parse_args()
    for extra in EXTRAS:
        if options.upgrade or (options.fix and problems(extra)):
            pin(extra, options.upgrade)
    found = [problem for extra in EXTRAS for problem in problems(extra)]
    for problem in found:
        print(problem)
    if found:
        print("scripts/lint.sh --fix requirements writes the files anew (from the network)")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
