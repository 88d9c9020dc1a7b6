"""Every run a job of Slurm, submitted by submitit as one array.

    SWEEP/slurm/jobs.json    the job of each run: a sweep that is started again attaches to them
    SWEEP/slurm/ID_*         what submitit keeps of a job

A job whose time is over is put into the queue again by submitit, with a checkpoint. A sweep that
is killed leaves its jobs alone; Ctrl-C cancels them, which stops them with checkpoints.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dmamba import _C
from dmamba.common.files import read_json, write_json
from dmamba.engines.base import Engine, Training
from dmamba.engines.runner import STOPPED, failure_of

POLL_SECONDS = 0.5  # a look at the jobs' result files
QUEUE_SECONDS = 15.0  # a call of squeue, for the jobs that leave no result
_OURS = ("name", "job_name", "nodes", "tasks_per_node", "ntasks_per_node")


class _Job:
    """What submitit calls on the node."""

    def __init__(self, run: Training) -> None:
        self.run = run
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> str:
        if self.run.finished:
            return ""
        self._process = self.run.start()
        return failure_of(self._process.wait(), self.run.folder)

    def checkpoint(self) -> Any:
        """Called by submitit in the handler of Slurm's warning: what to do when started again."""
        from submitit.helpers import DelayedSubmission

        if self._process is not None and self._process.returncode is None:
            # Not Popen's functions: this handler may have interrupted one that holds their lock.
            os.kill(self._process.pid, signal.SIGTERM)
            os.waitpid(self._process.pid, 0)
        return DelayedSubmission(_Job(self.run))


