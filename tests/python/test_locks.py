"""Locks between processes: who holds one is named, and nothing stays of one that is gone."""

import errno
import fcntl
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import dmamba
from dmamba.common import locks

ROOT = Path(__file__).parents[2]


def held(path, text):
    """A lock that somebody with this signature holds."""
    file = open(path, "w")  # noqa: SIM115
    file.write(text)
    file.flush()
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


@pytest.mark.parametrize(
    ("text", "holder"),
    [
        ("{pid} {host}\n", "process {pid}"),
        ("{pid}\n", "process {pid}"),
        ("77 node-12\n", "process 77 on node-12"),
    ],
)
def test_the_holder_is_named(tmp_path, text, holder):
    facts = {"pid": os.getpid(), "host": socket.gethostname()}
    with held(tmp_path / "a.lock", text.format(**facts)):
        with pytest.raises(locks.BusyError) as busy:
            locks.take(tmp_path / "a.lock")
    assert busy.value.holder == holder.format(**facts)


def test_a_holder_that_has_not_signed_yet_is_waited_for(tmp_path):
    with held(tmp_path / "a.lock", "") as file:

        def sign():
            file.write("77 node-12\n")
            file.flush()

        threading.Timer(0.3, sign).start()
        with pytest.raises(locks.BusyError) as busy:
            locks.take(tmp_path / "a.lock")
    assert busy.value.holder == "process 77 on node-12"


def test_what_a_killed_process_held_is_free(tmp_path):
    program = (
        "import os, pathlib, signal, sys\nfrom dmamba.common import locks\n"
        "locks.take(pathlib.Path(sys.argv[1])); os.kill(os.getpid(), signal.SIGKILL)"
    )
    path = tmp_path / "a.lock"
    code = subprocess.run([sys.executable, "-c", program, path], check=False).returncode
    assert code == -9 and path.read_text().split()[1] == socket.gethostname()
    os.close(locks.take(path))
    assert path.read_text() == f"{os.getpid()} {socket.gethostname()}\n"


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    with pytest.raises(dmamba.Error, match=r"a.lock: cannot be locked \(No locks available\)"):
        locks.take(tmp_path / "a.lock")
    with pytest.raises(dmamba.Error, match="cannot be locked"):
        with locks.waiting(tmp_path / "a.lock", "x", "works"):
            pass


def test_a_sweep_that_is_under_way(tmp_path):
    with locks.sweep(tmp_path / "sweep"):
        message = rf"process {os.getpid()} is at work on a sweep in this folder; wait for it"
        with pytest.raises(dmamba.Error, match=message):
            with locks.sweep(tmp_path / "sweep"):
                pass
    with locks.sweep(tmp_path / "sweep"):
        pass


def test_processes_that_share_folders():
    """The short round of scripts/nightly/concurrency.sh."""
    program = ROOT / "tests" / "reliability" / "concurrency.py"
    places = ["run", "resume", "sweep", "download", "convert", "save", "read"]
    done = subprocess.run(
        [sys.executable, program, "--processes", "3", "--places", *places],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "failed: none" in done.stdout
