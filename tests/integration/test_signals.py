"""Signals, launchers that die and ranks that are lost, with real processes: what is saved, who speaks, who is left."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from engine import train
from engine.checkpoint.folder import CURRENT, CheckpointFolder
from engine.errors import Interrupted
from engine.events import read
from tests.helpers.jobs import STEP_LINE, Job, configure
from tests.helpers.text import REPOSITORY
from tests.helpers.training import TORCHRUN, environment, start_main

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


@pytest.fixture
def start(home: Path) -> Iterator[Callable[..., Job]]:
    """Starts main.py on the tiny preset with `changes` to its train, model and data sections."""
    jobs = []

    def start_job(*launcher: str, answer: str | None = "\n", **sections: dict) -> Job:
        configure(home, **sections)
        job = Job(home, start_main(home, *launcher))
        jobs.append(job)
        if answer is not None:
            job.process.stdin.write(answer)
            job.process.stdin.close()
        return job

    timer = threading.Timer(170.0, lambda: [job.kill() for job in jobs])  # rather than a test that hangs
    timer.start()
    yield start_job
    timer.cancel()
    for job in jobs:
        job.kill()
        job.process.wait(10)


def start_ranks(home: Path, script: str = IMPATIENT_MAIN) -> list[Job]:
    """Two ranks of a script without a launcher, rank 0 with the store, which soon miss each other."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    jobs = []
    for rank in range(2):
        variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        process = subprocess.Popen(
            [sys.executable, "-c", script, "main.py"],
            cwd=home,
            env=environment() | {name: str(value) for name, value in variables.items()},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        jobs.append(Job(home, process))
    return jobs


@pytest.fixture
def long_steps(home: Path) -> None:
    configure(home, train={"accumulation_steps": 4000})


@pytest.fixture
def two_ranks(home: Path) -> Iterator[list[Job]]:
    jobs = start_ranks(home)
    timer = threading.Timer(120.0, jobs[0].kill)
    timer.start()
    yield jobs
    timer.cancel()
    jobs[0].kill()
    for job in jobs:
        job.process.wait(10)


def saved_steps(home: Path) -> int:
    """The step of the newest snapshot, which is whole."""
    restored = CheckpointFolder(home / "checkpoints").newest()
    assert restored.optimizer is not None and restored.data is not None
    return restored.snapshot.progress["step"]


def reported_steps(home: Path) -> int:
    return max(event["step"] for event in read(home / "checkpoints") if event["event"] == "step")


# One process


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGINT,
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, marks=pytest.mark.slow),  # the terminal is gone
    ],
)
def test_a_signal_during_steps_saves_and_leaves_nobody_behind(start, home: Path, number: signal.Signals):
    job = start(data={"num_workers": 2})
    job.until(STEP_LINE)
    assert len(job.everybody()) == 3, "data workers"
    since = time.monotonic()
    job.process.send_signal(number)
    rest = job.rest()
    job.ends_within(SECONDS_TO_SAVE, since)
    assert job.process.returncode == 128 + number
    assert f"{number.name} at step" in rest and "the next start continues from there" in rest
    assert saved_steps(home) == reported_steps(home)


@pytest.mark.slow
def test_a_long_step_is_given_up_and_the_step_before_it_is_saved(start, home: Path):
    job = start(train={"accumulation_steps": 2000})
    job.until(STEP_LINE)
    time.sleep(1.0)
    since = time.monotonic()
    job.process.send_signal(signal.SIGTERM)
    rest = job.rest()
    job.ends_within(SECONDS_TO_SAVE, since)
    assert job.process.returncode == 143 and "SIGTERM at step 1;" in rest, job.output
    assert saved_steps(home) == 1


@pytest.mark.slow
def test_an_evaluation_is_given_up(start, home: Path):
    job = start(
        model={"hidden_size": 256, "num_layers": 4, "num_heads": 4, "seq_length": 128},
        train={"per_gpu_batch_size": 1, "eval_tokens": 20_000, "eval_interval_tokens": 256},
    )
    job.until(STEP_LINE)
    time.sleep(0.3)
    since = time.monotonic()
    job.process.send_signal(signal.SIGTERM)
    rest = job.rest()
    job.ends_within(SECONDS_TO_SAVE, since)
    assert job.process.returncode == 143 and "SIGTERM at step 1;" in rest, job.output
    assert "validation" not in rest
    assert saved_steps(home) == 1


def test_while_the_menu_waits_a_signal_leaves_at_once(start):
    job = start(answer=None)
    while not job.process.poll() and not _handles(job.process.pid, signal.SIGTERM):
        time.sleep(0.1)
    since = time.monotonic()
    job.process.send_signal(signal.SIGINT)
    job.rest()
    job.ends_within(SECONDS_AT_ONCE, since)
    assert job.process.returncode == 130
    assert job.output == "stopped: SIGINT before the first step; there was nothing to save.\n"