class Slurm(Engine):
    """The engine of a cluster under Slurm.

    Args:
        options: submitit's parameters, with ``slurm_`` or without: ``time`` (minutes; must be
            given), ``partition``, ``cpus_per_task``, ``gpus_per_node``, ``mem_gb``, ``setup``...
        jobs: Runs at a time at most; None: submitit's ``array_parallelism``, 256.
        device: Not used: the nodes' matter.
        folder: The sweep's.
    """

    def __init__(
        self, options: Mapping[str, Any], jobs: int | None, device: str, folder: Path
    ) -> None:
        super().__init__()
        try:
            import submitit
        except ImportError as error:
            raise _C.ConfigError(
                f"engine slurm needs the package submitit ({error}): pip install 'dmamba[slurm]'"
            ) from None
        self._submitit = submitit
        self._folder = folder.absolute() / "slurm"
        self._executor = self._make_executor(options, jobs)

    def __enter__(self) -> Slurm:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._record = self._read_record()
        self._executor.update_parameters(name=self._record["name"])
        super().__enter__()
        return self

    def describe(self) -> str:
        """Under which name the jobs are."""
        return f"as jobs of Slurm named {self._record['name']}"

    def run_all(self, runs: Sequence[Training], on_end: Callable[[int, str], None]) -> list[str]:
        """Submits what is not in the queue yet, and waits for all."""
        jobs = self._attach_or_submit(runs)
        failures = [STOPPED] * len(runs)
        gone: set[str] = set()  # ids that squeue did not have, the last time
        asked, looked = False, time.monotonic()
        while jobs:
            ended = {}
            for index, job in jobs.items():
                if job.paths.result_pickle.is_file():
                    ended[index] = self._failure(job, runs[index])
            if self.stopping.is_set() and not asked:
                asked = True
                subprocess.run(["scancel", *(job.job_id for job in jobs.values())], check=False)
            if time.monotonic() - looked > (POLL_SECONDS if asked else QUEUE_SECONDS):
                looked = time.monotonic()
                before, gone = gone, self._gone(jobs.values())
                for index, job in jobs.items():
                    # The second time: its result may take a while to be seen on this machine.
                    if job.job_id in before & gone and index not in ended:
                        ended[index] = self._failure(job, runs[index])
            for index, failure in ended.items():
                del jobs[index]
                failures[index] = failure
                on_end(index, failure)
            if jobs and not ended:
                time.sleep(POLL_SECONDS)
        return failures

    def _gone(self, jobs: Iterable[Any]) -> set[str]:
        """Ids of jobs that have left the queue; none while Slurm does not answer."""
        try:
            return {job.job_id for job in jobs} - self._queue()
        except _C.Error:
            return set()

    def _make_executor(self, options: Mapping[str, Any], jobs: int | None) -> Any:
        given = {name.removeprefix("slurm_"): value for name, value in options.items()}
        ours = [name for name in given if name in _OURS]
        if ours:
            raise _C.ConfigError(f"engine slurm chooses {', '.join(ours)} itself: a job is one run")
        time_limit = given.get("time", given.get("timeout_min"))
        if isinstance(time_limit, bool) or not isinstance(time_limit, int) or time_limit < 1:
            raise _C.ConfigError(
                "engine slurm: give the time limit of a run in whole minutes, such as "
                f"--slurm time=60; got {time_limit!r}"
            )
        if jobs is not None:
            given["array_parallelism"] = jobs
        restarts = given.pop("max_num_timeout", None)
        make = {} if restarts is None else {"slurm_max_num_timeout": restarts}
        try:
            executor = self._submitit.AutoExecutor(self._folder, cluster="slurm", **make)
        except RuntimeError as error:
            raise _C.ConfigError(f"engine slurm: {error}") from None
        # A name that submitit has for all clusters stays as it is; one of Slurm alone is prefixed.
        shared = executor._valid_parameters()
        parameters = {
            name if name in shared else f"slurm_{name}": value for name, value in given.items()
        }
        try:
            executor.update_parameters(**parameters)
        except (NameError, AssertionError, ValueError, TypeError) as error:
            raise _C.ConfigError(f"engine slurm: {error}") from None
        return executor

    def _read_record(self) -> dict[str, Any]:
        path = self._folder / "jobs.json"
        if path.is_file():
            record: dict[str, Any] = read_json(
                path, "Cancel the sweep's jobs with scancel, if any are queued, and remove the file"
            )
            return record
        # The name is this folder's alone: by it squeue finds jobs whose ids were not written down.
        return {"name": f"{self._folder.parent.name}-{uuid.uuid4().hex[:8]}", "jobs": {}}

    def _attach_or_submit(self, runs: Sequence[Training]) -> dict[int, Any]:
        """The job of each run, by its index."""
        known: dict[str, str] = self._record["jobs"]
        queued = self._without_unknown() if known or "submitting" in self._record else set()
        jobs = {}
        for index, run in enumerate(runs):
            job_id = known.get(run.folder.name)
            if job_id in queued:
                job = self._submitit.SlurmJob(self._folder, job_id)
                if not job.paths.result_pickle.is_file():  # else it is about to leave the queue
                    jobs[index] = job
        new = [index for index in range(len(runs)) if index not in jobs]
        if new and not self.stopping.is_set():
            self._write_record(submitting=True)
            try:
                made = self._executor.submit_array([_Job(runs[index]) for index in new])
            except self._submitit.core.utils.FailedJobError as error:
                raise _C.ConfigError(f"engine slurm: sbatch has failed: {error}") from None
            for index, job in zip(new, made, strict=True):
                jobs[index] = job
                known[runs[index].folder.name] = job.job_id
            self._write_record()
        return jobs

    def _write_record(self, **more: bool) -> None:
        write_json(self._folder / "jobs.json", self._record | more)

    def _without_unknown(self) -> set[str]:
        """The queue, less the jobs of a sweep that was killed before it had their ids.

        submitit has not given those what to do, so they can only fail.
        """
        known = set(self._record["jobs"].values())
        self._record.pop("submitting", None)
        queued = self._queue()
        if queued - known:
            subprocess.run(["scancel", *sorted(queued - known)], check=True)
        while queued - known and not self.stopping.is_set():
            time.sleep(POLL_SECONDS)
            queued = self._queue()
        return queued

    def _queue(self) -> set[str]:
        """The ids of this sweep's jobs that wait or run.

        Raises:
            Error: squeue has failed.
        """
        command = ["squeue", "--noheader", "--array", "--format=%i"]
        command.append(f"--name={self._record['name']}")
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        if found.returncode != 0:
            raise _C.Error(f"{' '.join(command)} has failed: {found.stderr.strip()}")
        return set(found.stdout.split())

    def _failure(self, job: Any, run: Training) -> str:
        """What came of a job that has ended."""
        if run.finished:
            return ""
        where = f"Slurm job {job.job_id}"
        if job.paths.result_pickle.is_file():
            outcome, result = self._submitit.core.utils.pickle_load(job.paths.result_pickle)
            if outcome == "success":
                return str(result)
            return f"{where}: {result.strip().splitlines()[-1]} ({job.paths.stderr})"
        if self.stopping.is_set():
            return STOPPED
        return f"{where} has ended without a result, {job.state} ({job.paths.stderr})"
