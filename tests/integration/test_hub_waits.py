"""A hub that asks for patience: it is waited for aloud, for no longer than retry_minutes, and not past a signal."""

import signal
import time
from pathlib import Path

import pytest

from engine.events import read
from tests.helpers.hub_runs import QUESTIONS, of, on_hub, wait_for, write_preset
from tests.helpers.hub_server import Fault, HubServer
from tests.helpers.jobs import Job
from tests.helpers.processes import start_ranks
from tests.helpers.text import REPOSITORY

BPE = {"train_bpe": 512}
ALWAYS = 10**9
SECONDS_AT_ONCE = 10.0  # of a machine that does other things too


def busy(path: str, seconds: float, times: int = ALWAYS) -> Fault:
    return Fault(path, status=429, headers={"Retry-After": f"{seconds:.0f}"}, times=times)


QUICK_MAIN = f"""
import runpy, sys
from sources import retries
retries.FIRST_WAIT = 0.1  # so that the pauses are those that are asked for
sys.argv = ["main.py"]
runpy.run_path({str(REPOSITORY / "main.py")!r}, run_name="__main__")
"""


def start_on(hub: HubServer, home: Path, tmp_path: Path, script: str | Path = REPOSITORY / "main.py") -> Job:
    (process,) = start_ranks(script, cwd=home, processes=1, variables=on_hub(hub, tmp_path))
    job = Job(home, process)
    job.answer()
    return job


@pytest.mark.parametrize("path", ["/api/datasets/", "/tree/", "/resolve/", "/api/models/"])
def test_a_start_waits_aloud_and_a_signal_ends_it(path, hub, home: Path, topics_folder: Path, tmp_path: Path):
    """For the repository, its list of files, their contents, and a tokenizer."""
    tokenizer = "some/tokenizer" if path == "/api/models/" else BPE
    write_preset(home, topics_folder, [QUESTIONS], data={"tokenizer": tokenizer, "retry_minutes": 30})
    hub.faults.append(busy(path, 600))
    job = start_on(hub, home, tmp_path)
    events = wait_for(home, lambda events: bool(of(events, "retry")))
    (event,) = of(events, "retry")
    assert event["name"] == ("some/tokenizer" if path == "/api/models/" else "questions")
    assert "asks for fewer requests (error 429); retrying in 6" in event["message"]
    since = time.monotonic()
    job.signal(signal.SIGTERM)
    assert job.ends_within(SECONDS_AT_ONCE, since) < SECONDS_AT_ONCE and job.process.wait(5) == 143


def test_a_start_waits_for_as_long_as_it_is_asked_to(hub, home: Path, topics_folder: Path, tmp_path: Path):
    write_preset(home, topics_folder, [QUESTIONS], data={"tokenizer": BPE, "retry_minutes": 30})
    hub.faults += [busy(path, 1, times=1) for path in ("/api/datasets/", "/tree/", "/resolve/")]
    since = time.monotonic()
    job = start_on(hub, home, tmp_path, QUICK_MAIN)
    events = wait_for(home, lambda events: any(event["event"] == "step" for event in events))
    assert len(of(events, "retry")) == 3 and time.monotonic() - since >= 3.0
    job.signal(signal.SIGTERM)
    assert job.process.wait(30) == 143


@pytest.mark.slow
def test_a_start_gives_up_at_retry_minutes(hub, home: Path, topics_folder: Path, tmp_path: Path):
    """A source that is asked to wait is dropped then, and the run goes on with the others."""
    files = {"type": "files", "path": str(topics_folder), "glob": "*.txt", "name": "topics"}
    write_preset(home, topics_folder, [QUESTIONS, files], data={"tokenizer": BPE, "retry_minutes": 0.05})
    hub.faults.append(busy("/api/datasets/", 600))
    began = time.monotonic()
    job = start_on(hub, home, tmp_path)
    events = wait_for(home, lambda events: any(event["event"] == "step" for event in events))
    assert len(of(events, "retry")) <= 2 and time.monotonic() - began < 85
    output = job.signal(signal.SIGTERM)
    assert "source questions is dropped: " in job.output and "error 429" in job.output, output


def test_a_signal_ends_a_wait_in_mid_run(hub, home: Path, topics_folder: Path, tmp_path: Path):
    write_preset(home, topics_folder, [QUESTIONS], data={"tokenizer": BPE, "retry_minutes": 30})
    job = start_on(hub, home, tmp_path)
    wait_for(home, lambda events: sum(event["event"] == "step" for event in events) >= 2)
    hub.faults.append(busy("/resolve/", 600))
    (event, *_) = of(wait_for(home, lambda events: bool(of(events, "retry"))), "retry")
    assert "error 429); retrying at row" in event["message"]
    since = time.monotonic()
    job.signal(signal.SIGTERM)
    assert job.process.wait(30) == 143 and time.monotonic() - since < 2 * SECONDS_AT_ONCE
    assert any(event["event"] == "save" for event in read(home / "checkpoints"))
