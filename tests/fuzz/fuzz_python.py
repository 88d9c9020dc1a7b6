"""Mutated files through the readers that are written in Python.

    python tests/fuzz/fuzz_python.py cpt|metadata SEED COUNT CORPUS OUTPUT [--timeout SECONDS]

`cpt` is a checkpoint of the author's code, which torch.load opens; `metadata` the metadata.json of
a dataset of Minari's. The inputs are read by a child process under limits of memory and time; where
it dies, hangs, or the reader raises what it does not promise, the input is kept in OUTPUT, and the
next child goes on after it. Prints `inputs N findings N ...` at the end.

Where dmamba is not installed, `alone` beside this file holds the readers, and stand-ins are made
for what is compiled: then no model is built of what a checkpoint says, but its size is looked at.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import json
import mmap
import os
import random
import resource
import signal
import struct
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import mutations

_MEMORY = 6 << 30  # torch alone maps half of that
_PARTS = 64  # bytes of a report


def stand_in(folder: Path) -> None:
    """Makes `dmamba` of the files in a folder and of what stands in for the compiled ones."""
    package = types.ModuleType("dmamba")
    package.__path__ = [str(folder)]
    compiled = types.ModuleType("dmamba._C")
    for name in ("DataError", "CheckpointError", "ConfigError"):
        setattr(compiled, name, type(name, (RuntimeError,), {}))
    models = types.ModuleType("dmamba.nn")
    models.__path__ = [str(folder / "nn")]

    class Model:
        def __init__(self, *sizes: int, **options: object) -> None:
            numbers = [value for value in (*sizes, *options.values()) if isinstance(value, int)]
            if max(numbers) > 1 << 24:
                raise AssertionError(f"a model of {numbers} from a file of kilobytes")
            raise compiled.CheckpointError("no models here")

    models.DMamba = models.AtariDMamba = Model
    sys.modules.update({"dmamba": package, "dmamba._C": compiled, "dmamba.nn": models})
    package._C, package.nn = compiled, models


def reader(name: str, place: Path) -> tuple[Callable[[bytes], None], tuple[type[Exception], ...]]:
    """What reads an input, and the errors that it promises."""
    from dmamba import _C

    if name == "cpt":
        official = importlib.import_module("dmamba.nn.official")
        path = place / "input.cpt"

        def read_checkpoint(data: bytes) -> None:
            path.write_bytes(data)
            official.from_official(path)

        return read_checkpoint, (_C.CheckpointError, _C.ConfigError)
    folders = importlib.import_module("dmamba.data.minari_folders")
    file = place / folders.METADATA_FILE

    def read_metadata(data: bytes) -> None:
        file.write_bytes(data)
        metadata = folders.read_metadata(place)
        folders.check_spaces(metadata, "input")
        json.dumps(folders.facts(metadata))

    return read_metadata, (_C.DataError,)


def make_input(seeds: list[bytes], name: str, seed: int, number: int) -> bytes:
    generator = random.Random(f"{seed}-{number}")
    start = generator.choice(seeds)
    if name == "cpt":
        return mutations.mutate_archive(start, generator)
    return mutations.mutate(
        start, generator, [b"null", b'"', b"[", b"{", b"1e999", b"-1", b"\\\\ud800"]
    )


def work(options: argparse.Namespace, seeds: list[bytes], shared: mmap.mmap, place: Path) -> None:
    """The child: goes on from the number in shared memory; says there what it does."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: not without its parent
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    read, promised = reader(options.reader, place)
    number, accepted = struct.unpack_from("qq", shared)
    while number < options.count:
        signal.setitimer(signal.ITIMER_PROF, options.timeout)  # of processor time
        data = make_input(seeds, options.reader, options.seed, number)
        try:
            read(data)
            accepted += 1
        except promised:
            pass
        number += 1
        if number % 1000 == 0:
            print(f"progress {number}", flush=True)
        struct.pack_into("qq", shared, 0, number, accepted)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    struct.pack_into("q", shared, 16, max(peak, struct.unpack_from("q", shared, 16)[0]))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("reader", choices=["cpt", "metadata"])
    parser.add_argument("seed", type=int)
    parser.add_argument("count", type=int)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--timeout", type=int, default=10)
    options = parser.parse_args()
    alone = Path(__file__).parent / "alone"
    if alone.is_dir():
        stand_in(alone)
    if options.reader == "cpt":
        import torch

        torch.set_num_threads(1)
    reader(options.reader, options.output)  # imports, before the children
    seeds = [path.read_bytes() for path in sorted(options.corpus.iterdir())]
    options.output.mkdir(parents=True, exist_ok=True)
    place = options.output / f"place-{options.seed}"
    place.mkdir(exist_ok=True)
    shared = mmap.mmap(-1, _PARTS)
    started, findings = time.time(), 0
    while (number := struct.unpack_from("q", shared)[0]) < options.count:
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                work(options, seeds, shared, place)
                code = 0
            except BaseException as error:
                print(f"finding: {type(error).__name__}: {error}"[:300], flush=True)
            os._exit(code)
        _, status = os.waitpid(child, 0)
        if status == 0:
            break
        number, accepted = struct.unpack_from("qq", shared)
        findings += 1
        kept = options.output / f"{options.reader}-{options.seed}-{number}"
        kept.write_bytes(make_input(seeds, options.reader, options.seed, number))
        print(f"finding: input {number} ends the process with status {status}: {kept}", flush=True)
        struct.pack_into("qq", shared, 0, number + 1, accepted)
        if findings >= 50:
            break
    number, accepted, peak = struct.unpack_from("qqq", shared)
    print(
        f"inputs {number} accepted {accepted} findings {findings} peak_mb {peak} "
        f"seconds {time.time() - started:.0f}"
    )


if __name__ == "__main__":
    main()
