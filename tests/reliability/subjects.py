"""What is killed: programs that can be started again, and what they must have made in the end."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import signal
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from comparing import Picture, check_run, check_temporaries, picture

import dmamba
from dmamba import data
from dmamba.data import hdf5
from dmamba.runs import Run

sys.path.append(str(Path(__file__).parents[1] / "python"))

STEPS, CHECKPOINT_EVERY = 30, 10
LENGTHS = (30, 12, 45, 7, 21)


def write_dataset(
    path: Path, state_dim: int = 11, act_dim: int = 3, name: str = "Hopper-v4"
) -> str:
    """A tiny dataset of D4RL's layout."""
    random = np.random.default_rng(3)
    total = sum(LENGTHS)
    states = random.normal(size=(total, state_dim)).astype(np.float32)
    timeouts = np.zeros(total, np.uint8)
    timeouts[np.cumsum(LENGTHS) - 1] = 1
    mixing = random.normal(size=(state_dim, act_dim))
    arrays = {
        "observations": states,
        "actions": np.tanh(states @ mixing).astype(np.float32),
        "rewards": random.uniform(1.0, 3.0, total).astype(np.float32),
        "terminals": np.zeros(total, np.uint8),
        "timeouts": timeouts,
    }
    hdf5.write(path, arrays, {"environment": name})
    return str(path)


class Recorder(dmamba.Callback):
    """Keeps files of its own in the run's folder, as a user's callback may."""

    def on_start(self, run: Run) -> None:
        latest = run.latest_checkpoint()
        if latest is not None:  # whoever was killed there may have missed it
            self.on_checkpoint(run, latest[1])

    def on_log(self, run: Run, row: dict[str, Any]) -> None:
        (run.folder / "mine").mkdir(exist_ok=True)
        _replace(run.folder / "mine" / f"{row['step']:08d}.json", row)

    def on_checkpoint(self, run: Run, path: Path) -> None:
        _replace(run.folder / "mine.json", {"latest": path.name})


def _replace(path: Path, content: Any) -> None:
    """Writes JSON as a careful user does."""
    fresh = path.with_suffix(".fresh")
    try:
        fresh.write_text(json.dumps(content))
        fresh.replace(path)
    except OSError as error:  # of a full disk it does not say which file
        raise OSError(error.errno, error.strerror, str(path)) from error


class Subject:
    """A program that is killed.

    Args:
        name: For the report.
        base: A folder for what it needs; shared by all trials.
    """

    own = ""  # in the paths of files that the program writes by itself, without DMamba
    plays = False  # whether it needs environments
    group = False  # whether it starts processes that are to be killed with it, or to survive it

    def __init__(self, name: str, base: Path) -> None:
        self.name = name
        self.base = base

    def start(self, place: Path) -> None:
        """Starts it, or goes on; a user would give the same command again."""
        raise NotImplementedError

    def picture(self, place: Path) -> Picture:
        """What it has made, without what may differ."""
        return picture(place)

    def check(self, place: Path) -> list[str]:
        """What is wrong with what a kill has left."""
        raise NotImplementedError

    def check_error(self, place: Path) -> list[str]:
        """What is wrong with what an error has left."""
        return [*self.check(place), *check_temporaries(place)]


