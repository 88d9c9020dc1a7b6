"""What a folder holds, without what may differ; and what a kill may leave of a run."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from dmamba.runs import METRICS, Run

Picture = dict[str, str]

# Names that differ from process to process, and the lock, whose content is a process's number.
_IGNORED = r"(.*/)?(events\.out\.tfevents\..*|\.lock)$"
MASKED = "wall time"
_TIMES = {
    "time_seconds",
    "training_seconds",
    "evaluation_seconds",
    "choosing_seconds",
    "waiting_seconds",
    "first_step",
    "host_bytes",
    "gpu_bytes",
    "workers",
    "resumed",
    "downloaded",
    "mtime_ns",
}


def picture(place: Path, ignored: str = "") -> Picture:
    """Every file and folder below a place: its digest, or ``folder``.

    JSON and tables of sweeps are taken without times, memory and numbers of workers; the place's
    own path is nothing to it.
    """
    found: Picture = {}
    for path in sorted(place.rglob("*")):
        name = str(path.relative_to(place))
        if re.fullmatch(_IGNORED, name) or (ignored and re.fullmatch(ignored, name)):
            continue
        found[name] = "folder" if path.is_dir() else _digest(path, place)
    return found


def difference(found: Picture, wanted: Picture) -> list[str]:
    """In words; empty where there is none."""
    missing = [f"{name} is missing" for name in wanted if name not in found]
    more = [f"{name} is left over" for name in found if name not in wanted]
    other = [f"{name} differs" for name in found if found[name] != wanted.get(name, found[name])]
    return missing + more + other


def lost_by_a_power_cut(trace: Path) -> list[str]:
    """What a trace of faults.c has of files that are renamed before their content is on the disk.

    Neither does a name count that is not on the disk in the end: its folder is flushed later.
    """
    lost: list[str] = []
    dirty: set[str] = set()
    unnamed: dict[str, str] = {}
    for line in trace.read_text().splitlines():
        _, _, call, path, source = line.split("\t")
        if call in ("write", "pwrite", "writev", "ftruncate"):
            dirty.add(path)
        elif call in ("fsync", "fdatasync"):
            dirty.discard(path)
            unnamed.pop(path, None)
        elif call.startswith("rename") and not re.search(r"/mine[./]", path):
            within = (source, source + "/")
            early = [name for name in dirty if name == within[0] or name.startswith(within[1])]
            lost += [f"{name} becomes {path} before it is flushed" for name in early]
            unnamed[os.path.dirname(path)] = path
    return lost + [f"the folder of {path} is not flushed" for path in unnamed.values()]


def check_temporaries(place: Path) -> list[str]:
    """Files and folders that no finished program leaves."""
    hidden = [path for path in place.rglob(".*") if path.name != ".lock"]
    return [f"{path.relative_to(place)} is left over" for path in hidden]


def check_run(place: Path, whole: Path, checkpoint_every: int) -> list[str]:
    """What is wrong with a run's folder after a kill.

    Args:
        place: The run's folder.
        whole: A run of the same settings that nothing has stopped, with all its checkpoints.
        checkpoint_every: Steps between two of them.
    """
    wrong = []
    run = Run(place)
    if (place / "config.yaml").exists() and not (place / "config.yaml").read_text().endswith("\n"):
        wrong.append("config.yaml is cut")
    known = dict(Run(whole).checkpoints())
    complete = run.checkpoints()
    for step, path in complete:
        for name in ("model.safetensors", "optimizer.safetensors"):
            if not (path / name).is_file():
                wrong.append(f"{path.name}/{name} is missing")
            elif step in known and (path / name).read_bytes() != (known[step] / name).read_bytes():
                wrong.append(f"{path.name}/{name} is not that of the whole run")
        json.loads((path / "state.json").read_text())
    rows = _complete_rows(place / "metrics.csv")
    theirs = _complete_rows(whole / "metrics.csv")
    if rows != theirs[: len(rows)]:
        wrong.append("metrics.csv has rows that the whole run has not")
    if rows:
        last = int(rows[-1].split(",")[0])
        owed = (last - 1) // checkpoint_every * checkpoint_every
        have = complete[-1][0] if complete else 0
        if have < owed:
            wrong.append(f"step {last} was logged, but the latest checkpoint is of step {have}")
    for path in place.glob("**/*.json"):
        if not any(part.startswith(".") for part in path.relative_to(place).parts):
            json.loads(path.read_text())
    if run.finished and (not complete or not run.plot_path.is_file()):
        wrong.append("it counts as finished, and is not")
    return wrong


def _complete_rows(path: Path) -> list[str]:
    if not path.is_file():
        return []
    text = path.read_text()
    lines = text[: text.rfind("\n") + 1].splitlines()
    if lines and lines[0] != ",".join(METRICS):
        raise AssertionError(f"{path} begins with {lines[0]!r}")
    return lines[1:]


def _digest(path: Path, place: Path) -> str:
    content = path.read_bytes()
    if path.suffix == ".json":
        content = json.dumps(_without_times(json.loads(content)), sort_keys=True).encode()
    elif path.name == "sweep.csv":
        content = _without_columns(content.decode()).encode()
    elif path.name == "sweep.md":  # whose last two columns are times
        content = re.sub(rb"\| [\d.]+ \| [\d.]+ \|$", b"", content, flags=re.M)
    return hashlib.sha256(content.replace(str(place).encode(), b"PLACE")).hexdigest()


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: MASKED if key in _TIMES else _without_times(content)
            for key, content in value.items()
        }
    return [_without_times(part) for part in value] if isinstance(value, list) else value


def _without_columns(text: str) -> str:
    rows = [line.split(",") for line in text.splitlines()]
    kept = [place for place, name in enumerate(rows[0]) if name not in _TIMES]
    return "\n".join(",".join(row[place] for place in kept) for row in rows)
