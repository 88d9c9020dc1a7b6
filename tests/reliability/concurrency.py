"""Many processes at once on what they share: one does the work, the others wait or are refused.

    python tests/reliability/concurrency.py                           20 processes, everything
    python tests/reliability/concurrency.py --processes 4 --places run convert
    python tests/reliability/concurrency.py --rounds 10

    run        all begin a run in one folder: one trains, the others are told its process id
    resume     all continue one run: it ends with the bits of a run that was left alone
    sweep      all begin the sweep of one folder
    download   all want a dataset that has to be downloaded: it is downloaded once
    checksum   all hold a downloaded file against its record, and write the record anew
    convert    all open a recorded game: it is converted once
    save       all write arrays to one file
    read       all load the model of a run, and report on it, while it trains

A process is a fork of this one, which has imported everything; a barrier lets them go at once. The
exit status is 1 where one fails, or what is left behind is not what one process leaves.
"""

from __future__ import annotations

import argparse
import collections
import http.server
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import dmamba
from dmamba import _C
from dmamba.data import replays, sources

sys.path.insert(0, str(Path(__file__).parents[1] / "python"))
import replay_games

FORK = multiprocessing.get_context("fork")
NAME = "hopper-random-v2"
WAIT_SECONDS = 300.0


def at_once(count: int, work: Callable[[int], Any]) -> list[tuple[int, str, Any]]:
    """Has so many processes do something at once.

    Returns:
        Of each its process id, the message of its error ("" if it had none), and its result.
    """
    barrier, answers = FORK.Barrier(count), FORK.SimpleQueue()

    def child(number: int) -> None:
        barrier.wait()
        try:
            answers.put((os.getpid(), "", work(number)))
        except _C.Error as error:
            answers.put((os.getpid(), str(error), None))
        except BaseException:
            answers.put((os.getpid(), traceback.format_exc(), None))

    processes = [FORK.Process(target=child, args=(number,)) for number in range(count)]
    for process in processes:
        process.start()
    found = [answers.get() for _ in processes]
    for process in processes:
        process.join(WAIT_SECONDS)
    return found


def require(condition: bool, what: str) -> None:
    """Ends a place's round where something is not as it should be."""
    if not condition:
        raise AssertionError(what)


def arrays(rows: int = 120) -> tuple[np.ndarray, ...]:
    """Six episodes of random numbers."""
    rng = np.random.default_rng(0)
    ends = np.arange(rows) % 20 == 19
    states, actions = rng.standard_normal((rows, 11)), rng.uniform(-1, 1, (rows, 3))
    return states, actions, rng.random(rows), np.zeros(rows, bool), ends


def config(folder: Path, steps: int, **training: Any) -> dict[str, Any]:
    """A run of a second at most, on a file in the folder."""
    path = folder / "data.hdf5"
    if not path.is_file():
        dmamba.data.from_arrays(*arrays(), save=path)
    return {
        "name": "shared",
        "dataset": {"path": str(path)},
        "model": {"d_model": 8, "n_layer": 1, "context_length": 3},
        "training": {
            "steps": steps,
            "batch_size": 4,
            "warmup_steps": 5,
            "log_every": 5,
            "checkpoint_every": 20,
            "threads": 1,
            "device": "cpu",
            **training,
        },
    }


def train(wanted: dict[str, Any], folder: Path, **options: Any) -> None:
    """A run without bars and without evaluations."""
    dmamba.train(wanted, output=folder, progress=False, evaluate=False, **options)


def check_refusals(found: list[tuple[int, str, Any]], pattern: str) -> int:
    """All errors have to be refusals that name one of the processes; how many did their work."""
    ids = {pid for pid, _, _ in found}
    for pid, message, _ in found:
        match = re.search(pattern, message)
        require(not message or match is not None, f"process {pid}: {message}")
        if match and match.lastindex:
            require(int(match[1]) in ids - {pid}, f"process {pid} was told of {match[1]}")
    return sum(not message for _, message, _ in found)


