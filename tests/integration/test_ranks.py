"""Signals to one of several ranks, launchers that die, ranks that are lost: what is saved, who speaks, who is left."""

import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.folders import progress
from tests.helpers.jobs import STEP_LINE, Job, configure, reported_steps, saved_steps
from tests.helpers.processes import TORCHRUN, start, start_ranks
from tests.helpers.text import REPOSITORY
from tests.helpers.training import TOKENS_PER_STEP, start_main

SECONDS_TO_SAVE = 20.0
SECONDS_AT_ONCE = 10.0
SECONDS_TO_MISS_A_RANK = 4.0

IMPATIENT_MAIN = f"""
import runpy, sys
from engine.control import health, signals
health.LOST_SECONDS, signals.GRACE_SECONDS = {SECONDS_TO_MISS_A_RANK}, 2.0
sys.argv = ["main.py"]
runpy.run_path({str(REPOSITORY / "main.py")!r}, run_name="__main__")
"""

FORKED_TORCHRUN = f"""
import runpy, sys
sys.argv = ["torchrun", "--nproc_per_node=2", {str(REPOSITORY / "main.py")!r}]
runpy.run_module("torch.distributed.run", run_name="__main__")
"""


@pytest.fixture
def launch(home: Path) -> Iterator[Callable[..., Job]]:
    """Starts main.py on the tiny preset by a launcher, with `changes` to its sections."""
    jobs = []

    def launch_job(*launcher: str, **sections: dict) -> Job:
        configure(home, **sections)
        forked = launcher == (FORKED_TORCHRUN,)
        jobs.append(Job(home, start(FORKED_TORCHRUN, cwd=home) if forked else start_main(home, *launcher)))
        jobs[-1].answer()
        return jobs[-1]

    timer = threading.Timer(170.0, lambda: [job.kill() for job in jobs])  # rather than a test that hangs
    timer.start()
    yield launch_job
    timer.cancel()
    for job in jobs:
        job.kill()
        job.process.wait(10)


@pytest.fixture
def two_ranks(home: Path) -> Iterator[Callable[..., list[Job]]]:
    """Starts two ranks without a launcher, rank 0 with the store, which soon miss each other."""
    jobs: list[Job] = []

    def start_jobs(script: str = IMPATIENT_MAIN, **sections: dict) -> list[Job]:
        configure(home, **sections)
        jobs.extend(Job(home, process) for process in start_ranks(script, cwd=home, processes=2))
        for job in jobs:
            job.answer()
        return jobs

    timer = threading.Timer(120.0, lambda: jobs[0].kill())
    timer.start()
    yield start_jobs
    timer.cancel()
    jobs[0].kill()
    for job in jobs:
        job.process.wait(10)


# Signals


def test_a_signal_to_one_rank_is_a_signal_to_all(two_ranks, home: Path):
    jobs = two_ranks(data={"num_workers": 1})
    jobs[0].until(STEP_LINE, times=2)  # so that the first one is done on all ranks
    since = time.monotonic()
    assert "SIGTERM" not in jobs[1].signal(signal.SIGTERM), "rank 0 speaks"
    rest = jobs[0].rest()
    jobs[0].ends_within(SECONDS_TO_SAVE, since)
    assert [job.process.wait() for job in jobs] == [143, 143]
    assert rest.count("SIGTERM at step") == 1 and "the next start continues from there" in rest, rest
    assert saved_steps(home) == reported_steps(home)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["one rank", "the launcher"])
def test_under_a_launcher_a_signal_to_one_is_a_signal_to_all(launch, home: Path, target: str):
    job = launch(sys.executable, *TORCHRUN, data={"num_workers": 1})
    job.until(STEP_LINE, times=2)
    since = time.monotonic()
    (job.rank(1) if target == "one rank" else job.process).send_signal(signal.SIGTERM)
    rest = job.rest()
    job.ends_within(SECONDS_TO_SAVE, since)
    assert rest.count("SIGTERM at step") == 1 and "the next start continues from there" in rest, rest
    assert saved_steps(home) == reported_steps(home)