class Training(Subject):
    """``dmamba train`` in a folder, and again with ``--resume``."""

    def __init__(
        self,
        name: str,
        base: Path,
        device: str,
        *,
        training: dict[str, Any] | None = None,
        sections: dict[str, Any] | None = None,
        evaluate: bool | str = False,
        callbacks: bool = False,
        model: Any = None,
        lasting: bool = True,
    ) -> None:
        super().__init__(name, base)
        self.config: dict[str, Any] = {
            "name": "tiny",
            "seed": 7,
            "dataset": {"path": write_dataset(base / f"{name}.hdf5")},
            "model": {"d_model": 16 if device == "cpu" else 64, "n_layer": 1, "context_length": 5},
            "training": {
                "steps": STEPS,
                "batch_size": 8,
                "warmup_steps": 5,
                "log_every": 4,
                "checkpoint_every": CHECKPOINT_EVERY,
                "keep_checkpoints": 2,
                "device": device,
                **(training or {}),
            },
            "evaluation": {"episodes": 1, "targets": [100]},
            **(sections or {}),
        }
        self.options: dict[str, Any] = {"evaluate": evaluate, "progress": False}
        if callbacks:
            self.options["callbacks"] = [Recorder()]
            self.own = "/mine"
        if model is not None:
            self.options["model"] = model
        self.group = evaluate == "beside"
        self.plays = bool(evaluate)

    def start(self, place: Path) -> None:
        resume = (place / "config.yaml").is_file()
        dmamba.train(self.config, output=place, resume=resume, **self.options)

    def remember(self, place: Path) -> None:
        """Notes the parameters at every checkpoint of a run that nothing stops."""
        config = json.loads(json.dumps(self.config))
        config["training"]["keep_checkpoints"] = 1000
        dmamba.train(config, output=place, **self.options)

    def check(self, place: Path) -> list[str]:
        return check_run(place, self.base / f"{self.name}.all", CHECKPOINT_EVERY)


class Sweep(Subject):
    """A sweep of four runs, two at a time, each in a process of its own."""

    group = plays = True

    def __init__(self, name: str, base: Path) -> None:
        super().__init__(name, base)
        self.config = Training(name, base, "cpu").config

    def start(self, place: Path) -> None:
        arguments = {"output": place, "jobs": 2, "progress": False}
        for _ in range(3):  # runs of a sweep that was killed may be ending still
            result = dmamba.sweep(self.config, ["K=3,5", "seed=0:2"], **arguments)
            if not result.failures:
                return
        raise RuntimeError(f"runs of the sweep failed: {result.failures}")

    def picture(self, place: Path) -> Picture:
        return picture(place, ignored=r"(.*/)?[^/]*\.log$")

    def check(self, place: Path) -> list[str]:
        return []


class Conversion(Subject):
    """A DQN-replay recording that is converted into the cache, and read from there."""

    def __init__(self, name: str, base: Path) -> None:
        super().__init__(name, base)
        from replay_games import write_recording

        self.folder = write_recording(base / "games" / "Breakout", shards=(0, 1, 2))

    def start(self, place: Path) -> None:
        os.environ["DMAMBA_DATA"] = str(place)
        data.load(self.folder, progress=False)

    def check(self, place: Path) -> list[str]:
        return _whole_or_none(place, self.base / f"{self.name}.whole", "*.h5")


class Recording(Subject):
    """Random actions that are written down, as a D4RL file or as a folder of a game."""

    plays = True

    def __init__(self, name: str, base: Path, environment: str) -> None:
        super().__init__(name, base)
        self.environment = environment
        self.game = environment.startswith("ALE/")

    def start(self, place: Path) -> None:
        output = place if self.game else place / "mine.hdf5"
        if (output / "Breakout" if self.game else output).exists():
            return
        amount = {"transitions": 30} if self.game else {"episodes": 3}
        options: dict[str, Any] = {"num_envs": 2, "workers": 1, "progress": False}
        data.record(None, output, environment=self.environment, **amount, **options)

    def check(self, place: Path) -> list[str]:
        return _whole_or_none(place, self.base / f"{self.name}.whole", "mine.hdf5", "Breakout/**/*")


class Download(Subject):
    """A dataset that is fetched by its name from a server of this machine."""

    def __init__(self, name: str, base: Path) -> None:
        super().__init__(name, base)
        self.port = _serve(Path(write_dataset(base / "served.hdf5")).read_bytes())

    def start(self, place: Path) -> None:
        os.environ["DMAMBA_DATA"] = str(place)
        os.environ["DMAMBA_D4RL_URL"] = f"http://127.0.0.1:{self.port}/"
        data.load("hopper-medium-v2", progress=False)

    def picture(self, place: Path) -> Picture:
        return picture(place, ignored=r".*\.lock$")  # empty; the next download takes it

    def check(self, place: Path) -> list[str]:
        return _whole_or_none(place, self.base / f"{self.name}.whole", "*.hdf5")