def test_before_the_first_step_is_done_a_signal_leaves_at_once(start, home: Path):
    job = start(train={"accumulation_steps": 4000}, data={"num_workers": 1})
    job.until("^Run 1 of tiny")
    time.sleep(2.0)
    since = time.monotonic()
    job.process.send_signal(signal.SIGTERM)
    rest = job.rest()
    job.ends_within(SECONDS_AT_ONCE, since)
    assert job.process.returncode == 143
    assert "SIGTERM before the first step; there was nothing to save." in rest and "Traceback" not in rest
    assert saved_steps(home) == 0


@pytest.mark.slow
def test_during_compilation_a_signal_leaves_at_once(start, home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(home / "compiled"))
    job = start(train={"compile": True}, model={"hidden_size": 64, "num_layers": 6})
    job.until("^Run 1 of tiny")
    while len(job.everybody()) == 1:  # until a C++ compiler runs
        time.sleep(0.1)
    since = time.monotonic()
    job.process.send_signal(signal.SIGTERM)
    rest = job.rest()
    job.ends_within(SECONDS_AT_ONCE, since)
    assert job.process.returncode == 143
    assert "SIGTERM before the first step" in rest and "Traceback" not in rest

    job = start(train={"compile": True}, model={"hidden_size": 64, "num_layers": 6})
    job.until(STEP_LINE)  # what a killed compiler left behind is not used
    assert "uncompiled" not in job.output


def test_a_signal_that_is_repeated_within_a_moment_is_one_signal(start, home: Path):
    """As `timeout` sends it: to the process, and to the group that it is in."""
    job = start()
    job.until(STEP_LINE)
    job.until(STEP_LINE)
    job.process.send_signal(signal.SIGTERM)
    time.sleep(0.1)
    job.process.send_signal(signal.SIGTERM)
    assert "SIGTERM at step" in job.rest(), job.output
    assert job.process.wait() == 143 and saved_steps(home) == reported_steps(home)


@pytest.mark.slow
def test_the_second_signal_leaves_at_once(start, home: Path):
    """In mid-pass of stage 3, which is not given up, so the first one has to wait."""
    job = start(
        model={"hidden_size": 256, "num_layers": 4, "num_heads": 4, "seq_length": 128},
        train={"per_gpu_batch_size": 96, "accumulation_steps": 1, "zero_stage": 3, "eval_interval_tokens": 10**7},
    )
    job.until(STEP_LINE)
    time.sleep(0.5)
    job.process.send_signal(signal.SIGTERM)
    time.sleep(0.7)  # no echo any more
    since = time.monotonic()
    job.process.send_signal(signal.SIGTERM)
    rest = job.rest()
    job.ends_within(SECONDS_AT_ONCE, since)
    assert job.process.returncode == 143
    assert "SIGTERM again at step 1; the next start continues from the last snapshot." in rest, job.output
    assert saved_steps(home) == 0


# Several


@pytest.mark.parametrize("target", ["one rank", pytest.param("the launcher", marks=pytest.mark.slow)])
def test_a_signal_to_one_of_them_is_a_signal_to_all(start, home: Path, target: str):
    job = start(sys.executable, *TORCHRUN, data={"num_workers": 1})
    job.until(STEP_LINE)
    job.until(STEP_LINE)  # so that the first one is done on all ranks
    since = time.monotonic()
    (job.rank(1) if target == "one rank" else job.process).send_signal(signal.SIGTERM)
    rest = job.rest()
    job.ends_within(SECONDS_TO_SAVE, since)
    assert len(re.findall("SIGTERM at step", rest)) == 1 and "the next start continues from there" in rest, rest
    assert saved_steps(home) == reported_steps(home)


@pytest.mark.slow
def test_a_signal_to_a_rank_that_does_not_write_ends_a_run_whose_disk_is_full(start, home: Path):
    job = start(sys.executable, *TORCHRUN)
    job.until("^saved .* at 0 tokens")
    job.until(STEP_LINE)
    job.until(STEP_LINE)
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


