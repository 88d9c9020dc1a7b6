#!/usr/bin/env python3
"""Trains on a real disk that fills up: a tmpfs too small for the run, then a larger one.

The training has to end with an error that says so, its last checkpoint has to be whole, and the
resumed run has to have the bits of one that always had room. Needs the right to mount (root).

  full_disk.py                    sizes from 64 to 1024 KiB
  full_disk.py --sizes 200,300    KiB
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", default="64,96,128,192,256,320,384,448,512,640,768,896,1024")
    sizes = [int(size) for size in parser.parse_args().sizes.split(",")]
    if os.environ.get("FULL_DISK") != "mounted":  # the mounts are seen by this process alone
        command = ["unshare", "-m", sys.executable, *sys.argv]
        return subprocess.run(command, env={**os.environ, "FULL_DISK": "mounted"}).returncode
    from comparing import check_run, check_temporaries, difference, picture
    from subjects import CHECKPOINT_EVERY, Training

    base = Path(tempfile.mkdtemp(prefix="full-disk-"))
    disk = base / "disk"
    disk.mkdir()
    subject = Training("plain", base, "cpu")
    subject.start(base / "whole")
    subject.remember(base / "all")
    wanted = picture(base / "whole")
    wrong = full = 0
    try:
        for size in sizes:
            mount = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", disk]
            subprocess.run(mount, check=True)
            try:
                message = _train(subject, disk / "run")
                found = check_run(disk / "run", base / "all", CHECKPOINT_EVERY) if message else []
                found += check_temporaries(disk)
                if message:
                    full += 1
                    if "No space left" not in message or "make room" not in message:
                        found.append(f"the error does not say what to do: {message}")
                    subprocess.run(["mount", "-o", "remount,size=16m", disk], check=True)
                    subject.start(disk / "run")
                found += difference(picture(disk / "run"), wanted)
            finally:
                subprocess.run(["umount", disk], check=True)
            print(
                f"{size} KiB: {message or 'room enough'}: {'; '.join(found) or 'good'}", flush=True
            )
            wrong += bool(found)
    finally:
        shutil.rmtree(base)
    print(f"{len(sizes)} disks, {full} too small, {wrong} wrong")
    return 1 if wrong or not full else 0


def _train(subject: object, place: Path) -> str:
    """What the training has to say of its end."""
    import dmamba

    try:
        subject.start(place)  # type: ignore[attr-defined]
    except dmamba.Error as error:
        return str(error)
    return ""


if __name__ == "__main__":
    sys.exit(main())
