"""train() as a library call: the folder that it holds, a bug that it does not hide, the page that it leaves."""

from pathlib import Path

import pytest

from engine import TOKENS_PER_RUN, train
from engine.checkpoint.folder import CheckpointFolder
from engine.errors import FolderInUse
from engine.events import REPORT_NAME
from engine.run.trainer import Trainer
from tests.helpers.folders import events_of
from tests.helpers.training import TOKENS_PER_STEP


def test_a_run_is_a_hundred_million_tokens():
    assert TOKENS_PER_RUN == 100_000_000


def test_a_folder_in_use_is_refused_to_a_library_call_too(tiny, tmp_path: Path):
    with CheckpointFolder(tmp_path).held(), pytest.raises(FolderInUse, match="is in use by process"):
        train(tiny(), token_budget=TOKENS_PER_STEP, checkpoint_dir=tmp_path)
    train(tiny(), token_budget=TOKENS_PER_STEP, checkpoint_dir=tmp_path)


def test_a_bug_is_not_called_a_want_of_memory(tiny, tmp_path: Path, monkeypatch):
    def fail(self):
        raise RuntimeError("a bug")

    monkeypatch.setattr(Trainer, "train", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        train(tiny(), token_budget=TOKENS_PER_STEP, checkpoint_dir=tmp_path)
    with CheckpointFolder(tmp_path).held():
        pass  # it was released


def test_a_run_leaves_its_page_and_its_folder(tiny, tmp_path: Path):
    result = train(tiny(), token_budget=2 * TOKENS_PER_STEP, checkpoint_dir=tmp_path)
    page = (tmp_path / REPORT_NAME).read_text()
    assert f"{2 * TOKENS_PER_STEP:,} tokens of this run (100.0%)" in page and f"{result.eval_loss:.4f}" in page
    assert len(events_of(tmp_path, "save")) == 2 and "2 saves" in page
    with CheckpointFolder(tmp_path).held():
        pass