def contents(folder: Path) -> dict[str, bytes]:
    """What the steps of a run have left: the rows and the last parameters."""
    latest = dmamba.Run(folder).latest_checkpoint()
    assert latest is not None
    files = (folder / "metrics.csv", latest[1] / "model.safetensors")
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def place_run(folder: Path, count: int) -> str:
    """One trains; the others are told who, or what lies there once it is through."""
    wanted = config(folder, 60)
    found = at_once(count, lambda number: train(wanted, folder / "run"))
    busy = r"process (\d+) is training in this folder|holds a run, at step|without a checkpoint"
    require(check_refusals(found, busy) == 1, "one has to train")
    train(wanted, folder / "alone")
    require(contents(folder / "run") == contents(folder / "alone"), "other bits than one alone")
    told = sum("is training" in message for _, message, _ in found)
    return f"1 trained, {told} were told its process id, {count - 1 - told} found its run"


def place_resume(folder: Path, count: int) -> str:
    """One goes on; who comes later finds it at its end."""
    wanted = config(folder, 60)

    class Stop(dmamba.training.callbacks.Callback):
        def on_checkpoint(self, run: dmamba.Run, path: Path) -> None:
            raise KeyboardInterrupt

    try:
        train(wanted, folder / "run", callbacks=[Stop()])
    except KeyboardInterrupt:
        pass
    found = at_once(count, lambda number: train(wanted, folder / "run", resume=True))
    done = check_refusals(found, r"process (\d+) is training in this folder")
    require(done >= 1, "one has to train")
    train(wanted, folder / "alone")
    require(contents(folder / "run") == contents(folder / "alone"), "other bits than one alone")
    return f"{done} trained, one after the other; {count - done} were told a process id"


def place_sweep(folder: Path, count: int) -> str:
    """One is at work; who comes later finds all runs at their end."""
    wanted = config(folder, 10)
    wanted["dataset"]["environment"] = "Hopper-v4"

    def sweep(number: int) -> None:
        # The runs themselves are of no interest here, and each would import everything.
        from dmamba.engines.local import Local

        Local.run_all = lambda self, runs, on_end: (time.sleep(0.3), ["not trained"] * len(runs))[1]
        dmamba.sweep(wanted, ["seed=0:2"], output=folder / "sweep", progress=False)

    found = at_once(count, sweep)
    done = check_refusals(found, r"process (\d+) is at work on a sweep in this folder")
    require(done >= 1, "one has to be at work")
    return f"{done} at work, one after the other; {count - done} were told a process id"


