"""Training runs with a fault at one of their saves, and a server that forks them.

    python -m tests.faults.worker JOB.json    one run; also under torchrun
    python -m tests.faults.worker             a server: a job a line on standard input, its outcome a line on the output

Importing torch and DeepSpeed takes seconds, a run of the tiny preset half of one. The server imports everything once,
before there is any thread pool, and forks a process for each rank of a job.
"""

import contextlib
import gc
import hashlib
import importlib
import json
import os
import resource
import shutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from engine import train
from engine.checkpoint import background
from engine.checkpoint.folder import CheckpointFolder
from engine.config import parse_preset
from engine.data.batches import Batches
from engine.device.ranks import join, leave
from engine.errors import RunError
from tests import faults
from tests.helpers.processes import LIBRARIES


@dataclass
class Job:
    """One run. Its fault begins with the save of step `at_step`, or the first one, and ends `for_saves` saves later."""

    folder: str  # the checkpoints
    record: str  # a folder for record.jsonl, calls.log and output.txt
    preset: dict[str, Any]
    token_budget: int
    world_size: int = 1
    at_step: int = 0
    for_saves: int = 1
    action: int | None = None  # a faults.Action at file call `number`; rank 0 makes them
    number: int = 0
    error: int = 0
    kinds: tuple[str, ...] = faults.KINDS
    file_size: int | None = None  # RLIMIT_FSIZE in bytes
    filler: str | None = None  # a folder made to fill the disk but for so many bytes, or so many files
    free_bytes: int | None = None
    free_files: int | None = None
    remove: bool = False  # the folder
    hold: float = 0.0  # seconds that this save rests before it begins
    kill_after: float | None = None  # seconds until `kill_ranks` get a SIGKILL, from the start on
    kill_in_save: bool = False  # or, if so, from the begin of this save on
    kill_ranks: tuple[int, ...] = (0,)
    rows: bool = False  # note the digest of each batch
    output: str | None = None  # where standard output goes instead of record/output.txt
    timeout: float = 120.0


@dataclass
class Outcome:
    """How a job ended: each rank's exit status, negative for a signal; `hung` had to be killed at the timeout."""

    statuses: list[int]
    seconds: float
    hung: bool


class Faults:
    """Stands before CheckpointFolder.save: records each save's begin and end, begins and ends the job's fault."""

    def __init__(self, job: Job, save: Callable[..., Path]):
        self.job, self.save = job, save
        self.number, self.begun_at = 0, None  # saves so far, and which of them the fault began with

    def __call__(self, folder: CheckpointFolder, snapshot: Any, *state: Any) -> Path:
        self.number += 1
        job, step = self.job, snapshot.progress["step"]
        if self.begun_at is not None and self.number == self.begun_at + job.for_saves:
            self._end()
        with faults.unseen():
            files = digests(folder.folder)
        self.note("begin", step=step, files=files)
        if self.begun_at is None and step >= job.at_step:
            self.begun_at = self.number
            self._begin()
        try:
            path = self.save(folder, snapshot, *state)
        except Exception as error:
            self.note("failed", step=step, error=str(error))
            raise
        self.note("end", step=step)
        return path

    def _begin(self) -> None:
        job = self.job
        time.sleep(job.hold)
        if job.remove:
            shutil.rmtree(job.folder)
        if job.file_size is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (job.file_size, resource.RLIM_INFINITY))
        if job.filler is not None:
            fill(Path(job.filler), job.free_bytes, job.free_files)
        if job.action is not None:
            log = Path(job.record, "calls.log")
            faults.arm(Path(job.folder), log, job.number, faults.Action(job.action), job.error, tuple(job.kinds))

    def _end(self) -> None:
        job = self.job
        if job.action is not None:
            faults.disarm()
        if job.file_size is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        if job.filler is not None:
            shutil.rmtree(job.filler)

    def note(self, event: str, **values: Any) -> None:
        line = json.dumps({"event": event, "save": self.number, **values}) + "\n"
        with Path(self.job.record, "record.jsonl").open("a") as file:
            file.write(line)


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every snapshot and state; what is hidden is still being written."""
    paths = [path for path in folder.rglob("*.pt*") if not path.name.startswith(".")]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def noting_rows(next_batch: Callable[..., Any], note: Callable[..., None]) -> Callable[..., Any]:
    """Batches.next, with a note of what each batch holds."""

    def next_and_note(*arguments: Any) -> Any:
        batch, agreed = next_batch(*arguments)
        if batch is not None:
            rows = batch.input_ids.numpy().tobytes() + batch.labels.numpy().tobytes()
            note("rows", rank=int(os.environ["RANK"]), digest=hashlib.sha256(rows).hexdigest())
        return batch, agreed

    return next_and_note


def fill(folder: Path, free_bytes: int | None, free_files: int | None) -> None:
    """Leaves only so much of the disk that `folder`, which must not exist yet, is on."""
    folder.mkdir()
    disk = os.statvfs(folder)
    if free_bytes is not None:
        with (folder / "bytes").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, disk.f_bavail * disk.f_frsize - free_bytes)
    if free_files is not None:
        for number in range(disk.f_favail - free_files):
            (folder / str(number)).touch()


def run(job: Job) -> int:
    """The job's training, in this process; returns the exit status as main.py would."""
    torch.set_num_threads(1)
    background.RETRY_SECONDS, background.FINAL_RETRY_SECONDS = 0.0, 0.1
    save = Faults(job, CheckpointFolder.save)
    CheckpointFolder.save = lambda *arguments: save(*arguments)
    if job.rows:
        Batches.next = noting_rows(Batches.next, save.note)
    ranks = join()
    save.note("joined", rank=ranks.rank, pid=os.getpid())
    try:
        result = train(parse_preset(job.preset), token_budget=job.token_budget, checkpoint_dir=job.folder, ranks=ranks)
        with contextlib.suppress(OSError):  # where the output's disk is full
            print(result, flush=True)
        return 0
    except RunError as error:
        print(error, flush=True)
        return error.status
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        leave()