def _serve(content: bytes) -> int:
    """Starts a server that ends with this process; returns its port."""
    from test_download import Server

    read, write = os.pipe()
    parent = os.getpid()
    if os.fork() == 0:
        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL), 0, 0, 0)  # PR_SET_PDEATHSIG
        server = Server(content)
        os.write(write, str(server.server_port).encode())
        os.close(write)
        if os.getppid() == parent:
            server.serve_forever(0.02)
        os._exit(0)
    os.close(write)
    with open(read) as stream:
        return int(stream.read())


class Export(Subject):
    """A model that is written over an older one of the same folder."""

    own = "/begun"

    def start(self, place: Path) -> None:
        if not (place / "begun").exists():
            self._export(1, place)
            (place / "begun").touch()
        self._export(2, place)

    def check(self, place: Path) -> list[str]:
        if (place / "begun").exists() or (place / "model").exists():
            dmamba.nn.load(place / "model")
        return []

    def _export(self, seed: int, place: Path) -> None:
        torch.manual_seed(seed)
        dmamba.nn.DMamba(11, 3, d_model=16, n_layer=1).save_pretrained(place / "model")


def _whole_or_none(place: Path, whole: Path, *patterns: str) -> list[str]:
    """Files under their final names have all that they should, or are not there."""
    wrong = []
    for pattern in patterns:
        for path in place.glob(pattern):
            if path.is_file() and not path.name.startswith("."):
                other = whole / path.relative_to(place)
                if not other.is_file() or other.read_bytes() != path.read_bytes():
                    wrong.append(f"{path.relative_to(place)} is not whole")
    return wrong


def import_for(subjects: Iterable[Subject]) -> None:
    """Imports what is slow to import, once for all children."""
    import matplotlib.font_manager  # noqa: F401
    import torch.utils.tensorboard  # noqa: F401

    import dmamba.display.pictures  # noqa: F401

    if any(subject.plays for subject in subjects):
        import gymnasium.envs.mujoco.hopper_v4  # noqa: F401

        dmamba.evaluation.suites.import_vector()
    if len(os.listdir("/proc/self/task")) > 1:
        print("note: this process has threads; children that hang may be its own fault", flush=True)


def make(base: Path, device: str) -> dict[str, list[Subject]]:
    """All subjects that this machine can run, by the words of ``--what``."""
    from own_models import Net, Wrapped

    several = {"context": "random", "contexts": [1, 3, 5]}
    schedule = {"context": "schedule", "contexts": [1, 3, 5], "context_every": 5}
    simulated = importlib.util.find_spec("gymnasium") and importlib.util.find_spec("mujoco")
    training = partial(Training, base=base, device=device)
    subjects: dict[str, list[Subject]] = {
        "train": [
            training("plain"),
            training("contexts", training=several),
            training(
                "schedule",
                training=schedule,
                sections={
                    "dataset": {
                        "path": write_dataset(base / "schedule.hdf5"),
                        "validation_fraction": 0.4,
                    }
                },
            ),
            training("callbacks", callbacks=True, training={"keep_checkpoints": 1}),
            training("own", model=Net if device == "cpu" else Wrapped),
        ]
    }
    if device != "cpu":
        subjects["train"].append(training("bf16", training={"precision": "bf16"}))
        return subjects
    subjects["train"] += [
        training(
            "sets",
            sections={
                "dataset": {},
                "evaluation": {"episodes": 1},
                "pretraining": {
                    "sets": [
                        write_dataset(base / "jumps.hdf5"),
                        write_dataset(base / "runs.hdf5", 17, 6, "HalfCheetah-v4"),
                    ]
                },
            },
        )
    ]
    subjects["convert"] = [Conversion("convert", base)]
    subjects["download"] = [Download("download", base)]
    subjects["export"] = [Export("export", base)]
    if simulated:
        evaluation = {"evaluation": {"episodes": 2, "targets": [100], "every": 15}}
        subjects["train"].append(training("between", sections=evaluation, evaluate="between"))
        subjects["beside"] = [training("beside", sections=evaluation, evaluate="beside")]
        subjects["sweep"] = [Sweep("sweep", base)]
        subjects["record"] = [Recording("record", base, "Hopper-v4")]
        if importlib.util.find_spec("ale_py"):
            subjects["record"].append(Recording("record-game", base, "ALE/Breakout-v5"))
    return subjects
