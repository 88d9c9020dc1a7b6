#!/usr/bin/env python3
"""Runs whole experiments, several seeds each, and compares them with reference scores.

    python scripts/reproduce.py configs/reproduce/short.yaml --data DIR [--seeds 0 1] [--jobs 3]
    python scripts/reproduce.py configs/reproduce/compare.yaml training.device=cpu --only fp32 bf16

A finished run is kept and a stopped one continues, so the same command goes on where it was stopped
(Ctrl-C, a kill, --stop-after). Run folders, logs and the tables (results.md, .csv, .json) lie in
--output. The YAML file has

    seeds: [0, 1, 2]
    author: {step_ms: ..., action_ms: ..., environment_ms: ..., source: ...}  # of his program
    experiments:
      - name: hopper-d128            # of run folders and rows
        config: hopper-medium        # what `dmamba train` takes
        overrides: [key=value, ...]  # after those of the whole file
        data: hopper-medium          # with --data DIR: DIR/hopper-medium.hdf5, or a game's folder
        references:                  # target: a return, or best (of all targets); which: last, best
          - {target: 3600, which: last, return: 2640, stderr: 78, source: ...}   # or score: ...
        reference_loss: 0.0379       # training loss over the last 1000 steps
      - name: hopper-tuned           # begins with what another's run of the same seed learned:
        from: pretrain               # transfer.init_from
      - name: pretrain               # on several sets (pretraining.sets), each with rows of its own
        sets: [hopper-medium-replay, ...]   # with --data DIR, as data
      - name: hopper-d128-recurrent  # no training: checkpoints of another, with another policy
        of: hopper-d128
        policy: recurrent
      - name: hopper-d128-K5         # or with another K: a number, or auto
        of: hopper-d128
        context_length: 5

Keys of an experiment may stand at the top, for all experiments that don't have their own. With

    variants: {mamba: [], attention: [model.token_mixer=attention]}

there or in an experiment, each variant of it, NAME-mamba and so on, is an experiment of its own.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from lib.experiment_table import format_csv, format_tables

from dmamba.common.files import write_json, write_text
from dmamba.data.pretraining import FOLDER as SETS
from dmamba.engines.runner import Runner
from dmamba.runs import Run
from dmamba.runs.seeds import read_evaluation, read_run, summarize


@dataclass(frozen=True)
class Experiment:
    """One entry of the file; the module's text says what the fields mean."""

    name: str
    config: str = ""
    overrides: list[str] = field(default_factory=list)
    data: str = ""
    seeds: list[int] = field(default_factory=list)
    references: list[dict[str, Any]] = field(default_factory=list)
    reference_loss: float | None = None
    of: str = ""
    policy: str = ""
    context_length: int | str = ""
    sets: list[str] = field(default_factory=list)
    begins: str = ""  # `from`, which is a word of Python's

    @property
    def base(self) -> str:
        """The experiment that must have run before."""
        return self.of or self.begins