def fork(job: Job, rank: int, port: int) -> int:
    """Starts one rank of the job; returns its process id."""
    child = os.fork()
    if child:
        return child
    try:
        output = os.open(job.output or Path(job.record, "output.txt"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(job.world_size))
        status = run(job)
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(status)
    finally:
        os._exit(1)


def execute(job: Job) -> Outcome:
    """Forks the job's ranks, kills those that are to be killed, and waits for all."""
    begin = time.monotonic()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pids = [fork(job, rank, port) for rank in range(job.world_size)]
    statuses: dict[int, int] = {}
    killer, hung = Killer(job), False
    while len(statuses) < len(pids):
        hung = hung or time.monotonic() - begin > job.timeout
        if hung or killer.is_due():
            for rank in range(job.world_size) if hung else job.kill_ranks:
                if pids[rank] not in statuses:
                    os.kill(pids[rank], signal.SIGKILL)
        time.sleep(0.001)
        for pid in set(pids) - statuses.keys():
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                statuses[pid] = os.waitstatus_to_exitcode(status)
    return Outcome([statuses[pid] for pid in pids], time.monotonic() - begin, hung)


class Killer:
    """Tells once when a job's ranks are to be killed."""

    def __init__(self, job: Job):
        self.job, self.since, self.done = job, time.monotonic(), job.kill_after is None
        self.waits_for_save = job.kill_in_save

    def is_due(self) -> bool:
        if self.done:
            return False
        if self.waits_for_save:
            begun = [line for line in read_record(self.job) if line["event"] == "begin"]
            self.waits_for_save = all(line["step"] < self.job.at_step for line in begun)
            self.since = time.monotonic()
        self.done = not self.waits_for_save and time.monotonic() - self.since >= self.job.kill_after
        return self.done


def read_record(job: Job) -> list[dict[str, Any]]:
    """What a run has noted so far: each save's begin and end, and each rank's process id."""
    path = Path(job.record, "record.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def serve() -> None:
    for module in LIBRARIES:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # a collection in a forked process would copy all that was imported
    for line in sys.stdin:
        print(json.dumps(asdict(execute(Job(**json.loads(line))))), flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        status = run(Job(**json.loads(Path(sys.argv[1]).read_text())))
        sys.stdout.flush()
        os._exit(status)
    serve()
