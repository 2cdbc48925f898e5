"""Signals to a run of one process: what is saved, what is said, and that nobody is left."""

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine import train
from engine.errors import Interrupted
from tests.helpers.folders import equal, events_of, newest, whole
from tests.helpers.jobs import STEP_LINE, Job, configure, reported_steps, saved_steps
from tests.helpers.training import start_main

SECONDS_TO_SAVE = 20.0
SECONDS_AT_ONCE = 10.0


@pytest.fixture
def begin(home: Path) -> Iterator[Callable[..., Job]]:
    """Starts main.py on the tiny preset with `changes` to its train, model and data sections."""
    jobs = []

    def begin_job(answer: str | None = "\n", **sections: dict) -> Job:
        configure(home, **sections)
        job = Job(home, start_main(home))
        jobs.append(job)
        if answer is not None:
            job.answer(answer)
        return job

    timer = threading.Timer(170.0, lambda: [job.kill() for job in jobs])  # rather than a test that hangs
    timer.start()
    yield begin_job
    timer.cancel()
    for job in jobs:
        job.kill()
        job.process.wait(10)


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGINT,
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, marks=pytest.mark.slow),  # the terminal is gone
    ],
)
def test_a_signal_during_steps_saves_and_leaves_nobody_behind(begin, home: Path, number: signal.Signals):
    """Also one that comes twice within a moment, as `timeout` sends it: to the process, and to the group it is in."""
    job = begin(data={"num_workers": 2})
    job.until(STEP_LINE, times=2)
    assert len(job.everybody()) > 1, "data workers"
    since = time.monotonic()
    job.process.send_signal(number)
    time.sleep(0.1)
    rest = job.signal(number)
    job.ends_within(SECONDS_TO_SAVE, since)
    assert job.process.returncode == 128 + number
    assert f"{number.name} at step" in rest and "the next start continues from there" in rest
    assert saved_steps(home) == reported_steps(home)


@pytest.mark.slow
def test_a_long_step_is_given_up_and_the_step_before_it_is_saved(begin, home: Path):
    job = begin(train={"accumulation_steps": 2000})
    job.until(STEP_LINE)
    time.sleep(1.0)
    since = time.monotonic()
    rest = job.signal(signal.SIGTERM)
    job.ends_within(SECONDS_TO_SAVE, since)
    assert job.process.returncode == 143 and "SIGTERM at step 1;" in rest, job.output
    assert saved_steps(home) == 1


@pytest.mark.slow
def test_an_evaluation_is_given_up(begin, home: Path):
    job = begin(
        model={"hidden_size": 512, "num_layers": 4, "num_heads": 8, "seq_length": 128},
        train={"per_gpu_batch_size": 1, "eval_tokens": 20_000, "eval_interval_tokens": 256},
    )
    job.until(STEP_LINE)
    time.sleep(0.3)
    since = time.monotonic()
    rest = job.signal(signal.SIGTERM)
    job.ends_within(SECONDS_TO_SAVE, since)
    assert job.process.returncode == 143 and "SIGTERM at step 1;" in rest, job.output
    assert not events_of(home / "checkpoints", "evaluation")
    assert saved_steps(home) == 1


def test_while_the_menu_waits_a_signal_leaves_at_once(begin):
    job = begin(answer=None)
    while not job.process.poll() and not _handles(job.process.pid, signal.SIGTERM):
        time.sleep(0.05)
    since = time.monotonic()
    job.signal(signal.SIGINT)
    job.ends_within(SECONDS_AT_ONCE, since)
    assert job.process.returncode == 130
    assert job.output.endswith("stopped: SIGINT before the first step; there was nothing to save.\n")


