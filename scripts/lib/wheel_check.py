"""Uses an installed DMamba as a newcomer would, without the libraries that it was built with.

scripts/check_wheel.sh runs this in the wheel's environment; the working folder is empty. Ends with
status 1 and the reason where something doesn't work, or where a library came from the system.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
from pathlib import Path

# Libraries that the wheel has to bring itself.
OWN = re.compile(r"/lib(hdf5|yaml-cpp|spdlog|fmt|sz|aec|curl)[^/]*\.so")
PREFIX = Path(sys.prefix).resolve()


def say(what: str) -> None:
    """Prints one result, at once."""
    print(f"      {what}", flush=True)


def check_that_the_system_has_none() -> None:
    """A check that could not fail would be worth nothing: the system's libraries must be gone."""
    known = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=True)
    for path in re.findall(r"=> (/\S+)$", known.stdout, re.MULTILINE):
        if not OWN.search(path):
            continue
        try:
            ctypes.CDLL(path)
        except OSError:
            continue
        raise SystemExit(f"error: this system still has a usable {path}")


def command(*arguments: str) -> str:
    """What a dmamba command prints."""
    program = PREFIX / "bin" / "dmamba"
    done = subprocess.run([program, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"error: dmamba {' '.join(arguments)}:\n{done.stdout}{done.stderr}")
    return done.stdout


def read_files() -> None:
    """The bundled episodes through DMamba's HDF5 and, where it lies as a file, through h5py's."""
    import h5py
    import numpy as np

    import dmamba

    if PREFIX not in Path(dmamba.__file__).resolve().parents:
        raise SystemExit(f"error: dmamba came from {dmamba.__file__}, not from the wheel")
    (path,) = (Path(dmamba.__file__).parent / "samples").glob("*.hdf5")
    store = dmamba.data.load(path)
    with h5py.File(path) as file:
        total = np.asarray(file["rewards"], dtype=np.float64).sum()
    if not np.isclose(store.episode_returns.sum(), total, rtol=1e-5):
        raise SystemExit(f"error: returns of {store.episode_returns.sum()}, h5py reads {total}")
    say(f"{path.name}: {store.num_episodes} episodes, with the rewards that h5py reads")


def train() -> None:
    """A few steps, a checkpoint, an action."""
    import torch

    import dmamba

    overrides = ["training.steps=20", "training.device=cpu", "model.d_model=32", "model.n_layer=1"]
    quiet = {"evaluate": False, "progress": False}  # the simulator is not installed
    run = dmamba.train("hopper-sample", overrides=overrides, output="run", **quiet)
    (checkpoint,) = (Path(run.folder) / "checkpoints").iterdir()
    model, _ = dmamba.nn.load(checkpoint)
    with torch.no_grad():
        actions = model(
            torch.zeros(1, 5, 11),
            torch.zeros(1, 5, 3),
            torch.ones(1, 5, 1),
            torch.arange(5).unsqueeze(0),
        )
    if actions.shape != (1, 5, 3) or not torch.isfinite(actions).all():
        raise SystemExit(f"error: actions {tuple(actions.shape)}: {actions}")
    say(f"trained 20 steps, {checkpoint.name} acts")


def check_where_libraries_are() -> None:
    """Every one of the wheel's libraries in this process comes from the environment."""
    maps = Path("/proc/self/maps").read_text()
    loaded = {Path(path) for path in re.findall(r"\s(/\S+\.so\S*)$", maps, re.MULTILINE)}
    foreign = [str(p) for p in loaded if OWN.search(str(p)) and PREFIX not in p.parents]
    if foreign:
        raise SystemExit(f"error: loaded from the system: {', '.join(foreign)}")
    inside = sorted(path.name for path in loaded if path.parent.name == "dmamba.libs")
    if not any(name.startswith("libhdf5") for name in inside):
        raise SystemExit("error: HDF5 is not loaded from the wheel")
    say(f"loaded from the wheel: {', '.join(inside)}")


def main() -> int:
    """Runs the checks in turn."""
    check_that_the_system_has_none()
    for line in command("info").splitlines():
        say(line)
    command("data", "info", "hopper-medium")
    read_files()
    train()
    check_where_libraries_are()
    return 0


if __name__ == "__main__":
    sys.exit(main())
