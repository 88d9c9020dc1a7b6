#!/usr/bin/env python3
"""Slurm's commands as far as submitit and a sweep call them: jobs are processes of this machine.

It is put on the PATH under the names sbatch, squeue, sacct, scancel and srun. FAKE_SLURM is its
folder: calls.log has a line per call, jobs/ID the job's name, process group and state.
"""

import contextlib
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

HOME = Path(os.environ["FAKE_SLURM"])
JOBS = HOME / "jobs"


def sbatch(words):
    text = Path(words[-1]).read_text()
    options = dict(re.findall(r"#SBATCH --([\w-]+)=(.*)", text))
    number = len(list(HOME.glob("script-*"))) + 100
    script = HOME / f"script-{number}"
    script.write_text(text)
    last = re.match(r"0-(\d+)", options["array"])[1] if "array" in options else None
    for task in range(int(last) + 1) if last else [None]:
        job_id = str(number) if task is None else f"{number}_{task}"
        write(job_id, name=options["job-name"], state="PENDING", group=0)
    subprocess.Popen(
        [sys.executable, __file__, "controller", str(number)],
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    print(f"Submitted batch job {number}")


def controller(words):
    """One job of the array after the other, as on a cluster with one free node."""
    ids = sorted(path.name for path in JOBS.iterdir() if path.name.split("_")[0] == words[0])
    for job_id in ids:
        with locked():
            if read(job_id)["state"] != "PENDING":
                continue
            process = start(job_id)
            write(job_id, **read(job_id) | {"state": "RUNNING", "group": process.pid})
        code = process.wait()
        with locked():
            job = read(job_id)
            state = "COMPLETED" if code == 0 else "NODE_FAIL" if code < 0 else "FAILED"
            if job["state"] == "COMPLETING":
                state = "CANCELLED"
            write(job_id, **job | {"state": state})


def start(job_id):
    number, _, task = job_id.partition("_")
    variables = {"SLURM_JOB_ID": number}
    if task:
        variables |= {"SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": task}
    with open(HOME / f"output-{job_id}", "ab") as output:
        return subprocess.Popen(
            # With a trap bash outlives a signal to the group until what it has started has ended.
            ["bash", "-c", 'trap : TERM; . "$0"', HOME / f"script-{number}"],
            env=os.environ | variables,
            start_new_session=True,
            stdout=output,
            stderr=output,
        )


def srun(words):
    while words[0].startswith("-"):
        words = words[2:] if words[0] in ("--output", "--error") else words[1:]
    os.execvp(words[0], words)


def squeue(words):
    name = next(word.removeprefix("--name=") for word in words if word.startswith("--name="))
    for path in sorted(JOBS.iterdir()):
        job = read(path.name)
        if job["name"] == name and job["state"] in ("PENDING", "RUNNING", "COMPLETING"):
            print(path.name)


def sacct(words):
    print("JobID|State|NodeList")
    for path in sorted(JOBS.iterdir()):
        print(f"{path.name}|{read(path.name)['state']}|node1")


def scancel(words):
    """All at once, as the real one: no job begins because the one before it was cancelled."""
    with locked():
        for job_id in words:
            job = read(job_id)
            if job["state"] == "PENDING":
                write(job_id, **job | {"state": "CANCELLED"})
            elif job["state"] == "RUNNING":
                write(job_id, **job | {"state": "COMPLETING"})
                os.killpg(job["group"], signal.SIGTERM)


@contextlib.contextmanager
def locked():
    """While a state is looked at and changed."""
    with open(HOME / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def read(job_id):
    return json.loads((JOBS / job_id).read_text())


def write(job_id, **job):
    JOBS.mkdir(exist_ok=True)
    temporary = HOME / f"tmp-{os.getpid()}-{time.monotonic_ns()}"
    temporary.write_text(json.dumps(job))
    temporary.replace(JOBS / job_id)


if __name__ == "__main__":
    name, words = Path(sys.argv[0]).name, sys.argv[1:]
    if words[:1] == ["controller"]:
        name, words = words[0], words[1:]
    with open(HOME / "calls.log", "a") as log:
        log.write(f"{name} {' '.join(words)}\n")
    globals()[name](words)
