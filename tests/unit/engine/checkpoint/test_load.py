import os
import shutil
from pathlib import Path

import pytest
import torch

from engine.checkpoint import manifest, state
from engine.checkpoint.folder import CURRENT, MIRROR, PREV, CheckpointFolder
from engine.errors import CheckpointError, SaveError
from model import TransformerLM
from tests.faults.damage import tree
from tests.helpers.checkpoints import SHAPE, flip, optimizer, save, snapshot, tokens, tokens_of


def test_an_empty_folder_has_nothing_to_resume(folder: CheckpointFolder):
    assert folder.newest() is None


def test_a_damaged_snapshot_gives_way_to_the_one_before(folder: CheckpointFolder):
    save(folder, 10)
    save(folder, 20)
    flip(folder.current)
    restored = folder.newest()
    assert restored.snapshot.progress["tokens_total"] == 10
    assert restored.optimizer["step"] == 10
    assert CURRENT in restored.notes[0]


@pytest.mark.parametrize("part", ["the snapshot", "a snapshot without manifest", "the manifest", "the state"])
def test_what_a_later_version_wrote_is_never_replaced(folder: CheckpointFolder, monkeypatch, part: str):
    """It is whole, and neither an older generation nor an older version's save may push it aside."""
    save(folder, 10)
    later = {"the manifest": "engine.checkpoint.manifest.FORMAT", "the state": "engine.checkpoint.state.FORMAT"}
    monkeypatch.setattr(later.get(part, "model.snapshot.file.FORMAT"), 2)
    contents_of = state.contents_of
    if part == "the state":
        monkeypatch.setattr(state, "contents_of", lambda *values: {"format": 2, **contents_of(*values)})
    folder.save(snapshot(20), optimizer(20), {"loader": None})
    monkeypatch.undo()
    if part == "a snapshot without manifest":
        (folder.folder / manifest.FILE_NAME).unlink()
    before = tree(folder.folder)
    with pytest.raises(CheckpointError, match=r"has format 2, .* use the version that wrote it\. Nothing was changed"):
        CheckpointFolder(folder.folder).newest()
    if part in ("a snapshot without manifest", "the manifest"):
        with pytest.raises(SaveError, match="has format 2"):
            save(CheckpointFolder(folder.folder), 30)
    assert tree(folder.folder) == before


def test_damaged_files_alone_stop_the_run_and_stay(folder: CheckpointFolder):
    folder.folder.mkdir()
    folder.current.write_text("this is no checkpoint")
    with pytest.raises(CheckpointError, match="can be trusted; nothing was changed") as caught:
        folder.newest()
    assert caught.value.status == 4
    assert folder.current.read_text() == "this is no checkpoint"


def test_removed_snapshots_are_missed(folder: CheckpointFolder):
    """What is left of a lineage is not silently replaced by a new one, nor its states removed."""
    save(folder, 10)
    save(folder, 20)
    for name in (CURRENT, PREV, MIRROR):
        (folder.folder / name).unlink()
    before = tree(folder.folder)
    with pytest.raises(CheckpointError, match=r"manifest\.json knows snapshots, and none is there"):
        CheckpointFolder(folder.folder).newest()
    assert tree(folder.folder) == before


def test_a_bare_state_dict_gives_its_weights(folder: CheckpointFolder):
    folder.folder.mkdir()
    torch.save(TransformerLM(SHAPE, 64).state_dict(), folder.current)
    restored = folder.newest()
    assert restored.snapshot.config is None
    assert restored.optimizer is None and restored.data is None
    assert "weights only" in restored.notes[0]


@pytest.mark.parametrize("name", [CURRENT, "state", "manifest.json", "archive"])
def test_links_that_leave_the_folder_are_not_followed(folder: CheckpointFolder, tmp_path: Path, name: str):
    elsewhere = CheckpointFolder(tmp_path / "elsewhere")
    for number in (10, 20):
        save(elsewhere, number)
        save(folder, number)
    (elsewhere.folder / "archive").mkdir()
    path = folder.folder / name
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    (folder.folder / MIRROR).unlink()
    path.symlink_to(elsewhere.folder / name)
    before = {p: p.stat().st_mtime_ns for p in elsewhere.folder.rglob("*")}

    restored = folder.newest()
    assert tokens(restored) == (10 if name == CURRENT else 20)
    assert (restored.optimizer is None) is (name == "state")
    if name != "archive":
        assert any("symbolic link" in note or "manifest.json is damaged" in note for note in restored.notes)
    if name in (CURRENT, "state"):
        with pytest.raises(SaveError, match="symbolic link leads out of the folder"):
            save(folder, 30)
    if name == "archive":
        with pytest.raises(SaveError, match="symbolic link leads out of the folder"):
            folder.archive()
    assert {p: p.stat().st_mtime_ns for p in elsewhere.folder.rglob("*")} == before


def test_links_inside_the_folder_and_to_the_folder_are_fine(folder: CheckpointFolder, tmp_path: Path):
    for number in (10, 20):
        save(folder, number)
    (folder.folder / MIRROR).unlink()
    (folder.folder / MIRROR).symlink_to(CURRENT)
    (tmp_path / "link").symlink_to(folder.folder)
    linked = CheckpointFolder(tmp_path / "link")
    assert tokens(linked.newest()) == 20 and linked.newest().notes == []
    save(linked, 30)
    assert tokens_of(folder) == [30, 20, 10, 30]


@pytest.mark.parametrize("name", [CURRENT, "state", "manifest.json", "a state", PREV])
@pytest.mark.parametrize("kind", ["a pipe", "links in a circle"])
def test_pipes_and_circular_links_are_not_opened(folder: CheckpointFolder, name: str, kind: str):
    """To open a pipe would be to wait for ever."""
    save(folder, 10)
    save(folder, 20)
    path = folder.folder / name if name != "a state" else max((folder.folder / "state").iterdir())
    shutil.move(path, folder.folder / "elsewhere")
    if kind == "a pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(path.name)
    again = CheckpointFolder(folder.folder)
    restored = again.newest()
    assert tokens(restored) == (20 if name in ("manifest.json", CURRENT, "state", PREV) else 10)
    assert name in (CURRENT, PREV, "manifest.json") or restored.notes
    again.repair(restored)
