"""Puts shared libraries into a wheel beside the extension, and checks what the wheel links with.

    python finish_wheel.py WHEEL OUTPUT_FOLDER LIBRARY_PREFIX...

A bundled library brings what it needs in turn, but the C and C++ libraries. The check is that every
library a binary needs is in the wheel, in torch, or on the list of what the machine must have, and
that no symbol of dmamba is left undefined. scripts/build_wheel.sh runs this, with readelf, nm, ldd,
patchelf and wheel at hand.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

# What any machine has that runs torch's wheels.
SYSTEM = re.compile(r"^(ld-linux.*|lib(c|m|dl|rt|pthread|resolv|z|stdc\+\+|gcc_s))\.so")
# What comes from torch and the packages it depends on.
TORCH = re.compile(r"^lib(torch\w*|c10\w*|shm|gomp.*|cudart)\.so|^libgomp")
# What the machine has to have where it isn't bundled.
MACHINE = re.compile(r"^libhdf5")


def run(*command: str | Path) -> str:
    """Returns what a command prints; ends the program where it fails."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def needed(binary: Path) -> list[str]:
    """The sonames that a binary asks the loader for."""
    return re.findall(r"\(NEEDED\).*\[(.+)\]", run("readelf", "-d", binary))


def loader_paths(binary: Path) -> dict[str, Path]:
    """Where the loader of this machine finds each library below a binary."""
    found = re.findall(r"^\s*(\S+) => (/\S+)", run("ldd", binary), re.MULTILINE)
    return {name: Path(path) for name, path in found}


def bundle(package: Path, prefixes: list[str]) -> list[str]:
    """Copies the libraries with these prefixes, and all that they need, into the package."""
    binaries = sorted(package.glob("*.so"))
    paths = {name: path for binary in binaries for name, path in loader_paths(binary).items()}
    wanted = [n for b in binaries for n in needed(b) if n.startswith(tuple(prefixes))]
    for prefix in prefixes:
        if not any(name.startswith(prefix) for name in wanted):
            raise SystemExit(f"error: nothing in the wheel needs a library named {prefix}*")
    bundled: list[str] = []
    while wanted:
        name = wanted.pop()
        if name in bundled or SYSTEM.match(name):
            continue
        target = package / name
        shutil.copy(paths[name].resolve(), target)
        target.chmod(0o755)
        run("patchelf", "--set-rpath", "$ORIGIN", target)
        bundled.append(name)
        wanted += needed(target)
    return sorted(bundled)


def undefined_symbols(binary: Path) -> set[str]:
    """The dmamba symbols that a binary expects from another."""
    return set(re.findall(r"^\s+U (\S*6dmamba\S*)", run("nm", "-D", binary), re.MULTILINE))


def defined_symbols(binary: Path) -> set[str]:
    """The dmamba symbols that a binary gives."""
    symbols = run("nm", "-D", "--defined-only", binary)
    return set(re.findall(r" [A-Za-z] (\S*6dmamba\S*)", symbols))


def check(package: Path, bundled: list[str]) -> None:
    """Prints what each of our binaries links with; ends the program on what can't be found."""
    ours = [path for path in sorted(package.glob("*.so")) if path.name not in bundled]
    given = {symbol for binary in ours for symbol in defined_symbols(binary)}
    for binary in ours:
        names = needed(binary)
        own = {path.name for path in ours} | set(bundled)
        lost = [n for n in names if n not in own and not any(
            kind.match(n) for kind in (SYSTEM, TORCH, MACHINE))]  # fmt: skip
        if lost:
            raise SystemExit(f"error: {binary.name} needs {', '.join(lost)}: bundle them")
        runpath = re.findall(r"\((?:RUNPATH|RPATH)\).*\[(.+)\]", run("readelf", "-d", binary))
        if not runpath or "$ORIGIN" not in runpath[0].split(":"):
            raise SystemExit(f"error: {binary.name} doesn't look beside itself: RUNPATH {runpath}")
        missing = sorted(undefined_symbols(binary) - given)
        if missing:
            raise SystemExit(f"error: {binary.name} misses symbols:\n" + "\n".join(missing))
        print(f"      {binary.name}: {' '.join(names)}\n        RUNPATH {runpath[0]}")


def main() -> int:
    """Unpacks the wheel, bundles, checks, packs it again."""
    wheel, output, prefixes = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        run(sys.executable, "-m", "wheel", "unpack", "--dest", folder, wheel)
        (root,) = Path(folder).iterdir()
        bundled = bundle(root / "dmamba", prefixes)
        check(root / "dmamba", bundled)
        run(sys.executable, "-m", "wheel", "pack", "--dest-dir", output, root)
    result = output / wheel.name
    print(
        f"      bundled: {', '.join(bundled)}\n{result} ({result.stat().st_size / 2**20:.1f} MiB)"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
