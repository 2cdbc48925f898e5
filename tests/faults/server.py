"""The other side of tests/faults/worker.py: runs jobs through one fork server, or through torchrun."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import psutil

from tests import faults
from tests.faults.worker import Job, Killer, Outcome, read_record
from tests.helpers.processes import environment
from tests.helpers.text import REPOSITORY


class Server:
    """A fork server; close() ends it once the run under way has ended."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.worker"],
            cwd=REPOSITORY,
            env=environment(**faults.preloaded()),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def run(self, job: Job) -> Outcome:
        Path(job.record).mkdir(parents=True, exist_ok=True)
        self.process.stdin.write(json.dumps(asdict(job)) + "\n")
        self.process.stdin.flush()
        return Outcome(**json.loads(self.process.stdout.readline()))

    def close(self) -> None:
        self.process.communicate()


def torchrun(job: Job) -> Outcome:
    """The job's ranks as torchrun starts them; the one status is the launcher's."""
    record = Path(job.record)
    record.mkdir(parents=True, exist_ok=True)
    (record / "job.json").write_text(json.dumps(asdict(job)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={job.world_size}"]
    command += ["-m", "tests.faults.worker", str(record / "job.json")]
    begin = time.monotonic()
    with (record / "output.txt").open("a") as output:
        launcher = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=environment(**faults.preloaded(), TMPDIR=str(record)),  # torchrun leaves a folder there
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    killer, hung = Killer(job), False
    while launcher.poll() is None:
        if killer.is_due():
            pids = {line["rank"]: line["pid"] for line in read_record(job) if line["event"] == "joined"}
            for rank in job.kill_ranks:
                os.kill(pids[rank], signal.SIGKILL)
        if time.monotonic() - begin > job.timeout and not hung:
            hung = True
            ranks = psutil.Process(launcher.pid).children(recursive=True)  # in sessions of their own
            for process in [launcher, *ranks]:
                process.kill()
        time.sleep(0.01)
    return Outcome([launcher.returncode], time.monotonic() - begin, hung)
