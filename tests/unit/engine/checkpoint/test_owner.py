"""The note about whose folder holds the checkpoints."""

from pathlib import Path

import pytest
import torch

from engine.checkpoint.owner import NOTE, note_owner, require_here
from engine.device.ranks import Ranks
from engine.errors import CheckpointError
from storage import write_record

ONE_MACHINE = Ranks(0, 1, torch.device("cpu"), None)
FIRST = Ranks(0, 1, torch.device("cpu"), None, ("alpha",))
OTHER = Ranks(1, 1, torch.device("cpu"), None, ("alpha", "beta"))


def test_on_one_machine_there_is_no_note(tmp_path: Path):
    note_owner(tmp_path / "checkpoints", ONE_MACHINE)
    assert not list(tmp_path.iterdir())


def test_a_machine_that_does_not_see_the_mark_keeps_a_note(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    note_owner(tmp_path / "checkpoints", OTHER)
    with pytest.raises(CheckpointError, match=r"are on alpha\. Start so that rank 0 is there") as caught:
        require_here(tmp_path / "checkpoints")
    assert caught.value.status == 4
    monkeypatch.setenv("LOCAL_RANK", "1")
    note_owner(tmp_path / "second", OTHER)  # one rank of a machine is enough
    assert not (tmp_path / "second").exists()


def test_rank_0_has_no_note_any_more(tmp_path: Path):
    write_record(tmp_path / NOTE, {"owner": "alpha"})
    note_owner(tmp_path, FIRST)
    assert not list(tmp_path.iterdir())
    require_here(tmp_path)


def test_a_note_that_cannot_be_read_forbids_nothing(tmp_path: Path):
    (tmp_path / NOTE).write_text("{")
    require_here(tmp_path)
    require_here(tmp_path / "missing")
