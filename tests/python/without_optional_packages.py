"""Uses dmamba where none of its optional packages can be imported, and prints what happened.

    python without_optional_packages.py RUN_FOLDER PACKAGE,PACKAGE,...

The last line is JSON: ``modules`` (how many of dmamba's were imported), ``failed`` (those that were
not, with the reason), ``trained`` (steps), ``features`` (name -> the kind of the error and its
message), ``command`` (exit code and standard error of one command line). Nothing is asserted here.
"""

import contextlib
import importlib
import importlib.abc
import io
import json
import pkgutil
import sys

# Feature -> the package that it misses, the requirement that the pip line names.
FEATURES = {
    "evaluate": ("gymnasium", "gymnasium[mujoco]>=1.1"),
    "record": ("gymnasium", "gymnasium[mujoco]>=1.1"),
    "record a game without gymnasium": ("gymnasium", "ale-py>=0.12' 'gymnasium>=1.1"),
    "record a game": ("ale_py", "ale-py>=0.12' 'gymnasium>=1.1"),
    "film": ("imageio", "imageio[ffmpeg]"),
    "evaluate by envpool": ("envpool", "dmamba[fast]"),
    "search": ("optuna", "dmamba[sweep]"),
    "engine ray": ("ray", "dmamba[sweep]"),
    "engine slurm": ("submitit", "dmamba[slurm]"),
}


class Blocker(importlib.abc.MetaPathFinder):
    """Finds no module of some packages, as if they were not installed."""

    def __init__(self, packages):
        self.packages = packages

    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] in self.packages:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)
        return None


def import_everything(dmamba):
    """Imports every module of the package; returns their number and the reasons of failures."""
    found = list(pkgutil.walk_packages(dmamba.__path__, "dmamba."))
    failed = {}
    for module in found:
        if module.name.endswith((".__main__", ".libdmamba")):  # a program, a library for _C
            continue
        try:
            importlib.import_module(module.name)
        except ImportError as error:
            failed[module.name] = str(error)
    return len(found), failed


def use(dmamba, feature, run):
    """Uses one of the features above."""
    tiny = {"dataset": {"path": run.config.dataset.path}, "model": {"d_model": 16, "n_layer": 1}}
    if feature == "evaluate":
        dmamba.evaluate(run, targets=[10], episodes=1, progress=False)
    elif feature == "evaluate by envpool":
        dmamba.evaluate(run, targets=[10], episodes=1, engine="envpool", progress=False)
    elif feature == "record":
        dmamba.data.record(None, "mine.hdf5", episodes=1, environment="Hopper-v4", progress=False)
    elif feature.startswith("record a game"):
        dmamba.data.record(None, "mine", episodes=1, environment="ALE/Pong-v5", progress=False)
    elif feature == "film":
        dmamba.record_video(run, "film.mp4")
    elif feature == "search":
        dmamba.sweep(tiny, ["learning_rate=log:1e-4..1e-2"], trials=1, progress=False)
    elif feature.startswith("engine "):
        dmamba.sweep(tiny, engine=feature.removeprefix("engine "), progress=False)


def main():
    """Tries all of it."""
    folder, packages = sys.argv[1], sys.argv[2].split(",")
    blocker = Blocker(set(packages))
    sys.meta_path.insert(0, blocker)
    import dmamba
    from dmamba.commands import main as command

    run = dmamba.Run(folder)
    result = {"features": {}}
    result["modules"], result["failed"] = import_everything(dmamba)
    settings = {
        "dataset": {"path": run.config.dataset.path},
        "model": {"d_model": 16, "n_layer": 1, "context_length": 5},
        "training": {"steps": 4, "batch_size": 4, "device": "cpu"},
    }
    trained = dmamba.train(settings, output="bare", evaluate=False, progress=False)
    result["trained"] = trained.latest_checkpoint()[0]
    with contextlib.redirect_stderr(io.StringIO()) as output:
        code = command(["evaluate", folder, "--episodes", "1"])
    result["command"] = (code, output.getvalue())
    for feature, (package, _) in FEATURES.items():
        blocker.packages = {package}  # the others are there: a feature may need some of them first
        try:
            use(dmamba, feature, run)
            result["features"][feature] = ("none", "it worked")
        except Exception as error:
            result["features"][feature] = (type(error).__name__, str(error))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
