#!/usr/bin/env python3
"""Kills trainings, sweeps, conversions and recordings, starts them again, and compares.

Each is first run without a fault, which counts its calls on files (open, write, rename, fsync,
unlink, ...). A trial then starts it in a fresh folder and kills it (SIGKILL): before one of these
calls, in the middle of one, after a random time, or a moment after a SIGTERM; often several times.
What the kill has left is checked: no half file under a final name, and no logged step further from
the last checkpoint than one interval. Then the same command is given until it comes to its end. All
files have to be those of the run without a fault, bit for bit but for wall times, and no others.

With --every each call is tried once instead of random ones. Beside kills there are disks that
are full from a call on, and calls that fail with EIO: then the program has to end by itself with an
error that names the folder and says what to do.

  kills.py --kills 200                              random kills of everything
  kills.py --what train --every                     every call of every kind of training
  kills.py --what train --every --faults full,fail  full disks and failing calls
  kills.py --only plain --every --calls '^rename '  before each rename
  kills.py --device cuda --kills 20 --jobs 8        trainings on a GPU
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import faults
from faults import Fault

if TYPE_CHECKING:
    from subjects import Subject

SHARES = {  # of random kills; where something cannot be run here, the others have more
    "train": 140,
    "beside": 10,
    "sweep": 10,
    "convert": 12,
    "download": 8,
    "record": 14,
    "export": 6,
}
FAULTS = {"kill": faults.KILL, "half": faults.KILL_HALF, "full": faults.FULL, "fail": faults.FAIL}
MOST_STARTS = 8
SAYS_FULL = ("No space left", "no space left")
SAYS_WHAT_TO_DO = ("make room", "Make room", "let DMAMBA_DATA name", "choose another")


@dataclass(frozen=True)
class Plan:
    """One trial.

    Attributes:
        what: A word of ``--what``.
        subject: The name of a subject.
        seed: Of what is random in it.
        kind: ``kill``, ``half``, ``full``, ``fail``: a fault at a call; ``time``: a kill after a
            random time; ``term``: a SIGTERM then, and the kill a tenth of a second later.
        at: The call; 0 where it is drawn.
        again: The probability that a start after a kill is killed, too.
    """

    what: str
    subject: str
    seed: int
    kind: str
    at: int = 0
    again: float = 0.0


@dataclass
class Result:
    """What came of it.

    Attributes:
        plan: The trial.
        kills: How often it was killed, or had a fault.
        places: What the faults hit: call and file, in words that are the same in all runs.
        starts: How often it was started.
        seconds: All in all.
        wrong: What was wrong; empty where all is well.
    """

    plan: Plan
    kills: int = 0
    places: list[str] = field(default_factory=list)
    starts: int = 0
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)


class Trials:
    """Carries out plans.

    Args:
        subjects: By name.
        base: The folder that has been prepared by :meth:`prepare`.
        scratch: This process's own.
        power: Whether it is also held against power cuts; on a GPU the files are no others.
    """

    def __init__(
        self, subjects: dict[str, Subject], base: Path, scratch: Path, power: bool = False
    ) -> None:
        self.subjects = subjects
        self.base = base
        self.scratch = scratch
        self.power = power

    def prepare(self, subject: Subject) -> dict[str, Any]:
        """Runs a subject without a fault; returns its calls and seconds.

        Raises:
            RuntimeError: It fails, two runs differ, or a name is given before its content is safe.
        """
        import forks
        from comparing import difference, lost_by_a_power_cut

        whole = self.base / f"{subject.name}.whole"
        trace = self.base / f"{subject.name}.trace"
        outcome = forks.run(lambda: subject.start(whole), self.scratch, whole, trace=trace)
        if not outcome.done:
            raise RuntimeError(f"{subject.name} fails without a fault: {outcome}")
        if self.power and (lost := lost_by_a_power_cut(trace)):
            raise RuntimeError(f"{subject.name}, where the power fails: {lost}")
        if hasattr(subject, "remember"):
            place = self.base / f"{subject.name}.all"
            kept = forks.run(lambda: subject.remember(place), self.scratch, place)
            if not kept.done:
                raise RuntimeError(f"{subject.name} fails without a fault: {kept}")
        again = self.scratch / "again"
        outcome = forks.run(lambda: subject.start(again), self.scratch, again)
        differs = difference(subject.picture(again), subject.picture(whole))
        if differs or not outcome.done:
            raise RuntimeError(f"{subject.name} is not the same twice: {differs or outcome}")
        shutil.rmtree(again)
        return {"calls": outcome.seen.count, "seconds": outcome.seconds}

    def execute(self, plan: Plan, known: dict[str, Any]) -> Result:
        """One trial, from an empty folder to the comparison."""
        result = Result(plan)
        started = time.monotonic()
        place = self.scratch / "place"
        shutil.rmtree(place, ignore_errors=True)
        try:
            self._execute(plan, known, place, result)
        except Exception:
            result.wrong.append(traceback.format_exc())
        result.seconds = time.monotonic() - started
        if not result.wrong:
            shutil.rmtree(place, ignore_errors=True)
        elif place.exists():
            kept = self.base / f"failed-{plan.subject}-{plan.kind}-{plan.at}-{plan.seed}"
            shutil.copytree(place, kept, dirs_exist_ok=True)
        return result

    def _execute(self, plan: Plan, known: dict[str, Any], place: Path, result: Result) -> None:
        import forks
        from comparing import difference

        drawn = random.Random(plan.seed)
        subject = self.subjects[plan.subject]
        pending, done = True, False
        while not done:
            if result.starts == MOST_STARTS:
                result.wrong.append(f"not done after {MOST_STARTS} starts")
                return
            result.starts += 1
            how = self._how(plan, known, drawn, first=result.kills == 0) if pending else {}
            outcome = forks.run(lambda: subject.start(place), self.scratch, place, **how)
            done = outcome.done
            # SIGTERM ends by itself what is not training yet, or no longer.
            killed = outcome.signal in (signal.SIGKILL, signal.SIGTERM) and not outcome.hung
            hit = outcome.seen.hits > 0
            stopped = "stopped by SIGTERM" in outcome.error
            if hit:
                result.places.append(_describe(outcome.seen, place))
            elif killed or stopped:
                result.places.append("at a random time")
            if killed or hit or stopped:
                result.kills += 1
            result.wrong += _judge(plan, outcome, place, subject.own)
            if result.wrong:
                result.wrong.append(outcome.output)
                return
            if killed:
                result.wrong += subject.check(place)
            elif outcome.error:
                result.wrong += subject.check_error(place)
            if result.wrong:
                return
            if killed or hit or stopped:
                pending = drawn.random() < plan.again and result.kills < MOST_STARTS - 2
            elif pending and done:  # the kill came too late: another run
                if plan.at:
                    return
                shutil.rmtree(place)
                done = False
                result.starts -= 1
        differs = difference(subject.picture(place), self._wanted(subject))
        if plan.kind == "term":  # its checkpoint lies between the others
            differs = [line for line in differs if not line.startswith("checkpoints/step-0000000")]
            differs = [line for line in differs if "checkpoints/step-0000001" not in line]
            differs = [line for line in differs if "checkpoints/step-0000002" not in line]
        result.wrong += differs

    def _wanted(self, subject: Subject) -> dict[str, str]:
        found: dict[str, str] = json.loads((self.base / f"{subject.name}.json").read_text())
        return found

    def _how(
        self, plan: Plan, known: dict[str, Any], drawn: random.Random, first: bool
    ) -> dict[str, Any]:
        """The arguments of a start that is to be killed."""
        subject = self.subjects[plan.subject]
        if plan.kind in FAULTS:
            at = plan.at if first and plan.at else drawn.randint(1, known["calls"])
            return {"fault": Fault(FAULTS[plan.kind], at)}
        how = {"after": drawn.uniform(0.0, 1.1 * known["seconds"])}
        if subject.group:
            how["group"] = drawn.random() < 0.5
        if plan.kind == "term":
            how["first"] = signal.SIGTERM
        return how


def _describe(seen: faults.Seen, place: Path) -> str:
    return f"{seen.call} {os.path.relpath(seen.path, place)}"


def _judge(plan: Plan, outcome: Any, place: Path, own: str) -> list[str]:
    """What is wrong with how a start has ended; of its own files it may say what it likes."""
    if outcome.hung:
        return ["it hangs"]
    if outcome.signal not in (0, signal.SIGKILL, signal.SIGTERM if plan.kind == "term" else 0):
        return [f"it died of signal {outcome.signal}"]
    if not outcome.error:
        return []
    if plan.kind == "term" and "stopped by SIGTERM" in outcome.error:
        return []
    if not outcome.expected:
        return [f"an error in the program: {outcome.error}"]
    if not outcome.seen.hits:
        return [f"an error without a fault: {outcome.error}"]
    if own and (own in outcome.error or own in outcome.seen.path):
        return []
    wrong = []
    if str(place) not in outcome.error:
        wrong.append(f"the error names no file: {outcome.error}")
    if plan.kind == "full" and not any(words in outcome.error for words in SAYS_FULL):
        wrong.append(f"the error does not say that the disk is full: {outcome.error}")
    if plan.kind == "full" and not any(words in outcome.error for words in SAYS_WHAT_TO_DO):
        wrong.append(f"the error does not say what to do: {outcome.error}")
    return wrong


def main() -> int:
    """The command."""
    arguments = _parse()
    faults.preload()
    import subjects as making

    base = Path(tempfile.mkdtemp(prefix="kills-", dir=arguments.keep)).resolve()
    try:
        return _campaign(arguments, base, making.make(base, arguments.device))
    finally:
        if arguments.keep is None:
            shutil.rmtree(base, ignore_errors=True)
        shutil.rmtree(Path(os.environ["FAULTS_LIBRARY"]).parent)


def _campaign(arguments: argparse.Namespace, base: Path, all_subjects: dict[str, Any]) -> int:
    import subjects as making

    started = time.monotonic()
    chosen = {what: all_subjects[what] for what in arguments.what or all_subjects}
    if arguments.only:
        chosen = {
            what: kept
            for what, several in chosen.items()
            if (kept := [each for each in several if each.name in arguments.only])
        }
    by_name = {each.name: each for several in chosen.values() for each in several}
    names = list(by_name)
    making.import_for(by_name.values())

    def prepare(name: str) -> dict[str, Any]:
        trials = Trials(by_name, base, base / f"scratch-{name}", arguments.device == "cpu")
        known = trials.prepare(by_name[name])
        pictured = by_name[name].picture(base / f"{name}.whole")
        (base / f"{name}.json").write_text(json.dumps(pictured))
        return {"name": name, **known}

    known: dict[str, dict[str, Any]] = {}
    for found in _spread(prepare, names, arguments.jobs):
        known[found["name"]] = found
        print(f"{found['name']}: {found['calls']} calls, {found['seconds']:.1f} s", flush=True)
    plans = _plans(arguments, chosen, base)
    by_place = {number: plan for number, plan in enumerate(plans)}

    def execute(number: int) -> dict[str, Any]:
        plan = by_place[number]
        trials = Trials(by_name, base, base / f"scratch-{os.getpid()}")
        return asdict(trials.execute(plan, known[plan.subject]))

    results = []
    for found in _spread(execute, list(by_place), arguments.jobs):
        plan = Plan(**found.pop("plan"))
        result = Result(plan, **found)
        results.append(result)
        if result.wrong:
            print(f"WRONG {plan}\n  places {result.places}", flush=True)
            for line in result.wrong:
                print("  " + line.replace("\n", "\n  "), flush=True)
        elif len(results) % 20 == 0:
            kills = sum(each.kills for each in results)
            seconds = time.monotonic() - started
            print(
                f"{len(results)} of {len(plans)} trials, {kills} faults, {seconds:.0f} s",
                flush=True,
            )
    return _report(results, time.monotonic() - started)


def _chosen(trace: Path, pattern: str) -> list[int]:
    """The numbers of the calls that a pattern finds in ``CALL PATH``."""
    found = []
    for line in trace.read_text().splitlines():
        number, _, call, path, _ = line.split("\t")
        if re.search(pattern, f"{call} {os.path.relpath(path, trace.with_suffix('.whole'))}"):
            found.append(int(number))
    return found


def _plans(arguments: argparse.Namespace, chosen: dict[str, Any], base: Path) -> list[Plan]:
    drawn = random.Random(arguments.seed)
    if arguments.every:
        return [
            Plan(what, each.name, drawn.randrange(1 << 30), kind, at)
            for kind in arguments.faults
            for what, several in chosen.items()
            for each in several
            for at in _chosen(base / f"{each.name}.trace", arguments.calls)[:: arguments.stride]
        ]
    kinds = [kind for kind in arguments.faults if kind in ("kill", "half")]
    errors = [kind for kind in arguments.faults if kind not in ("kill", "half")]
    total = sum(SHARES[what] for what in chosen)
    plans = []
    for what, several in chosen.items():
        count = max(1, round(arguments.kills * SHARES[what] / total))
        for number in range(count):
            each = several[number % len(several)]
            offered = kinds + errors
            if kinds:
                offered = offered + ["time", "time"]
                if what in ("train", "beside"):
                    offered = offered + ["term"]
            kind = drawn.choice(offered)
            plans.append(Plan(what, each.name, drawn.randrange(1 << 30), kind, again=0.3))
    drawn.shuffle(plans)
    return plans


def _spread(function: Any, tasks: list[Any], jobs: int) -> Any:
    """Yields the results of a function, which forked processes call; as they come."""
    read, write = os.pipe()
    workers = []
    for job in range(min(jobs, len(tasks))):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.close(read)
                for task in tasks[job::jobs]:
                    line = json.dumps(function(task)).encode() + b"\n"
                    os.write(write, len(line).to_bytes(4, "little") + line)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        workers.append(pid)
    os.close(write)
    with open(read, "rb") as stream:
        while head := stream.read(4):
            yield json.loads(stream.read(int.from_bytes(head, "little")))
    codes = [os.waitpid(pid, 0)[1] for pid in workers]
    if any(codes):
        raise RuntimeError("a process of the campaign has failed")


def _report(results: list[Result], seconds: float) -> int:
    print(f"\n{'what':12s} {'fault':6s} {'trials':>6s} {'faults':>6s} {'wrong':>6s}")
    groups: dict[tuple[str, str], list[Result]] = collections.defaultdict(list)
    for result in results:
        groups[result.plan.subject, result.plan.kind].append(result)
    for (subject, kind), several in sorted(groups.items()):
        kills = sum(each.kills for each in several)
        wrong = sum(bool(each.wrong) for each in several)
        print(f"{subject:12s} {kind:6s} {len(several):6d} {kills:6d} {wrong:6d}")
    kills = sum(each.kills for each in results)
    wrong = sum(bool(each.wrong) for each in results)
    print(f"{len(results)} trials, {kills} faults, {wrong} wrong, {seconds:.0f} s")
    return 1 if wrong else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    words = lambda text: text.split(",")  # noqa: E731
    parser.add_argument("--kills", type=int, default=200, help="random trials (200)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--jobs", type=int, default=2, help="trials at a time (2)")
    parser.add_argument("--what", type=words, help=f"some of {','.join(SHARES)}")
    parser.add_argument("--only", type=words, help="subjects by name, such as plain,own")
    parser.add_argument("--every", action="store_true", help="every call once, none at random")
    parser.add_argument("--calls", metavar="REGEX", default="", help="with --every: of these calls")
    parser.add_argument("--stride", type=int, default=1, help="with --every: each so many calls")
    parser.add_argument(
        "--faults", type=words, default=["kill", "half"], help="of kill,half,full,fail (kill,half)"
    )
    parser.add_argument("--keep", metavar="DIR", help="where failed trials are kept")
    arguments = parser.parse_args()
    for name, given, known in (
        ("--what", arguments.what or [], SHARES),
        ("--faults", arguments.faults, FAULTS),
    ):
        for word in given:
            if word not in known:
                parser.error(f"{name}: no {word!r}; there are {', '.join(known)}")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
