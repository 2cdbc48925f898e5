"""Runs of several processes, compared with one; and by the launchers."""

import os
import signal
import sys
from pathlib import Path

import pytest

from tests.helpers.folders import progress
from tests.helpers.jobs import STEP_LINE, Job
from tests.helpers.processes import TORCHRUN
from tests.helpers.training import TOKENS_PER_STEP, by_step, start_main, train_with


@pytest.mark.slow
def test_two_processes_train_what_one_does(tiny, tmp_path: Path):
    """The same rows in the same steps, so the same losses but for the order of sums; and each continues the other."""
    alone = tiny(train={"per_gpu_batch_size": 8})
    shared = tiny(train={"per_gpu_batch_size": 4})
    budget = 12 * TOKENS_PER_STEP
    one = by_step(train_with(1, alone, tmp_path / "one", budget))
    two = by_step(train_with(2, shared, tmp_path / "two", budget))
    assert one.keys() == two.keys() and len(one) == 12
    assert list(two.values()) == pytest.approx(list(one.values()), abs=2e-4)
    saved = progress(tmp_path / "two")
    assert saved["tokens_total"] == budget

    one = by_step(train_with(1, alone, tmp_path / "two", 2 * budget))
    two = by_step(train_with(2, shared, tmp_path / "one", 2 * budget))
    assert list(two.values())[12:] == pytest.approx(list(one.values())[12:], abs=2e-3)
    assert len(one) == 24


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param((sys.executable, *TORCHRUN), id="torchrun"),
        pytest.param((str(Path(sys.executable).parent / "deepspeed"), "--num_gpus=2"), id="deepspeed"),
    ],
)
def test_a_sigterm_to_a_launchers_whole_group_saves_once(launcher: tuple[str, ...], home: Path):
    """As a terminal sends it."""
    job = Job(home, start_main(home, *launcher))
    job.answer("tiny\n")
    job.until(STEP_LINE)
    os.killpg(job.process.pid, signal.SIGTERM)
    rest = job.rest()
    job.process.wait(timeout=120)
    assert "2 processes" in job.output, job.output[-3000:]
    assert "saved" in rest and "SIGTERM" in rest, job.output[-3000:]
    saved = progress(home / "checkpoints")
    assert saved["tokens_total"] == saved["step"] * 2 * TOKENS_PER_STEP
    assert job.output.count("Preset 00_tiny") == 1, "only rank 0 prints"
