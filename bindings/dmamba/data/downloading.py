"""Downloading a dataset's file so that it is either whole and checked, or not there.

Beside the file TARGET lie, while it is being downloaded or after:

    TARGET.part            what has come so far; renamed to TARGET once it is checked
    TARGET.part.json       which version of the server's file the part belongs to
    TARGET.download.json   size, time of change, SHA-256 of the first download; outlives TARGET
    TARGET.lock            held by the process that downloads, with its id inside
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
import json
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from dmamba import _C
from dmamba.common import locks
from dmamba.common.files import flush, write_json
from dmamba.display.progress import bar

ATTEMPTS = 5  # in a row without a byte more than before
PAUSE_SECONDS = 1.0  # before the second attempt, twice that before the third, ...
TIMEOUT_SECONDS = 30.0  # without a byte
_BLOCK = 1 << 18
_SIGNATURE = b"\x89HDF\r\n\x1a\n"


def part_of(target: Path) -> Path:
    """The file that an unfinished download of ``target`` grows in."""
    return target.with_name(f"{target.name}.part")


def download(url: str, target: Path, *, name: str, progress: bool = True) -> Path:
    """Downloads a D4RL file, continuing where an earlier attempt stopped.

    The file is renamed to ``target`` only when it has the announced size, the reader has opened it,
    and its SHA-256 is that of the first download (where there is a record of one).

    Args:
        url: Where it is; plain or secure HTTP.
        target: Where it goes. If another process downloads it, this one waits for it.
        name: The dataset's name, for messages.
        progress: Whether to show a bar, in bytes.

    Returns:
        ``target``.

    Raises:
        DataError: No network, no such file, a download that ends early again and again, a full
            disk, a file that is no dataset or has changed; the message says what to do.
    """
    if not url.startswith(("http://", "https://")):
        raise _C.DataError(f"{url}: must begin with http:// or https://; check DMAMBA_D4RL_URL")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with locks.waiting(target.with_name(f"{target.name}.lock"), name, "downloads it"):
            if target.is_file():  # the process that was waited for has done it
                return target
            transfer = _Transfer(url, target, name, progress)
            transfer.execute()
            _accept(url, target, name)
    except OSError as error:
        raise _disk_error(error, target, name) from error
    return target


def check(path: Path, *, full: bool = False) -> bool:
    """Holds a file against the record of its download.

    Args:
        path: The file.
        full: Compute the SHA-256 even if size (bytes) and time of change (ns) are as recorded.

    Returns:
        Whether there is a record. A file that was not downloaded here has none, and passes.

    Raises:
        DataError: The file is not what was downloaded.
    """
    record = _read_json(_record_of(path))
    if record is None:
        return False
    status = path.stat()
    same_size = status.st_size == record["bytes"]
    same_time = status.st_mtime_ns == record["mtime_ns"]
    if same_size and same_time and not full:
        return True
    found = sha256(path) if same_size else f"of {status.st_size} bytes"
    if found != record["sha256"]:
        raise _C.DataError(
            f"{path}: not the file that was downloaded on {record['downloaded']}: SHA-256 "
            f"{record['sha256']} of {record['bytes']} bytes then, {found} now; delete it to "
            f"download it again, or delete {_record_of(path).name} to use it as it is"
        )
    if not same_time:
        with contextlib.suppress(OSError):  # in a folder that is not ours, it is hashed every time
            write_json(_record_of(path), {**record, "mtime_ns": status.st_mtime_ns})
    return True


def recorded_sha256(path: Path) -> str | None:
    """The SHA-256 that a file had when it was downloaded; None where there is no record."""
    record = _read_json(_record_of(path))
    return None if record is None else str(record["sha256"])


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class _DroppedError(Exception):
    """The connection failed in a way that another attempt may cure."""


class _Transfer:
    """Fills TARGET.part from a server, over as many connections as it takes."""

    def __init__(self, url: str, target: Path, name: str, progress: bool) -> None:
        self.url = url
        self.target = target
        self.part = part_of(target)
        self.state_path = self.part.with_name(f"{self.part.name}.json")
        self.name = name
        self.total: int | None = None
        self.progress = progress
        self.shown: Any = None  # the bar, once a server has answered

    def execute(self) -> None:
        """Returns when the part is complete."""
        best, failures = -1, 0
        try:
            while True:
                try:
                    self._attempt()
                    break
                except _DroppedError as error:
                    failures = 1 if self._have() > best else failures + 1
                    best = max(best, self._have())
                    if failures >= ATTEMPTS:
                        raise self._interrupted(error) from error
                    time.sleep(PAUSE_SECONDS * failures)
        finally:
            if self.shown is not None:
                self.shown.close()
        self.state_path.unlink(missing_ok=True)

    def _have(self) -> int:
        return self.part.stat().st_size if self.part.is_file() else 0

    def _attempt(self) -> None:
        state = _read_json(self.state_path)
        if state is None or state["url"] != self.url:
            state = {}
            self._discard()
        offset = self._have()
        headers = {"Accept-Encoding": "identity", "User-Agent": "dmamba"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
            if state.get("validator"):
                headers["If-Range"] = state["validator"]
        response = self._open(urllib.request.Request(self.url, headers=headers))
        if response is None:  # the server has nothing from the offset on
            if state.get("total") == offset:
                return
            self._discard()
            raise _DroppedError("the part was longer than the server's file")
        with response:
            self._receive(response, state, offset)

    def _open(self, request: urllib.request.Request) -> http.client.HTTPResponse | None:
        try:
            response: http.client.HTTPResponse = urllib.request.urlopen(
                request, timeout=TIMEOUT_SECONDS
            )
            return response
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416:
                return None
            if error.code == 429 or error.code >= 500:
                raise _DroppedError(f"the server answers {error.code} {error.reason}") from error
            raise _C.DataError(
                f"{self.name}: the server answers {error.code} {error.reason} for {self.url}; "
                f"check DMAMBA_D4RL_URL where it is set, or {self._by_hand()}"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            if self._have() == 0 and self.total is None:  # it has never answered
                raise _C.DataError(
                    f"{self.name} is not on this machine, and {self.url} cannot be reached: "
                    f"{reason}. Set DMAMBA_D4RL_URL to a mirror, or {self._by_hand()}"
                ) from error
            raise _DroppedError(str(reason)) from error
        except ValueError as error:
            raise _C.DataError(f"{self.url}: {error}; check DMAMBA_D4RL_URL") from error

    def _receive(
        self, response: http.client.HTTPResponse, state: dict[str, Any], offset: int
    ) -> None:
        """Writes an answer to the part: from the offset on, or all of it."""
        validator = _validator(response)
        if response.status == 206:
            start, total = _content_range(response)
            if (start, total, validator) != (offset, state["total"], state["validator"]):
                self._discard()
                raise _DroppedError("the server's file has changed")
        else:
            if offset:
                self._discard()
            offset = 0
            length = response.headers.get("Content-Length")
            total = int(length) if length is not None else None
            write_json(self.state_path, {"url": self.url, "validator": validator, "total": total})
        self.total = total
        self._require_space(offset)
        self._show(offset)
        with open(self.part, "ab" if offset else "wb") as file:
            while block := self._read(response):
                if offset == 0 and block[:8] != _SIGNATURE[: len(block)]:
                    raise self._no_hdf5(response, block)
                file.write(block)
                offset += len(block)
                self.shown.update(len(block))
            file.flush()
            os.fsync(file.fileno())
        if total is not None and offset != total:
            raise _DroppedError(f"the connection ended after {offset} of {total} bytes")

    def _show(self, offset: int) -> None:
        """Sets the bar to where this answer begins."""
        if self.shown is None:
            text = f"downloading {self.name}"
            self.shown = bar(
                self.total or 0, text, "B", initial=offset, scale=True, enabled=self.progress
            )
        self.shown.total, self.shown.n = self.total, offset
        self.shown.refresh()

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        try:
            return response.read1(_BLOCK)  # what is there, so that a slow server's bytes count
        except (OSError, http.client.HTTPException) as error:
            raise _DroppedError(str(error) or type(error).__name__) from error

    def _discard(self) -> None:
        self.part.unlink(missing_ok=True)
        self.state_path.unlink(missing_ok=True)

    def _require_space(self, offset: int) -> None:
        free = shutil.disk_usage(self.target.parent).free
        needed = 0 if self.total is None else self.total - offset
        if needed > free:
            raise OSError(errno.ENOSPC, f"{needed} bytes are still to come, {free} are free")

    def _no_hdf5(self, response: http.client.HTTPResponse, block: bytes) -> _C.DataError:
        self._discard()
        kind = response.headers.get("Content-Type", "no content type")
        return _C.DataError(
            f"{self.name}: {self.url} sent no HDF5 file but ({kind}) one that begins with "
            f"{block[:60]!r}, perhaps a page of a proxy; {self._by_hand()}"
        )

    def _interrupted(self, error: _DroppedError) -> _C.DataError:
        total = "an unknown number of" if self.total is None else f"{self.total}"
        return _C.DataError(
            f"{self.name}: the download of {self.url} broke off {ATTEMPTS} times in a row, with "
            f"{self._have()} of {total} bytes: {error}. Try again later: it goes on from there"
        )

    def _by_hand(self) -> str:
        return f"download {self.url} elsewhere and save it as {self.target}"


def _accept(url: str, target: Path, name: str) -> None:
    """Checks what has come, records it, and gives it its name."""
    part, record_path = part_of(target), _record_of(target)
    try:
        _C.open_dataset(str(part), "d4rl")
    except _C.DataError as error:
        part.unlink()
        raise _C.DataError(f"{name}: {url} sent a file that is not usable: {error}") from error
    found, record = sha256(part), _read_json(record_path)
    if record is not None and record["sha256"] != found:
        part.unlink()
        raise _C.DataError(
            f"{name}: {url} now has another file than on {record['downloaded']}: SHA-256 "
            f"{record['sha256']} then, {found} now. Results would not be comparable; delete "
            f"{record_path} to accept the new one"
        )
    status = part.stat()
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    fresh = {
        "name": name,
        "url": url,
        "downloaded": record["downloaded"] if record else now,
        "bytes": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "sha256": found,
    }
    write_json(record_path, fresh)  # first: a file without its record would never be checked
    os.replace(part, target)
    flush(target.parent)


def _disk_error(error: OSError, target: Path, name: str) -> _C.DataError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _C.DataError(
            f"{name}: no space left in {target.parent}: {error.strerror}. Make room and try again, "
            "or set DMAMBA_DATA to another folder; what has come is kept"
        )
    return _C.DataError(f"{name}: cannot be written to {target.parent}: {error}")


def _record_of(path: Path) -> Path:
    return path.parent / f"{path.name}.download.json"  # a folder such as "." has no name


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise _C.DataError(f"{path}: damaged, {error}; delete it") from error
    if not isinstance(content, dict):
        raise _C.DataError(f"{path}: damaged, it holds no JSON object; delete it")
    return content


def _validator(response: http.client.HTTPResponse) -> str | None:
    """What tells one version of the server's file from another: RFC 9110, 13.1.5."""
    tag = response.headers.get("ETag")
    if tag and not tag.startswith("W/"):
        return str(tag)
    return response.headers.get("Last-Modified")


def _content_range(response: http.client.HTTPResponse) -> tuple[int, int | None]:
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    if match is None:
        return -1, None
    return int(match[1]), None if match[2] == "*" else int(match[2])
