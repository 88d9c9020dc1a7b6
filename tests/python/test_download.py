"""D4RL's datasets by name, from a server on this machine that can misbehave."""

import contextlib
import errno
import fcntl
import http.server
import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import LENGTHS, tiny, write_dataset

import dmamba
from dmamba import data
from dmamba.commands import main
from dmamba.common import locks
from dmamba.data import downloading, sources

NAME = "hopper-medium-v2"
FILE = "hopper_medium-v2.hdf5"
PATH = f"/gym_mujoco_v2/{FILE}"


class Server(http.server.ThreadingHTTPServer):
    """Serves one content at every path it knows; ``behave`` is a list of moods, one a request."""

    daemon_threads = True

    def __init__(self, content: bytes):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = content
        self.paths = {PATH}
        self.tag = '"one"'
        self.kind = "application/octet-stream"
        self.moods: list[str] = []
        self.requests: list[tuple[str, str | None]] = []
        self.hold = threading.Event()  # "slow" sends half and then waits for it


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        server = self.server
        mood = server.moods.pop(0) if server.moods else ""
        asked = self.headers.get("Range")
        server.requests.append((self.path, asked))
        if self.path not in server.paths or mood in ("404", "503"):
            self.answer(int(mood or 404), b"gone")
            return
        content, first = server.content, 0
        match = re.fullmatch(r"bytes=(\d+)-", asked or "")
        if match and mood != "no range" and self.headers.get("If-Range") in (None, server.tag):
            first = int(match[1])
            if first >= len(content):
                self.answer(416, b"")
                return
        part = content[first:]
        headers = {} if mood == "no tag" else {"ETag": server.tag}
        if first:
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        sent = part[: len(part) // 2] if mood in ("drop", "slow", "no range, drop") else part
        self.answer(206 if first else 200, sent, len(part), headers)
        if mood == "slow":
            self.wfile.flush()
            server.hold.wait(30)
            self.wfile.write(part[len(sent) :])
        elif len(sent) < len(part):
            self.close_connection = True

    def answer(self, status, body, length=None, headers=None):
        self.send_response(status)
        self.send_header("Content-Type", self.server.kind)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def server(dataset, elsewhere, monkeypatch):
    with Server(dataset.read_bytes()) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        monkeypatch.setenv("DMAMBA_D4RL_URL", f"http://127.0.0.1:{server.server_port}/")
        monkeypatch.setenv("DMAMBA_DATA", str(elsewhere / "cache"))
        monkeypatch.setattr(downloading, "PAUSE_SECONDS", 0.0)
        yield server
        server.hold.set()
        server.shutdown()


@pytest.fixture
def cache(elsewhere):
    return elsewhere / "cache"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def interrupt(server) -> int:
    """Leaves half the file as a part; returns its size."""
    server.moods = ["drop", *["503"] * downloading.ATTEMPTS]
    with pytest.raises(dmamba.DataError, match="Try again later"):
        data.load(NAME)
    server.moods, server.requests = [], []
    return len(server.content) // 2


def test_the_names_are_d4rl_s():
    assert len(sources.SOURCES) == 40
    urls = {name: source.url_path for name, source in sources.SOURCES.items()}
    assert urls["hopper-medium-v2"] == "gym_mujoco_v2/hopper_medium-v2.hdf5"
    assert urls["ant-medium-expert-v2"] == "gym_mujoco_v2/ant_medium_expert-v2.hdf5"
    assert urls["halfcheetah-medium-expert-v0"] == "gym_mujoco/halfcheetah_medium_expert.hdf5"
    assert urls["halfcheetah-medium-replay-v0"] == "gym_mujoco/halfcheetah_mixed.hdf5"
    assert urls["walker2d-medium-replay-v0"] == "gym_mujoco/walker_mixed.hdf5"
    assert urls["walker2d-random-v0"] == "gym_mujoco/walker2d_random.hdf5"


def test_the_address_without_a_mirror(monkeypatch):
    monkeypatch.delenv("DMAMBA_D4RL_URL")
    root = "http://rail.eecs.berkeley.edu/datasets/offline_rl"
    assert sources.SOURCES[NAME].url == root + PATH


def test_load_downloads_once(server, cache, capsys):
    store = data.load(NAME)
    assert store.episode_lengths.tolist() == list(LENGTHS)
    assert store.name == str(cache / FILE)
    assert (cache / FILE).read_bytes() == server.content
    assert names(cache) == [FILE, f"{FILE}.download.json"]
    assert NAME in capsys.readouterr().err, "a bar"
    data.load(NAME, verify=True)
    with pytest.raises(dmamba.DataError, match="no SHA-256 to verify it by"):
        data.load("hopper-medium", verify=True)
    assert server.requests == [(PATH, None)]
    assert data.info(NAME)["constants"]["borrowed"] is False


def test_the_old_version_keeps_its_version_in_the_cache(server, cache):
    server.paths = {"/gym_mujoco/walker_mixed.hdf5"}
    store = data.load("walker2d-medium-replay-v0", progress=False)
    assert store.name == str(cache / "walker2d_medium_replay-v0.hdf5")


def test_a_configuration_names_it(server, cache):
    config = tiny("x", steps=4)
    config["dataset"]["path"] = NAME
    run = dmamba.train(config, progress=False, evaluate=False)
    assert run.config.dataset.path == NAME and (cache / FILE).is_file()


def test_a_dropped_connection_goes_on_where_it_was(server, cache):
    server.moods = ["drop", "drop"]
    data.load(NAME)
    size = len(server.content)
    offsets = [None, f"bytes={size // 2}-", f"bytes={size // 2 + (size - size // 2) // 2}-"]
    assert [asked for _, asked in server.requests] == offsets
    assert (cache / FILE).read_bytes() == server.content


def test_a_later_call_goes_on_where_an_earlier_one_stopped(server, cache):
    half = interrupt(server)
    assert names(cache) == [f"{FILE}.part", f"{FILE}.part.json"]
    assert (cache / f"{FILE}.part").stat().st_size == half
    data.load(NAME)
    assert server.requests == [(PATH, f"bytes={half}-")]
    assert (cache / FILE).read_bytes() == server.content
    assert names(cache) == [FILE, f"{FILE}.download.json"]


def test_a_part_that_lacked_nothing_but_its_name(server, cache):
    interrupt(server)
    (cache / f"{FILE}.part").write_bytes(server.content)
    data.load(NAME)
    assert (cache / FILE).read_bytes() == server.content


@pytest.mark.parametrize("moods", [["no range"], ["no range, drop"]])
def test_a_server_that_ignores_ranges(server, cache, moods):
    interrupt(server)
    server.moods = moods
    data.load(NAME)
    assert (cache / FILE).read_bytes() == server.content


def test_a_file_that_changes_between_two_attempts(server, cache, elsewhere):
    interrupt(server)
    other = write_dataset(elsewhere / "other.hdf5", lengths=(9, 9))
    server.content, server.tag = other.read_bytes(), '"two"'
    assert data.load(NAME).episode_lengths.tolist() == [9, 9]


def test_a_file_that_changes_without_a_tag(server, cache, elsewhere):
    state = {"url": sources.SOURCES[NAME].url, "validator": None, "total": len(server.content) + 9}
    cache.mkdir()
    (cache / f"{FILE}.part").write_bytes(b"x" * 100)
    (cache / f"{FILE}.part.json").write_text(json.dumps(state))
    server.moods = ["no tag"]
    assert data.load(NAME).episode_lengths.tolist() == list(LENGTHS)
    assert [asked for _, asked in server.requests] == ["bytes=100-", None]


def test_another_mirror_s_part_is_not_continued(server, cache, monkeypatch):
    interrupt(server)
    monkeypatch.setenv("DMAMBA_D4RL_URL", os.environ["DMAMBA_D4RL_URL"] + "/other")
    server.paths = {f"/other{PATH}"}
    with contextlib.suppress(dmamba.DataError):
        data.load(NAME)
    assert server.requests[0][1] is None


def test_not_found(server, cache):
    server.paths = set()
    with pytest.raises(dmamba.DataError, match="answers 404.*check DMAMBA_D4RL_URL.*save it as"):
        data.load(NAME)
    assert names(cache) == []


def test_a_server_in_trouble_is_asked_again(server):
    server.moods = ["503", "503"]
    data.load(NAME)
    assert len(server.requests) == 3


def test_no_network_says_what_to_do_by_hand(elsewhere, capsys):
    with pytest.raises(dmamba.DataError, match="cannot be reached") as error:
        data.load(NAME)
    assert "http://127.0.0.1:9/closed" + PATH in str(error.value)
    assert capsys.readouterr().err == "", "no bar for what never began"
    place = elsewhere / "home" / ".cache" / "dmamba" / "datasets" / FILE
    assert f"save it as {place}" in str(error.value)
    write_dataset(place)
    assert data.load(NAME).num_episodes == len(LENGTHS), "as the message says"


def test_a_web_page(server, cache):
    server.content, server.kind = b"<html>Please log in</html>", "text/html"
    with pytest.raises(dmamba.DataError, match="no HDF5 file.*text/html.*Please log in") as error:
        data.load(NAME)
    assert f"download {sources.SOURCES[NAME].url} elsewhere" in str(error.value)
    assert names(cache) == []


def test_a_mirror_that_is_no_address(monkeypatch):
    monkeypatch.setenv("DMAMBA_D4RL_URL", "/data/d4rl")
    with pytest.raises(dmamba.DataError, match=r"/data/d4rl/gym.*must begin with http://"):
        data.load(NAME)


def test_a_file_that_is_truncated_on_the_server(server, cache):
    server.content = server.content[: len(server.content) // 2]
    with pytest.raises(dmamba.DataError, match="not usable.*truncated"):
        data.load(NAME)
    assert names(cache) == []


def test_no_space_for_it(server, cache, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(downloading.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(dmamba.DataError, match="no space left.*1000 are free.*DMAMBA_DATA"):
        data.load(NAME)
    assert FILE not in names(cache)


def test_a_disk_that_is_full_half_way(server, cache):
    cache.mkdir()
    (cache / f"{FILE}.part").symlink_to("/dev/full")
    state = {"url": sources.SOURCES[NAME].url, "validator": None, "total": None}
    (cache / f"{FILE}.part.json").write_text(json.dumps(state))
    with pytest.raises(dmamba.DataError, match="no space left"):
        data.load(NAME)
    assert FILE not in names(cache) and f"{FILE}.lock" not in names(cache)


def test_a_folder_that_cannot_be_made(server, cache):
    cache.write_text("a file")
    with pytest.raises(dmamba.DataError, match=f"{NAME}: cannot be written to"):
        data.load(NAME)


def test_another_file_than_the_first_time(server, cache, elsewhere):
    data.load(NAME)
    (cache / FILE).unlink()
    data.load(NAME)  # the same one
    (cache / FILE).unlink()
    server.content = write_dataset(elsewhere / "other.hdf5", lengths=(9, 9)).read_bytes()
    with pytest.raises(dmamba.DataError, match="another file than on .* to accept the new one"):
        data.load(NAME)
    assert names(cache) == [f"{FILE}.download.json"]
    (cache / f"{FILE}.download.json").unlink()
    assert data.load(NAME).num_episodes == 2


def test_a_file_that_changed_on_the_disk(server, cache):
    data.load(NAME)
    path = cache / FILE
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(dmamba.DataError, match="not the file that was downloaded"):
        data.load(NAME)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    data.load(NAME)  # size and time are all that is looked at
    with pytest.raises(dmamba.DataError, match="not the file that was downloaded"):
        data.load(NAME, verify=True)
    path.write_bytes(content[:-1])
    with pytest.raises(dmamba.DataError, match=f"of {len(content) - 1} bytes now"):
        data.load(NAME)


def test_a_touched_file_is_hashed_once(server, cache, monkeypatch):
    data.load(NAME)
    os.utime(cache / FILE)
    data.load(NAME)
    monkeypatch.setattr(downloading, "sha256", None)
    data.load(NAME)


def test_two_at_once_download_once(server, cache):
    server.moods = ["slow"]
    threads = [threading.Thread(target=data.load, args=(NAME,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    while not server.requests:
        time.sleep(0.01)
    server.hold.set()
    for thread in threads:
        thread.join(60)
    assert len(server.requests) == 1
    assert names(cache) == [FILE, f"{FILE}.download.json"]


# Another process's share, without the seconds that importing dmamba takes.
HOLDER = """
import fcntl, os, sys
lock = os.open(sys.argv[1] + ".lock", os.O_RDWR | os.O_CREAT)
fcntl.flock(lock, fcntl.LOCK_EX)
os.write(lock, str(os.getpid()).encode())
print("held", flush=True)
sys.stdin.read()
os.rename(sys.argv[2], sys.argv[1])
os.unlink(sys.argv[1] + ".lock")
"""


def test_another_process_is_waited_for(server, cache, elsewhere, monkeypatch, capsys):
    cache.mkdir()
    (elsewhere / "theirs").write_bytes(server.content)
    command = [sys.executable, "-c", HOLDER, str(cache / FILE), str(elsewhere / "theirs")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as holder:
        assert holder.stdout.readline() == "held\n"
        # the first pause of the one who waits lets the holder finish
        monkeypatch.setattr(locks.time, "sleep", lambda seconds: holder.communicate())
        assert data.load(NAME).num_episodes == len(LENGTHS)
    assert capsys.readouterr().err == f"{NAME}: process {holder.pid} downloads it; waiting\n"
    assert server.requests == [] and names(cache) == [FILE]


def test_a_lock_that_a_killed_process_left_does_not_hold(server, cache):
    cache.mkdir()
    (cache / f"{FILE}.lock").write_text("12345")
    data.load(NAME)
    assert f"{FILE}.lock" not in names(cache)


def test_the_lock_is_given_back_after_an_error(server, cache):
    server.paths = set()
    for _ in range(2):
        with pytest.raises(dmamba.DataError, match="404"):
            data.load(NAME)
    with open(cache / "x", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert names(cache) == ["x"]


def test_other_disk_errors_are_named(tmp_path):
    error = downloading._disk_error(
        OSError(errno.EROFS, "Read-only file system"), tmp_path / "a", "n"
    )
    assert "Read-only file system" in str(error)


def test_the_command_s_list(server, cache, capsys):
    interrupt(server)
    write_dataset(cache / "ant-expert-v0.hdf5")
    capsys.readouterr()
    assert main(["data", "list"]) == 0
    out = capsys.readouterr().out
    rows = [line.split(maxsplit=1) for line in out.splitlines()]
    rows = {row[0]: row[1] for row in rows[1:] if row and row[0] in sources.SOURCES}
    assert list(rows) == list(sources.SOURCES)
    assert rows["ant-expert-v0"] == f"0.0  {cache / 'ant-expert-v0.hdf5'}"
    assert rows[NAME] == "0.0  (interrupted)" and rows["ant-expert-v2"] == "-"
    assert out.endswith(f"downloads of D4RL's go to {cache}\n")


def test_the_command_s_download(server, cache, capsys):
    for _ in range(2):
        assert main(["data", "download", NAME]) == 0
        out = capsys.readouterr().out
        assert str(cache / FILE) in out and downloading.sha256(cache / FILE) in out
    assert len(server.requests) == 1
    (cache / FILE).write_bytes(server.content[::-1])
    assert main(["data", "download", NAME]) == 2
    assert "not the file that was downloaded" in capsys.readouterr().err
    (cache / f"{FILE}.download.json").unlink()
    assert main(["data", "download", NAME]) == 0
    assert "put there by hand" in capsys.readouterr().out


def test_download_wants_a_known_name():
    with pytest.raises(dmamba.DataError, match=r"no dataset named 'hopper'.*hopper-random-v2"):
        data.download("hopper")
    with pytest.raises(dmamba.DataError, match="dmamba data list"):
        data.load("hopper-mediun-v2")
