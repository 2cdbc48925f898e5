"""model/snapshot/values.py: preset and progress of a snapshot, without torch."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model.snapshot import SnapshotError, write
from model.snapshot.values import read_values
from tests.helpers import checkpoints
from tests.helpers.text import REPOSITORY


def test_values_are_those_that_were_written(tmp_path: Path):
    snapshot = checkpoints.snapshot(10)
    write(tmp_path / "lm.pth", snapshot)
    values = read_values(tmp_path / "lm.pth")
    assert values == {"config": snapshot.config, "preset": snapshot.preset, "progress": snapshot.progress}


def test_a_state_dict_has_no_values(tmp_path: Path):
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "lm.pth")
    assert read_values(tmp_path / "lm.pth") == {}


def test_no_code_is_run(tmp_path: Path):
    torch.save({"format": 1, "model": torch.nn.Linear(2, 2)}, tmp_path / "lm.pth")
    with pytest.raises(SnapshotError, match="asks for code to be run"):
        read_values(tmp_path / "lm.pth")


def test_what_is_no_snapshot_is_refused(tmp_path: Path):
    (tmp_path / "lm.pth").write_text("not a checkpoint")
    with pytest.raises(SnapshotError, match="not a checkpoint"):
        read_values(tmp_path / "lm.pth")
    write(tmp_path / "cut.pth", checkpoints.snapshot(10))
    whole = (tmp_path / "cut.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SnapshotError, match="cut short"):
        read_values(tmp_path / "cut.pth")


def test_reading_values_needs_no_torch():
    program = "import sys, model.snapshot.values; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY).returncode == 0