def test_before_the_first_step_is_done_a_signal_leaves_at_once(begin, home: Path):
    job = begin(train={"accumulation_steps": 4000}, data={"num_workers": 1})
    job.until("  Run 1 of tiny")
    time.sleep(0.5)
    since = time.monotonic()
    rest = job.signal(signal.SIGTERM)
    job.ends_within(SECONDS_AT_ONCE, since)
    assert job.process.returncode == 143
    assert "SIGTERM before the first step; there was nothing to save." in rest and "Traceback" not in rest
    assert saved_steps(home) == 0


@pytest.mark.slow
def test_during_compilation_a_signal_leaves_at_once(begin, home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(home / "compiled"))
    job = begin(train={"compile": True}, model={"hidden_size": 64, "num_layers": 6})
    job.until("  Run 1 of tiny")
    while len(job.everybody()) == 1:  # until a C++ compiler runs
        time.sleep(0.1)
    since = time.monotonic()
    rest = job.signal(signal.SIGTERM)
    job.ends_within(SECONDS_AT_ONCE, since)
    assert job.process.returncode == 143
    assert "SIGTERM before the first step" in rest and "Traceback" not in rest

    job = begin(train={"compile": True}, model={"hidden_size": 64, "num_layers": 6})
    job.until(STEP_LINE)  # what a killed compiler left behind is not used
    assert "uncompiled" not in job.output


@pytest.mark.slow
def test_the_second_signal_leaves_at_once(begin, home: Path):
    """Within a micro-batch of stage 3, which is not given up, so the first one has to wait."""
    job = begin(
        model={"hidden_size": 256, "num_layers": 4, "num_heads": 4, "seq_length": 128},
        train={"per_gpu_batch_size": 96, "accumulation_steps": 1, "zero_stage": 3, "eval_interval_tokens": 10**7},
    )
    job.until(STEP_LINE)
    time.sleep(0.5)
    job.process.send_signal(signal.SIGTERM)
    time.sleep(0.7)  # no echo any more
    since = time.monotonic()
    rest = job.signal(signal.SIGTERM)
    job.ends_within(SECONDS_AT_ONCE, since)
    assert job.process.returncode == 143
    assert "SIGTERM again at step 1; the next start continues from the last snapshot." in rest, job.output
    assert saved_steps(home) == 0


# As a library


def test_a_step_given_up_leaves_no_trace(tiny, tmp_path: Path):
    """Not in the losses by which sources and rows are weighed either."""
    auxiliary = {
        "enable_adaptive_sources": True,
        "adaptive_interval_tokens": 2 * 40 * 256,
        "enable_curriculum": True,
        "curriculum_burn_in_tokens": 0,
        "curriculum_interval_tokens": 2 * 40 * 256,
    }
    preset = tiny(train={"accumulation_steps": 40, "eval_interval_tokens": 10**7}, auxiliary=auxiliary)
    undisturbed, parts, budget = tmp_path / "undisturbed", tmp_path / "parts", 6 * 40 * 256
    train(preset, token_budget=budget, checkpoint_dir=undisturbed)
    seconds_per_step = 40 * 256 / events_of(undisturbed, "step")[0]["tokens_per_second"]

    def interrupt() -> None:
        while len(events_of(parts, "step")) < 3:
            time.sleep(0.01)
        time.sleep(seconds_per_step / 2)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(Interrupted):
        train(preset, token_budget=budget, checkpoint_dir=parts)
    train(preset, token_budget=budget, checkpoint_dir=parts)
    assert newest(parts).snapshot.progress["step"] == newest(undisturbed).snapshot.progress["step"] >= 6
    assert equal(whole(parts), whole(undisturbed))


def test_train_undoes_everything_also_outside_the_main_thread(tiny, tmp_path: Path):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    preset = tiny(train={"eval_interval_tokens": 10**7})
    for run in range(2):
        train(preset, token_budget=1024, checkpoint_dir=tmp_path / str(run))
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
        assert not [thread for thread in threading.enumerate() if thread.name in ("signals", "health")]
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
    return caught is not None and bool(int(caught[1], 16) >> (number - 1) & 1)