def read_file(path: Path) -> tuple[list[Experiment], dict[str, Any] | None]:
    """The experiments of a file, and the times of the author's program."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    author = content.pop("author", None)
    entries = content.pop("experiments", [])
    known = {entry.name for entry in fields(Experiment)} - {"begins"} | {"from"}
    experiments = []
    for entry in entries:
        merged = {**content, **entry}
        variants = merged.pop("variants", None)
        merged["overrides"] = content.get("overrides", []) + entry.get("overrides", [])
        if unknown := set(merged) - known:
            raise SystemExit(f"{path}: unknown keys {sorted(unknown)}; known: {sorted(known)}")
        if "name" not in entry:
            raise SystemExit(f"{path}: an experiment has no name")
        if "of" in entry:  # its loss is that of the other, and it trains nothing
            merged["reference_loss"] = None
        merged["begins"] = merged.pop("from", "")
        experiments += expand(Experiment(**merged), variants)
    names = [experiment.name for experiment in experiments]
    for experiment in experiments:
        if names.count(experiment.name) > 1:
            raise SystemExit(f"{path}: there are two experiments {experiment.name!r}")
        if experiment.base and experiment.base not in names:
            raise SystemExit(
                f"{path}: {experiment.name}: there is no experiment {experiment.base!r}"
            )
        if not (experiment.of or experiment.config):
            raise SystemExit(f"{path}: {experiment.name} needs a config")
    for experiment in experiments:
        depth(experiment, experiments)
    return experiments, author


def depth(experiment: Experiment, experiments: list[Experiment]) -> int:
    """How many experiments have to run before this one, each after the one before."""
    by_name = {entry.name: entry for entry in experiments}
    chain = [experiment.name]
    while experiment.base:
        experiment = by_name[experiment.base]
        if experiment.name in chain:
            raise SystemExit(f"{' -> '.join([*chain, experiment.name])}: leads back to itself")
        chain.append(experiment.name)
    return len(chain) - 1


def expand(experiment: Experiment, variants: dict[str, list[str]] | None) -> list[Experiment]:
    """An experiment's variants, or itself where there are none."""
    if variants is None:
        return [experiment]
    return [
        replace(
            experiment,
            name=f"{experiment.name}-{name}",
            overrides=experiment.overrides + overrides,
        )
        for name, overrides in variants.items()
    ]


