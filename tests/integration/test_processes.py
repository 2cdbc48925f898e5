"""Runs of several processes, by torchrun and by DeepSpeed's launcher, on this machine's CPU."""

import os
import re
import signal
import sys
from pathlib import Path

import pytest
import torch

from engine.checkpoint.folder import CURRENT
from tests.helpers.training import TOKENS_PER_STEP, TORCHRUN, by_step, start_main, train_with


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
    saved = torch.load(tmp_path / "two" / CURRENT, weights_only=True)["progress"]
    assert saved["tokens_total"] == budget

    one = by_step(train_with(1, alone, tmp_path / "two", 2 * budget))
    two = by_step(train_with(2, shared, tmp_path / "one", 2 * budget))
    assert list(two.values())[12:] == pytest.approx(list(one.values())[12:], abs=2e-3)
    assert len(one) == 24


@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param((sys.executable, *TORCHRUN), id="torchrun"),
        pytest.param(("deepspeed", "--num_gpus=2"), id="deepspeed", marks=pytest.mark.slow),
    ],
)
def test_main_under_launchers_trains_saves_on_sigterm_and_resumes(launcher: tuple[str, ...], home: Path):
    if launcher[0] == "deepspeed":
        launcher = (str(Path(sys.executable).parent / "deepspeed"), *launcher[1:])
    process = start_main(home, *launcher)
    process.stdin.write("tiny\n")
    process.stdin.close()
    lines = []
    for line in process.stdout:
        lines.append(line)
        if re.match(r"step +\d+ ", line):
            # To the whole group, as a terminal does.
            os.killpg(process.pid, signal.SIGTERM)
            break
    rest = process.stdout.read()
    process.wait(timeout=120)
    output = "".join(lines) + rest
    assert "2 processes" in output, output[-3000:]
    assert "saved" in rest and "SIGTERM" in rest, output[-3000:]
    first = torch.load(home / "checkpoints" / CURRENT, weights_only=True)["progress"]
    assert first["tokens_total"] == first["step"] * 2 * TOKENS_PER_STEP
    assert output.count("Preset 00_tiny") == 1, "only rank 0 prints"