@pytest.mark.slow
def test_a_signal_ends_a_run_whose_disk_is_full(launch, home: Path):
    """Also one to a rank that does not write."""
    job = launch(sys.executable, *TORCHRUN)
    job.until("  saved .* at 0 tokens")
    job.until(STEP_LINE, times=2)
    state = home / "checkpoints" / "state"
    state.rename(home / "checkpoints" / "elsewhere")
    state.write_text("in the way")  # as a full disk, to a save
    since = time.monotonic()
    job.rank(1).send_signal(signal.SIGTERM)
    rest = job.rest()
    job.ends_within(SECONDS_TO_SAVE, since)
    assert re.search("stopped: .*could not be written.*The snapshots before it are untouched", rest), rest
    state.unlink()
    (home / "checkpoints" / "elsewhere").rename(state)
    assert saved_steps(home) == 0


def test_before_the_first_step_a_signal_to_one_rank_ends_all(two_ranks):
    jobs = two_ranks(train={"accumulation_steps": 4000})
    jobs[0].until("  Run 1 of tiny")
    since = time.monotonic()
    assert not jobs[1].signal(signal.SIGTERM), "rank 0 speaks"
    rest = jobs[0].rest()
    jobs[0].ends_within(SECONDS_AT_ONCE, since)
    assert [job.process.wait() for job in jobs] == [143, 143]
    assert "SIGTERM before the first step; there was nothing to save." in rest and "Traceback" not in rest


ENDS_WITHIN_A_COLLECTIVE = """
import os, signal
import torch
import torch.distributed as dist
from engine.control import health
from engine.control.signals import watch_signals
from engine.device.ranks import join
from engine.screen.console import Console
health.POLL_SECONDS = 2.0  # so that the broken connection is noticed before the other rank's word is
health.STORE_SECONDS = 10.0  # and that word is sent all the same
ranks = join()
with watch_signals(ranks, Console(enabled=ranks.is_main)):
    dist.barrier()
    if ranks.rank == 1:
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    dist.all_reduce(torch.zeros(1))
"""


def test_a_rank_that_waits_for_a_signalled_one_has_its_status(two_ranks):
    jobs = two_ranks(ENDS_WITHIN_A_COLLECTIVE)
    said = jobs[0].rest()
    assert [job.process.wait() for job in jobs] == [143, 143], said
    assert said.count("SIGTERM before the first step; there was nothing to save.") == 1 and "Traceback" not in said


@pytest.mark.slow
def test_ranks_give_up_a_long_step_together(two_ranks, home: Path):
    jobs = two_ranks(train={"accumulation_steps": 1500})
    jobs[0].until(STEP_LINE)
    time.sleep(1.0)
    since = time.monotonic()
    jobs[1].signal(signal.SIGTERM)
    rest = jobs[0].rest()
    jobs[0].ends_within(SECONDS_TO_SAVE, since)
    assert "SIGTERM at step 1;" in rest, rest
    assert saved_steps(home) == 1


@pytest.mark.slow
def test_the_second_signal_does_not_wait_for_a_rank_that_hangs(two_ranks, home: Path):
    jobs = two_ranks()
    jobs[0].until(STEP_LINE)
    jobs[1].process.send_signal(signal.SIGSTOP)
    jobs[0].process.send_signal(signal.SIGTERM)
    time.sleep(3.5)  # before that, it is an echo
    since = time.monotonic()
    rest = jobs[0].signal(signal.SIGTERM)
    assert jobs[0].process.wait() == 143
    assert time.monotonic() - since < SECONDS_AT_ONCE
    assert "SIGTERM again at step" in rest, rest
    jobs[1].process.send_signal(signal.SIGCONT)
    jobs[0].ends_within(SECONDS_TO_SAVE, since)
    assert saved_steps(home) == 0


# Launchers


