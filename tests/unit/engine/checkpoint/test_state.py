import errno
import stat

import pytest
import torch

from engine.checkpoint import manifest
from engine.checkpoint.folder import CURRENT, CheckpointFolder
from tests.helpers.checkpoints import flip, save, snapshot, tokens, tokens_of


def test_what_was_saved_comes_back_with_its_own_state(folder: CheckpointFolder):
    save(folder, 10)
    save(folder, 20)
    restored = folder.newest()
    assert restored.path.name == CURRENT
    assert restored.snapshot.progress["tokens_total"] == 20
    assert restored.optimizer["moments"]["tokens.weight"]["exp_avg"][0, 0] == 20
    assert restored.data == {"loader": {"row": 20}}
    assert restored.notes == []
    assert all(torch.equal(t, restored.snapshot.model[name]) for name, t in snapshot(20).model.items())


def test_a_damaged_state_gives_way_to_the_one_before(folder: CheckpointFolder):
    for number in (10, 20):
        save(folder, number)
    flip(max((folder.folder / "state").glob("*.pt")))
    restored = folder.newest()
    assert (tokens(restored), restored.optimizer["step"]) == (10, 10)
    assert "is damaged, or belongs to another generation" in restored.notes[0]
    folder.repair(restored)
    assert tokens_of(folder) == [10, 10]
    save(folder, 30)
    assert tokens(folder.newest()) == 30


def test_exchanged_states_are_never_mixed(folder: CheckpointFolder):
    for number in (10, 20, 30):
        save(folder, number)
    oldest, middle, newest = sorted((folder.folder / "state").glob("*.pt"))
    newest.rename(oldest.with_suffix(".x"))
    middle.rename(newest)
    oldest.with_suffix(".x").rename(middle)
    restored = folder.newest()
    assert (tokens(restored), restored.optimizer["step"], restored.data) == (10, 10, {"loader": {"row": 10}})
    assert len(restored.notes) == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": 3},
        {"optimizer": {"step": 1, "moments": {"a": {"exp_avg": torch.ones(2), "exp_avg_sq": torch.ones(3)}}}},
        {"optimizer": {"step": 1, "moments": {"a": dict.fromkeys(("exp_avg", "exp_avg_sq"), torch.tensor(torch.nan))}}},
        {"data": "{"},
        {"data": "3"},
        {"data": 7},
        {"data": None},
    ],
)
def test_a_state_of_another_shape_is_not_used(folder: CheckpointFolder, changes: dict):
    save(folder, 10)
    save(folder, 20)
    (folder.folder / manifest.FILE_NAME).unlink()  # which knows the digest
    path = max((folder.folder / "state").iterdir())
    torch.save({**torch.load(path, weights_only=True), **changes}, path)
    restored = CheckpointFolder(folder.folder).newest()
    assert tokens(restored) == 10 and "is not what this program writes" in restored.notes[-1]


def test_missing_state_keeps_the_weights_and_says_so(folder: CheckpointFolder):
    save(folder, 10)
    for path in (folder.folder / "state").glob("*.pt"):
        path.unlink()
    restored = folder.newest()
    assert restored.snapshot.progress["tokens_total"] == 10
    assert restored.optimizer is None
    assert "is missing" in restored.notes[0]


def test_the_state_folder_is_private(folder: CheckpointFolder):
    save(folder, 10)
    assert stat.S_IMODE((folder.folder / "state").stat().st_mode) == 0o700


def test_states_do_not_pile_up_without_a_mirror(folder: CheckpointFolder, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "no room")

    monkeypatch.setattr("storage.hard_link_or_copy", refuse)
    for number in range(1, 7):
        save(folder, number)
    assert len(list((folder.folder / "state").iterdir())) == 3
