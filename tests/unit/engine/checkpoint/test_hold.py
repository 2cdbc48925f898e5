"""A folder that is moved, removed or replaced while it is held, with real renames."""

import shutil
from pathlib import Path

import pytest

from engine.checkpoint.folder import CURRENT, CheckpointFolder
from engine.checkpoint.hold import Hold
from engine.errors import FolderMoved
from storage import LOCK
from tests.helpers.checkpoints import save, tokens, tokens_of
from tests.helpers.processes import Process, start
from tests.helpers.text import REPOSITORY

HOLD = """
import sys
from engine.checkpoint.folder import CheckpointFolder
with CheckpointFolder(sys.argv[1]).held():
    print("held", flush=True)
    sys.stdin.readline()
"""


def held_by_another(path: Path) -> Process:
    other = start(HOLD, str(path), cwd=REPOSITORY)
    assert other.stdout.readline() == "held\n"
    return other


def followed(hold: Hold) -> str:
    assert not hold.in_place()
    sentence = hold.follow()
    assert hold.in_place() and hold.is_locked()
    return sentence


def test_a_moved_folder_is_held_where_it_is(folder: CheckpointFolder, tmp_path: Path):
    with folder.held():
        hold, old = folder.hold, folder.folder
        assert hold.in_place() and hold.is_locked()
        went = old.rename(tmp_path / "elsewhere")
        assert followed(hold) == f"{old} was moved, or leads elsewhere: the folder of this run is {went} now."
        assert hold.path == went and not old.exists()
        assert Hold(went).take(went, print), "another run is still kept out"


def test_a_link_that_leads_elsewhere_is_no_longer_the_folder(tmp_path: Path):
    link, real = tmp_path / "checkpoints", tmp_path / "real"
    for path in (real, tmp_path / "other"):
        path.mkdir()
    link.symlink_to(real)
    with CheckpointFolder(link).held():
        pass
    folder = CheckpointFolder(link)
    with folder.held():
        link.unlink()
        link.symlink_to(tmp_path / "other")
        assert "leads elsewhere" in followed(folder.hold) and folder.hold.path == real
    assert not list((tmp_path / "other").iterdir())


def test_a_removed_folder_is_followed_by_a_new_one_with_a_lock(folder: CheckpointFolder):
    with folder.held():
        shutil.rmtree(folder.folder)
        assert f"{folder.folder} now, a new one." in followed(folder.hold)
        assert Hold(folder.folder).take(folder.folder, print)


@pytest.mark.parametrize("taken", [True, False])
def test_what_stands_in_a_removed_folders_place_is_left_alone(folder: CheckpointFolder, tmp_path: Path, taken: bool):
    """Whether another run holds it or not; the next name may be taken as well."""
    with folder.held():
        shutil.rmtree(folder.folder)
        folder.folder.mkdir()
        (tmp_path / "checkpoints-1").mkdir()
        other = held_by_another(folder.folder) if taken else None
        assert followed(folder.hold).endswith(f"{tmp_path / 'checkpoints-2'} now, a new one.")
        if other is not None:
            other.communicate("\n")
    assert [path.name for path in folder.folder.iterdir()] == [LOCK] * taken
    assert not list((tmp_path / "checkpoints-1").iterdir())


def test_a_removed_lock_is_made_again_unless_another_run_was_there(folder: CheckpointFolder, tmp_path: Path):
    with folder.held():
        (folder.folder / LOCK).unlink()
        assert followed(folder.hold) == f"{folder.folder / LOCK} was removed, which lets another run in."
        assert folder.hold.path == folder.folder
        (folder.folder / LOCK).unlink()
        other = held_by_another(folder.folder)
        other.communicate("\n")
        with pytest.raises(FolderMoved, match="or its lock was; nothing was written"):
            save(folder, 10)
        assert followed(folder.hold).endswith(f"{tmp_path / 'checkpoints-1'} now, a new one.")
    assert [path.name for path in folder.folder.iterdir()] == [LOCK]


def test_a_save_goes_into_the_folder_that_is_held(folder: CheckpointFolder, tmp_path: Path):
    """Not into one that has its name now; what reads or moves files by that name refuses to."""
    old = folder.folder
    with folder.held():
        save(folder, 10)
        went = old.rename(tmp_path / "elsewhere")
        other = CheckpointFolder(old)
        save(other, 70)
        save(folder, 20)
        for work in (folder.newest, lambda: folder.repair(other.newest()), lambda: folder.step_back(1), folder.archive):
            with pytest.raises(FolderMoved, match="was moved, removed or replaced during the run"):
                work()
        assert tokens_of(CheckpointFolder(went)) == [20, 10, 20] and tokens_of(other) == [70, 70]
        assert str(went) in folder.follow() and folder.follow() is None
        assert (folder.current, tokens(folder.newest())) == (went / CURRENT, 20)
        save(folder, 30)
    assert tokens_of(folder) == [30, 20, 10, 30]


def test_a_failed_save_names_the_folder_as_it_was_given(folder: CheckpointFolder):
    with folder.held():
        save(folder, 10)
        shutil.rmtree(folder.folder / "state")
        (folder.folder / "state").symlink_to("/tmp")
        with pytest.raises(Exception, match="symbolic link leads out of the folder") as failed:
            save(folder, 20)
    assert str(folder.folder / "state") in str(failed.value) and "/proc" not in str(failed.value)
