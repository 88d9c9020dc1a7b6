"""What becomes of a run that is resumed from damaged files.

    python tests/reliability/mutated_runs.py --trials 5000 --seed 1
    python tests/reliability/mutated_runs.py --trials 200 --files model.safetensors state.json

A run of 20 of 30 steps is copied; one of its files is mutated (bits, bytes, numbers, pieces moved
or cut), and a child process resumes it. It has to end with an error that names a file or key, or as
the run that nobody touched, to the bit. Two things have no checksum and may be other ones: rows of
`metrics.csv`, which stay as they are found, and `config.yaml`, where another legal value of what a
resumed run may change is a user's wish. Nothing else may differ, no child may die or hang, and
no error may be of another kind than users are shown as one line. The exit status is 1 otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import torch
from comparing import difference, picture
from subjects import STEPS, write_dataset

import dmamba

sys.path.append(str(Path(__file__).parents[1] / "fuzz"))
from mutations import mutate  # noqa: E402

STOPPED = 20
SECONDS, MEMORY = 60, 16 << 30
WORDS = {
    "config.yaml": [
        b"&a",
        b"*a",
        b"!!python/name:os.system",
        b": ",
        b"- ",
        b"null",
        b"\n",
        b".nan",
    ],
    "state.json": [b"null", b'"', b"[", b"{", b"1e999", b"-1", b"true", b"\\ud800"],
    "metrics.csv": [b",", b"\n", b'"', b"nan", b"inf", b"-1", b"1e999"],
}
ROWS = {"plots/training.png differs", "summary.json differs"}  # what shows rows of metrics
FILES = ("model.safetensors", "optimizer.safetensors", *WORDS)


class Stop(dmamba.Callback):
    """Stops a run at its second checkpoint, and one that was told to go on for ever."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_checkpoint(self, run: dmamba.Run, path: Path) -> None:
        if int(path.name.removeprefix("step-")) >= self.at:
            raise KeyboardInterrupt

    def on_log(self, run: dmamba.Run, row: dict[str, float]) -> None:
        if row["step"] > STEPS:
            raise KeyboardInterrupt


def train(config: dict | None, folder: Path, stop: int = 10**9, resume: bool = False) -> None:
    dmamba.train(
        config, output=folder, resume=resume, progress=False, evaluate=False, callbacks=[Stop(stop)]
    )


def make_runs(base: Path) -> tuple[Path, Path]:
    """The folders of a run that was stopped, and of the same one to its end."""
    config = {
        "name": "tiny",
        "dataset": {"path": write_dataset(base / "data.hdf5")},
        "model": {"d_model": 8, "n_layer": 1, "context_length": 3, "dropout": 0.1},
        "training": {"steps": STEPS, "batch_size": 4, "warmup_steps": 5, "log_every": 4,
                     "checkpoint_every": 10, "device": "cpu", "threads": 1},
        "evaluation": {"targets": [100]},
    }  # fmt: skip
    with contextlib.suppress(KeyboardInterrupt):
        train(config, base / "stopped", STOPPED)
    shutil.copytree(base / "stopped", base / "whole")
    train(None, base / "whole", resume=True)
    return base / "stopped", base / "whole"


def resumed(folder: Path, said: Path) -> int:
    """In a child: 0 at its end, 1 after an error that users are shown, 2 after another one."""
    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        train(None, folder, resume=True)
        return 0
    except (dmamba.Error, OSError, KeyboardInterrupt) as error:
        said.write_text(f"{type(error).__name__}: {error}"[:2000], errors="replace")
        return 1
    except BaseException:
        said.write_text(traceback.format_exc(), errors="replace")
        return 2


def in_a_child(folder: Path, said: Path) -> int:
    """The child's status; what killed it as a negative number."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        os._exit(resumed(folder, said))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def trial(
    number: int, seed: int, files: list[str], base: Path, wanted: dict[str, str]
) -> tuple[str, str, str]:
    """(file, what happened, what is wrong or empty)."""
    generator = random.Random(f"{seed}-{number}")
    name = generator.choice(files)
    folder, said = base / "trial", base / "said"
    shutil.rmtree(folder, ignore_errors=True)
    said.unlink(missing_ok=True)
    shutil.copytree(base / "stopped", folder)
    places = sorted(folder.rglob(name))
    if not places:
        return name, "no such file", ""
    place = places[-1]  # of the last checkpoint
    before = place.read_bytes()
    place.write_bytes(mutate(before, generator, WORDS.get(name, [])))
    if place.read_bytes() == before:
        return name, "nothing changed", ""
    status = in_a_child(folder, said)
    told = said.read_text() if said.exists() else ""
    if status < 0:
        return name, "died", f"the process died of signal {-status}"
    if status == 2:
        return name, "another error", told
    if status == 1:
        if told.startswith("KeyboardInterrupt"):  # of more steps
            known = name == "config.yaml"
            return name, "other settings", "" if known else "went on for ever"
        return name, "refused", "" if len(told) > 30 else f"says little: {told}"
    other = difference(picture(folder), wanted)
    if not other:
        return name, "as untouched", ""
    if name == "config.yaml":
        return name, "other settings", ""
    mine = {f"{place.relative_to(folder)} differs"}
    if name == "metrics.csv" and set(other) <= mine | ROWS:
        return name, "rows kept", ""
    if name == "state.json" and set(other) <= mine:
        if json.loads(place.read_bytes()) == json.loads(before):
            return name, "as untouched", ""  # spaces
    return name, "accepted", "; ".join(other)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="repeats one: --first N --trials 1")
    parser.add_argument("--files", nargs="+", choices=FILES, default=list(FILES))
    options = parser.parse_args()
    torch.set_num_threads(1)
    started, counts, wrong = time.monotonic(), Counter(), 0
    with tempfile.TemporaryDirectory(prefix="dmamba-mutated-") as temporary:
        base = Path(temporary)
        _, whole = make_runs(base)
        wanted = picture(whole)
        for number in range(options.first, options.first + options.trials):
            name, what, problem = trial(number, options.seed, options.files, base, wanted)
            counts[name, what] += 1
            if problem:
                wrong += 1
                print(
                    f"trial {number} of seed {options.seed}, {name}: {what}: {problem}", flush=True
                )
    for (name, what), count in sorted(counts.items()):
        print(f"{name:24}{what:20}{count:8,}")
    print(f"{options.trials:,} runs, {wrong} findings, {time.monotonic() - started:.0f} s")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