def test_a_launcher_that_is_killed_leaves_no_ranks_behind(launch, home: Path):
    job = launch(FORKED_TORCHRUN, data={"num_workers": 1})
    job.until(STEP_LINE, times=2)  # so that the first one is done on all ranks
    since = time.monotonic()
    rest = job.signal(signal.SIGKILL)
    job.ends_within(SECONDS_TO_SAVE, since)
    assert "SIGTERM at step" in rest and "Traceback" not in rest, rest
    assert "2 processes" in job.output and job.output.count("Preset 00_tiny") == 1, "only rank 0 prints"
    assert saved_steps(home) == reported_steps(home)
    saved = progress(home / "checkpoints")
    assert saved["tokens_total"] == saved["step"] * 2 * TOKENS_PER_STEP


@pytest.mark.slow
def test_a_deepspeed_runner_that_dies_leaves_no_ranks_behind(launch, home: Path):
    """It does not pass a SIGTERM on."""
    job = launch(str(Path(sys.executable).parent / "deepspeed"), "--num_gpus=2")
    job.until(STEP_LINE)
    since = time.monotonic()
    rest = job.signal(signal.SIGTERM)
    job.ends_within(SECONDS_TO_SAVE, since)
    assert "SIGTERM at step" in rest and "Traceback" not in rest, rest
    assert saved_steps(home) == reported_steps(home)


@pytest.mark.slow
def test_a_rank_killed_under_a_launcher_ends_all(launch, home: Path):
    job = launch(sys.executable, *TORCHRUN, data={"num_workers": 1})
    job.until(STEP_LINE)
    since = time.monotonic()
    job.rank(1).kill()
    rest = job.rest()
    job.ends_within(2 * SECONDS_TO_SAVE, since)
    assert "Rank 1 was lost (its connection closed) at step" in rest, rest
    assert "engine/run/trainer.py" not in rest, "a traceback"
    assert saved_steps(home) == 0


# Lost ranks


@pytest.mark.parametrize("lost", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_killed_rank_ends_the_other_with_a_sentence(two_ranks, lost: int):
    jobs = two_ranks()
    jobs[0].until(STEP_LINE)
    since = time.monotonic()
    jobs[lost].process.kill()
    rest = jobs[1 - lost].rest()
    jobs[0].ends_within(SECONDS_TO_SAVE, since)
    assert jobs[1 - lost].process.wait() == 7
    assert f"Rank {lost} was lost (its connection closed) at step" in rest and "Traceback" not in rest, rest


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_rank_that_hangs_ends_the_other_with_a_sentence(two_ranks, lost: int):
    jobs = two_ranks()
    jobs[0].until(STEP_LINE)
    since = time.monotonic()
    jobs[lost].process.send_signal(signal.SIGSTOP)
    rest = jobs[1 - lost].rest()
    assert jobs[1 - lost].process.wait() == 7
    assert time.monotonic() - since < SECONDS_TO_SAVE
    assert re.search(rf"Rank {lost} was lost \(no heartbeat for \d s\) at step", rest) and "Traceback" not in rest, rest
    jobs[lost].process.send_signal(signal.SIGCONT)  # if it ever wakes up again, it does not go on alone
    jobs[lost].rest()
    assert jobs[lost].process.wait(SECONDS_TO_SAVE) == 7


@pytest.mark.slow
def test_a_job_that_was_stopped_as_a_whole_goes_on(two_ranks):
    """Ctrl-Z, and fg after longer than a rank is missed."""
    jobs = two_ranks()
    jobs[0].until(STEP_LINE)
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for job in jobs:
            job.process.send_signal(number)
        time.sleep(2 * SECONDS_TO_MISS_A_RANK)
    jobs[1].process.send_signal(signal.SIGTERM)
    assert "SIGTERM at step" in jobs[0].rest(), jobs[0].output
    assert [job.process.wait(SECONDS_TO_SAVE) for job in jobs] == [143, 143]