RESTARTS = """
import os, signal, sys
from engine.screen.console import Console
from engine.device.ranks import Ranks
from engine.control.signals import watch_signals
import torch
with watch_signals(Ranks(0, 1, torch.device("cpu"), None), Console()) as watch:
    watch.training(lambda: "at step 3")
    if sys.argv[1] == "before":
        os.kill(os.getpid(), signal.SIGTERM)
    watch.restart()
    os.kill(os.getpid(), signal.SIGTERM)
    signal.pause()
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_signal_during_a_rollback_ends_at_once(when: str):
    """Also one that came in the attempt that diverged."""
    command = [sys.executable, "-c", RESTARTS, when]
    finished = subprocess.run(
        command, env=environment(), cwd=REPOSITORY, capture_output=True, text=True, timeout=SECONDS_AT_ONCE + 20
    )
    assert finished.returncode == 143 and "SIGTERM before the first step" in finished.stdout, finished


def test_before_the_first_step_a_signal_to_one_rank_ends_all_at_once(long_steps, two_ranks: list[Job], home: Path):
    two_ranks[0].until("^Run 1 of tiny")
    since = time.monotonic()
    two_ranks[1].process.send_signal(signal.SIGTERM)
    rest = two_ranks[0].rest()
    two_ranks[0].ends_within(SECONDS_AT_ONCE, since)
    assert [job.process.wait() for job in two_ranks] == [143, 143]
    assert "SIGTERM before the first step; there was nothing to save." in rest and "Traceback" not in rest
    assert not two_ranks[1].rest(), "rank 0 speaks"


ENDS_WITHIN_A_COLLECTIVE = """
import os, signal
import torch
import torch.distributed as dist
from engine.control import health
from engine.screen.console import Console
from engine.device.ranks import join
from engine.control.signals import watch_signals
health.POLL_SECONDS = 2.0  # so that the broken connection is noticed before the other rank's word is
ranks = join()
with watch_signals(ranks, Console(enabled=ranks.is_main)):
    dist.barrier()
    if ranks.rank == 1:
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    dist.all_reduce(torch.zeros(1))
"""


def test_a_rank_that_waits_for_one_that_a_signal_ended_has_its_status(home: Path):
    jobs = start_ranks(home, ENDS_WITHIN_A_COLLECTIVE)
    said = jobs[0].rest()
    assert [job.process.wait() for job in jobs] == [143, 143], said
    assert said.count("SIGTERM before the first step; there was nothing to save.") == 1 and "Traceback" not in said


@pytest.mark.slow
def test_ranks_give_up_a_long_step_together(start, home: Path):
    job = start(sys.executable, *TORCHRUN, train={"accumulation_steps": 1500})
    job.until(STEP_LINE)
    time.sleep(1.0)
    since = time.monotonic()
    job.rank(1).send_signal(signal.SIGTERM)
    rest = job.rest()
    job.ends_within(SECONDS_TO_SAVE, since)
    assert "SIGTERM at step 1;" in rest, rest
    assert saved_steps(home) == 1


def test_a_launcher_that_is_killed_leaves_no_ranks_behind(start, home: Path):
    job = start(sys.executable, *TORCHRUN, data={"num_workers": 1})
    job.until(STEP_LINE)
    job.until(STEP_LINE)  # so that the first one is done on all ranks
    since = time.monotonic()
    job.process.kill()
    rest = job.rest()
    job.ends_within(SECONDS_TO_SAVE, since)
    assert "SIGTERM at step" in rest and "Traceback" not in rest, rest
    assert saved_steps(home) == reported_steps(home)


@pytest.mark.slow
def test_a_deepspeed_runner_that_dies_leaves_no_ranks_behind(start, home: Path):
    """It does not pass a SIGTERM on."""
    job = start(str(Path(sys.executable).parent / "deepspeed"), "--num_gpus=2")
    job.until(STEP_LINE)
    since = time.monotonic()
    job.process.send_signal(signal.SIGTERM)
    rest = job.rest()
    job.ends_within(SECONDS_TO_SAVE, since)
    assert "SIGTERM at step" in rest and "Traceback" not in rest, rest
    assert saved_steps(home) == reported_steps(home)


@pytest.mark.slow
def test_a_rank_killed_under_a_launcher_ends_all(start, home: Path):
    job = start(sys.executable, *TORCHRUN, data={"num_workers": 1})
    job.until(STEP_LINE)
    since = time.monotonic()
    job.rank(1).kill()
    rest = job.rest()
    job.ends_within(2 * SECONDS_TO_SAVE, since)
    assert "Rank 1 was lost (its connection closed) at step" in rest, rest
    assert "engine/run/trainer.py" not in rest, "a traceback"
    assert saved_steps(home) == 0


@pytest.mark.parametrize("lost", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_killed_rank_ends_the_other_with_a_sentence(two_ranks: list[Job], lost: int):
    two_ranks[0].until(STEP_LINE)
    since = time.monotonic()
    two_ranks[lost].process.kill()
    rest = two_ranks[1 - lost].rest()
    two_ranks[0].ends_within(SECONDS_TO_SAVE, since)
    assert two_ranks[1 - lost].process.wait() == 7
    assert f"Rank {lost} was lost (its connection closed) at step" in rest and "Traceback" not in rest, rest


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_rank_that_hangs_ends_the_other_with_a_sentence(two_ranks: list[Job], lost: int):
    two_ranks[0].until(STEP_LINE)
    since = time.monotonic()
    two_ranks[lost].process.send_signal(signal.SIGSTOP)
    rest = two_ranks[1 - lost].rest()
    assert two_ranks[1 - lost].process.wait() == 7
    assert time.monotonic() - since < SECONDS_TO_SAVE
    assert re.search(rf"Rank {lost} was lost \(no sign for \d s\) at step", rest) and "Traceback" not in rest, rest
    two_ranks[lost].process.send_signal(signal.SIGCONT)  # if it ever wakes up again, it does not go on alone
    two_ranks[lost].rest()
    assert two_ranks[lost].process.wait(SECONDS_TO_SAVE) == 7


@pytest.mark.slow
def test_a_job_that_was_stopped_as_a_whole_goes_on(two_ranks: list[Job]):
    """Ctrl-Z, and fg after longer than a rank is missed."""
    two_ranks[0].until(STEP_LINE)
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for job in two_ranks:
            job.process.send_signal(number)
        time.sleep(2 * SECONDS_TO_MISS_A_RANK)
    two_ranks[1].process.send_signal(signal.SIGTERM)
    assert "SIGTERM at step" in two_ranks[0].rest(), two_ranks[0].output
    assert [job.process.wait(SECONDS_TO_SAVE) for job in two_ranks] == [143, 143]


@pytest.mark.slow
def test_the_second_signal_leaves_at_once_when_a_rank_holds_up_the_save(two_ranks: list[Job], home: Path):
    two_ranks[0].until(STEP_LINE)
    two_ranks[1].process.send_signal(signal.SIGSTOP)
    two_ranks[0].process.send_signal(signal.SIGTERM)
    time.sleep(3.5)  # before that, it is an echo
    since = time.monotonic()
    two_ranks[0].process.send_signal(signal.SIGTERM)
    rest = two_ranks[0].rest()
    assert two_ranks[0].process.wait() == 143
    assert time.monotonic() - since < SECONDS_AT_ONCE
    assert "SIGTERM again at step" in rest, rest
    two_ranks[1].process.send_signal(signal.SIGCONT)
    two_ranks[0].ends_within(SECONDS_TO_SAVE, since)
    assert saved_steps(home) == 0


# As a library


def test_a_step_given_up_leaves_no_trace(tiny, tmp_path: Path):
    """Not in the losses by which sources and rows are weighed either."""
    auxiliary = {
        "enable_adaptive_sources": True,
        "adaptive_interval_tokens": 3 * 40 * 256,
        "enable_curriculum": True,
        "curriculum_burn_in_tokens": 0,
        "curriculum_interval_tokens": 3 * 40 * 256,
    }
    preset = tiny(train={"accumulation_steps": 40, "eval_interval_tokens": 10**7}, auxiliary=auxiliary)
    whole, parts, budget = tmp_path / "whole", tmp_path / "parts", 8 * 40 * 256
    train(preset, token_budget=budget, checkpoint_dir=whole)
    seconds_per_step = next(40 * 256 / e["tokens_per_second"] for e in read(whole) if e["event"] == "step")

    def interrupt() -> None:
        while sum(event["event"] == "step" for event in read(parts)) < 4:
            time.sleep(0.01)
        time.sleep(seconds_per_step / 2)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(Interrupted):
        train(preset, token_budget=budget, checkpoint_dir=parts)
    train(preset, token_budget=budget, checkpoint_dir=parts)
    ours, theirs = (CheckpointFolder(folder).newest() for folder in (parts, whole))
    assert ours.snapshot.progress["step"] == theirs.snapshot.progress["step"] == 8
    assert ours.data == theirs.data
    weights = [torch.load(folder / CURRENT, weights_only=True)["model"] for folder in (parts, whole)]
    assert all(torch.equal(weights[0][name], tensor) for name, tensor in weights[1].items())


def test_train_undoes_everything_and_works_outside_the_main_thread(tiny, tmp_path: Path):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    preset = tiny(train={"eval_interval_tokens": 10**7})
    for run in range(2):
        train(preset, token_budget=1024, checkpoint_dir=tmp_path / str(run))
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
        assert not [thread for thread in threading.enumerate() if thread.name in ("signals", "peers")]
    results = []
    thread = threading.Thread(
        target=lambda: results.append(train(preset, token_budget=1024, checkpoint_dir=tmp_path / "thread"))
    )
    thread.start()
    thread.join(60)
    assert results[0].tokens == 1024


def _handles(pid: int, number: signal.Signals) -> bool:
    """Whether a process has set a handler for a signal."""
    caught = re.search(r"^SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return bool(int(caught.group(1), 16) >> (number - 1) & 1)
