"""One lineage on one, two and three processes in turn trains what one process trains, row for row."""

from pathlib import Path

import pytest

from engine.events import read
from tests.helpers.worlds import GLOBAL_ROWS, LENGTH, Notes, compare, run_leg


@pytest.mark.slow
def test_one_process_three_and_one_again(tiny, tmp_path: Path):
    whole, parts = compare(tiny, tmp_path, [(1, 1), (3, 2), (1, 0)], steps=5)
    printed = " ".join(parts.printed.split())
    assert "3 processes cannot share this checkpoint's 16 data lanes evenly" in printed
    assert "a micro-batch has 5 rows instead of 4" in printed
    assert "evenly" not in whole.printed


@pytest.mark.slow
def test_any_number_of_processes_and_stage_in_turn(tiny, tmp_path: Path):
    compare(tiny, tmp_path, [(1, 1), (2, 2), (1, 0), (3, 1), (2, 3), (3, 0)], steps=6)


@pytest.mark.slow
def test_a_lineage_of_three_processes_needs_no_padding(tiny, tmp_path: Path):
    notes = Notes()
    run_leg(tiny, tmp_path / "three", 3, 1, 4 * GLOBAL_ROWS * LENGTH - LENGTH, 0, notes)
    (run,) = [event for event in read(tmp_path / "three") if event["event"] == "run"]
    assert (run["derived"]["lanes"], run["derived"]["rows_per_pass"]) == (48, 4)
    assert len(notes.rows) == 4 and "evenly" not in notes.printed