class _Server(http.server.ThreadingHTTPServer):
    """Gives one file to all who ask, and counts them."""

    daemon_threads = True

    def __init__(self, content: bytes) -> None:
        self.content, self.requests = content, 0
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:  # noqa: N802
        self.server.requests += 1
        time.sleep(0.3)
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.content)))
        self.end_headers()
        self.wfile.write(self.server.content)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing."""


def place_download(folder: Path, count: int) -> str:
    """One request, whatever the number of processes."""
    config(folder, 1)
    server = _Server((folder / "data.hdf5").read_bytes())
    os.environ["DMAMBA_D4RL_URL"] = f"http://127.0.0.1:{server.server_port}"
    os.environ["DMAMBA_DATA"] = str(folder / "cache")
    try:
        found = at_once(
            count, lambda number: dmamba.data.load(NAME, progress=False).num_transitions
        )
    finally:
        server.shutdown()
    require({result for _, _, result in found} == {120}, f"not all have it: {found}")
    require(server.requests == 1, f"{server.requests} requests")
    left = sorted(path.name for path in (folder / "cache").iterdir())
    file = sources.SOURCES[NAME].file_name
    require(left == [file, f"{file}.download.json"], f"left behind: {left}")
    return "1 request"


def place_checksum(folder: Path, count: int) -> str:
    """A file that was touched is hashed by all of them."""
    place_download(folder, 1)
    path = next((folder / "cache").glob("*.hdf5"))
    for _ in range(5):
        os.utime(path)
        found = at_once(
            count, lambda n: dmamba.data.load(NAME, progress=False, verify=True).num_episodes
        )
        require({result for _, _, result in found} == {6}, f"not all agree: {found}")
    require(dmamba.data.downloading.check(path, full=True), "the record is gone")
    return "5 times all of them"


def place_convert(folder: Path, count: int) -> str:
    """One conversion: the others wait for it, or find it."""
    game = replay_games.write_recording(folder / "Pong", shards=(0, 1, 2), lengths=(300, 200))
    os.environ["DMAMBA_DATA"] = str(folder / "cache")

    def load(number: int) -> tuple[int, int]:
        read = 0

        class Bar(replays.ReadingBar):
            def update(self, done: int, total: int) -> None:
                nonlocal read
                read += total > 0

        replays.ReadingBar = Bar  # type: ignore[misc]
        store = dmamba.data.load(game, progress=False)
        return read, hash(store.frames.tobytes())

    found = at_once(count, load)
    require(not any(message for _, message, _ in found), f"not all have it: {found}")
    results = [result for _, _, result in found]
    require(len({frames for _, frames in results}) == 1, "other frames")
    converted = sum(read > 0 for read, _ in results)
    require(converted == 1, f"{converted} conversions")
    left = [path.name for path in (folder / "cache" / "replays").iterdir()]
    require(len(left) == 1, f"left behind: {left}")
    return "1 conversion"


def place_save(folder: Path, count: int) -> str:
    """The file is one of those that were written, whole."""
    given = arrays()
    for _ in range(5):
        found = at_once(
            count, lambda n: dmamba.data.from_arrays(*given, save=folder / "a.hdf5").num_episodes
        )
        require({result for _, _, result in found} == {6}, f"not all could write: {found}")
    left = sorted(path.name for path in folder.iterdir())
    require(left == ["a.hdf5"], f"left behind: {left}")
    return "5 times all of them"


def place_read(folder: Path, count: int) -> str:
    """Readers never see half of anything, though each checkpoint lives for a step."""
    wanted = config(folder, 60, checkpoint_every=1, keep_checkpoints=1, log_every=1)
    train(config(folder, 5), folder / "done")  # a report has to have something to say
    seen: collections.Counter[str] = collections.Counter()

    def work(number: int) -> dict[str, int]:
        if number == 0:
            train(wanted, folder / "run")
            return {}
        run, mine = dmamba.Run(folder / "run"), collections.Counter()
        while not run.finished:
            if run.latest_checkpoint() is None:
                time.sleep(0.01)
                continue
            dmamba.evaluation.load_model(folder / "run")
            mine["models"] += 1
            steps = run.metrics()["step"]
            require(list(steps) == list(range(1, len(steps) + 1)), f"rows {steps}")
            mine["metrics"] += 1
            if number == 1:
                dmamba.report(folder, output=folder / "report.html")
                mine["reports"] += 1
        return dict(mine)

    found = at_once(min(count, 8), work)
    for pid, message, result in found:
        require(not message, f"process {pid}: {message}")
        seen.update(result)
    return ", ".join(f"{number} {what} read" for what, number in sorted(seen.items()))


PLACES: dict[str, Callable[[Path, int], str]] = {
    name.removeprefix("place_"): function
    for name, function in list(globals().items())
    if name.startswith("place_")
}


def main() -> int:
    """Goes through the places; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--places", nargs="+", choices=PLACES, default=list(PLACES))
    options = parser.parse_args()
    failed = 0
    for place in options.places:
        for number in range(options.rounds):
            folder = Path(tempfile.mkdtemp(prefix="dmamba-shared-"))
            started = time.perf_counter()
            try:
                said = PLACES[place](folder, options.processes)
            except AssertionError as error:
                said, failed = f"FAILED {error}", failed + 1
            finally:
                shutil.rmtree(folder)
            seconds = time.perf_counter() - started
            print(f"{place:9} round {number + 1}: {said} ({seconds:.1f} s)", flush=True)
    print(f"{options.processes} processes at once; failed: {failed or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
