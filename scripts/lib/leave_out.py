"""Copies of shared libraries that do without some of the libraries that they need.

Debian's HDF5 reads files from Amazon's S3, too, and so needs libcurl and libcrypto, which need
Kerberos, LDAP, GnuTLS and a dozen more. DMamba never opens such a file. In a copy of HDF5 for a
wheel, a few hundred bytes take the place of those libraries: functions of the same names, all of
which return 0. For HDF5 that is a failure (no handle, no digest), so its S3 driver ends in its own
error; nothing else in it calls them.

Needs readelf, nm, a C compiler and patchelf.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path


def run(*command: str | Path) -> str:
    """Returns what a command prints; ends the program where it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"error: {' '.join(map(str, command))}:\n{done.stderr or done.stdout}")
    return done.stdout


def needed(binary: Path) -> list[str]:
    """The sonames that a binary asks the loader for."""
    return re.findall(r"\(NEEDED\).*\[(.+)\]", run("readelf", "-d", binary))


def loader_paths(binary: Path) -> dict[str, Path]:
    """Where the loader of this machine finds each library below a binary."""
    found = re.findall(r"^\s*(\S+) => (/\S+)", run("ldd", binary), re.MULTILINE)
    return {name: Path(path) for name, path in found}


def symbols_between(binary: Path, library: Path) -> dict[str, list[str]]:
    """The functions that a binary takes from a library, by their version (empty: none)."""
    wanted = set(re.findall(r" U (\S+)$", run("nm", "-D", binary), re.MULTILINE))
    given = run("nm", "-D", "--defined-only", library).replace("@@", "@")
    versions: dict[str, list[str]] = {}
    for symbol in sorted(wanted & set(re.findall(r" \w (\S+)$", given, re.MULTILINE))):
        name, _, version = symbol.partition("@")
        versions.setdefault(version, []).append(name)
    return versions


def write_stand_in(path: Path, versions: dict[str, list[str]]) -> None:
    """Builds a library of functions that return 0, with these versions of their symbols."""
    names = [name for group in versions.values() for name in group]
    source, script = path.with_suffix(".c"), path.with_suffix(".map")
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in names))
    nodes = [
        f"{version} {{ global: {'; '.join(group)}; }};\n"
        for version, group in versions.items()
        if version
    ]
    script.write_text("".join(nodes))
    options = [f"-Wl,--version-script={script}"] if nodes else []
    compiler = [os.environ.get("CC", "cc"), "-shared", "-fPIC", "-O2", "-nostdlib", "-fno-builtin"]
    run(*compiler, f"-Wl,-soname,{path.name}", *options, "-o", path, source)
    source.unlink()
    script.unlink()


def without(library: Path, prefixes: Sequence[str], folder: Path) -> list[str]:
    """Puts a copy of a library into a folder, with stand-ins for the libraries it shall not need.

    Args:
        library: The file.
        prefixes: Beginnings of the sonames that it does without, such as ``libcurl``.
        folder: Where the copy goes, under the library's soname, and the stand-ins beside it.

    Returns:
        The sonames that were left out. Where there are none, nothing is written.
    """
    paths = loader_paths(library)
    left_out = [name for name in needed(library) if name.startswith(tuple(prefixes))]
    if not left_out:
        return []
    (soname,) = re.findall(r"\(SONAME\).*\[(.+)\]", run("readelf", "-d", library))
    copy = folder / soname
    shutil.copy(library.resolve(), copy)
    for name in left_out:
        stand_in = folder / f"libdmamba_no_{name.removeprefix('lib').partition('.')[0]}.so"
        write_stand_in(stand_in, symbols_between(library, paths[name]))
        run("patchelf", "--replace-needed", name, stand_in.name, copy)
    return left_out