def train(runner: Runner, options: argparse.Namespace, experiment: Experiment, seed: int) -> str:
    """Trains one seed to its end; an error text, or nothing."""
    folder = run_folder(options.output, experiment.name, seed)
    overrides = [*experiment.overrides, *options.overrides, f"seed={seed}"]
    if options.data is not None and experiment.sets:
        paths = [str(data_path(options.data, name)) for name in experiment.sets]
        overrides.append(f"pretraining.sets={json.dumps(paths)}")
    elif options.data is not None and experiment.data:
        overrides.append(f"dataset.path={data_path(options.data, experiment.data)}")
    if experiment.begins:
        origin = run_folder(options.output, experiment.begins, seed)
        if not Run(origin).finished:
            return f"{experiment.begins} seed {seed} has not finished"
        overrides.append(f"transfer.init_from={origin.resolve()}")
    asked = {"config": experiment.config, "overrides": overrides}
    note = folder.with_name(f"{folder.name}.json")
    if note.is_file() and json.loads(note.read_text(encoding="utf-8")) != asked:
        return (
            f"{folder} was made with other settings ({note}): remove both, "
            "or choose another folder with --output"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    write_json(note, asked)
    return runner.train(experiment.config, overrides, folder, options.evaluate)


def data_path(folder: Path, name: str) -> Path:
    """A dataset below --data: the folder of a game, or a file."""
    game = folder / name
    return (game if game.is_dir() else folder / f"{name}.hdf5").resolve()


def evaluate(
    runner: Runner, options: argparse.Namespace, experiment: Experiment, seed: int, base: Experiment
) -> str:
    """Evaluates the checkpoint of another experiment's run; an error text, or nothing."""
    run = run_folder(options.output, base.name, seed)
    folder = run_folder(options.output, experiment.name, seed)
    result = folder / "result.json"
    settings = {"policy": experiment.policy, "context_length": experiment.context_length}
    given = {key: str(value) for key, value in settings.items() if value}
    asked = {"of": str(run), **given}
    note = folder.with_name(f"{folder.name}.json")
    if note.is_file() and json.loads(note.read_text(encoding="utf-8")) != asked:
        return f"{folder} was made with other settings ({note}): remove both"
    if result.is_file():
        return ""
    if not Run(run).finished:
        return f"{base.name} seed {seed} has not finished"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(note, asked)
    arguments = [f"--{key.replace('_', '-')}={value}" for key, value in given.items()]
    return runner.run(["evaluate", str(run), *arguments, "--output", str(result)], folder)


def run_folder(output: Path, name: str, seed: int) -> Path:
    """Where an experiment's run, or a further evaluation of one, lies."""
    return output / "runs" / f"{name}-seed{seed}"


def run_all(experiments: list[Experiment], runner: Runner, options: argparse.Namespace) -> bool:
    """Brings every run to its end; whether all got there."""
    by_name = {experiment.name: experiment for experiment in experiments}

    def one(experiment: Experiment, seed: int) -> str:
        if experiment.of:
            return evaluate(runner, options, experiment, seed, by_name[experiment.of])
        return train(runner, options, experiment, seed)

    failures = []
    depths = [depth(experiment, experiments) for experiment in experiments]
    for phase in range(max(depths, default=0) + 1):  # what needs another's runs comes after them
        pairs = [
            (experiment, seed)
            for experiment, after in zip(experiments, depths, strict=True)
            if after == phase
            for seed in experiment.seeds
        ]

        def on_end(index: int, failure: str, pairs: list[tuple[Experiment, int]] = pairs) -> None:
            experiment, seed = pairs[index]
            print(f"{experiment.name} seed {seed}: {failure or 'done'}", flush=True)

        failures += runner.run_all([partial(one, *pair) for pair in pairs], on_end)
    return not any(failures)


def report(
    experiments: list[Experiment], author: dict[str, Any] | None, output: Path
) -> list[dict[str, Any]]:
    """Writes and prints the tables of what is finished."""
    results = []
    for experiment in experiments:
        # By row of the table: the experiment, or each of its sets.
        records: dict[str, dict[int, dict[str, Any]]] = {}
        for seed in experiment.seeds:
            folder = run_folder(output, experiment.name, seed)
            if Run(folder).complete:
                parts = sorted((folder / SETS).glob("*"))
                for part in parts:
                    name = f"{experiment.name} ({part.name})"
                    records.setdefault(name, {})[seed] = read_run(part)
                if not parts:
                    records.setdefault(experiment.name, {})[seed] = read_run(folder)
            elif (folder / "result.json").is_file():
                records.setdefault(experiment.name, {})[seed] = read_evaluation(
                    folder / "result.json"
                )
        for name, by_seed in (records or {experiment.name: {}}).items():
            results.append(
                summarize(
                    name,
                    by_seed,
                    experiment.seeds,
                    experiment.references,
                    experiment.reference_loss,
                    author,
                )
            )
    tables = format_tables(results)
    write_text(output / "results.md", tables + "\n")
    write_text(output / "results.csv", format_csv(results))
    write_json(output / "results.json", {"author": author, "experiments": results})
    print(f"\n{tables}\n\n{output / 'results.md'}", flush=True)
    return results


def main() -> int:
    """Runs what the command line asks for; 0 if every run is finished."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, metavar="FILE.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for every run, last")
    parser.add_argument("--seeds", nargs="+", type=int, help="in place of the file's")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of the datasets")
    parser.add_argument("--output", type=Path, metavar="DIR", help="(runs/reproduce-FILE)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these experiments")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time")
    parser.add_argument("--evaluate", default="auto", help="as for dmamba train")
    parser.add_argument(
        "--stop-after", type=float, metavar="SECONDS", help="stop all runs with a checkpoint"
    )
    options = parser.parse_intermixed_args()
    options.output = options.output or Path("runs") / f"reproduce-{options.file.stem}"
    experiments, author = read_file(options.file)
    if options.only:
        if unknown := set(options.only) - {e.name for e in experiments}:
            names = [e.name for e in experiments]
            raise SystemExit(f"no experiment {sorted(unknown)}; there are {names}")
        wanted = set(options.only)
        for _ in experiments:  # and what those need, and what that needs
            wanted |= {e.base for e in experiments if e.name in wanted}
        experiments = [e for e in experiments if e.name in wanted]
    if options.seeds:
        experiments = [replace(e, seeds=options.seeds) for e in experiments]
    options.output.mkdir(parents=True, exist_ok=True)
    with Runner(options.jobs) as runner:
        timer = threading.Timer(options.stop_after or 0, runner.stop)
        timer.daemon = True
        if options.stop_after:
            timer.start()
        complete = run_all(experiments, runner, options)
    report(experiments, author, options.output)
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
