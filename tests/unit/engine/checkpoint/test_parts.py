"""What stands where a save writes: refused at a start, and by each save, in the same words."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from engine import train
from engine.checkpoint.folder import CURRENT, PREV, PREV2, CheckpointFolder
from engine.checkpoint.parts import lack_of_room
from engine.errors import SaveError
from tests.faults.damage import tree
from tests.helpers.checkpoints import save, tokens_of
from tests.helpers.training import TOKENS_PER_STEP

IN_THE_WAY: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "a file as state": ("state", lambda path: path.write_text(""), "it is not a folder"),
    "a link as state": ("state", lambda path: path.symlink_to("/tmp"), "a symbolic link leads out of the folder"),
    "a pipe as state": ("state", os.mkfifo, "it is neither a file nor a folder"),
    "a folder as manifest": ("manifest.json", Path.mkdir, "it is a folder"),
    "a folder as metrics": ("metrics.jsonl", Path.mkdir, "it is not a regular file"),
    "a pipe as metrics": ("metrics.jsonl", os.mkfifo, "it is not a regular file"),
    "a link as metrics": ("metrics.jsonl", lambda path: path.symlink_to("/dev/zero"), "it is not a regular file"),
}


@pytest.mark.parametrize(("name", "put", "why"), IN_THE_WAY.values(), ids=IN_THE_WAY)
@pytest.mark.parametrize("new", [True, False], ids=["new", "continued"])
def test_what_no_save_could_replace_is_refused_at_the_start(tiny, tmp_path: Path, new: bool, name: str, put, why: str):
    folder = CheckpointFolder(tmp_path / "checkpoints")
    folder.folder.mkdir()
    if not new:
        save(folder, 10)
        if (folder.folder / name).exists():
            (folder.folder / name).rename(tmp_path / "aside")
    put(folder.folder / name)
    before = tree(folder.folder)
    with pytest.raises(SaveError) as refused:
        train(tiny(), token_budget=TOKENS_PER_STEP, checkpoint_dir=folder.folder)
    assert refused.value.status == 5 and tree(folder.folder) == before
    assert str(refused.value).startswith(f"{folder.folder / name}: {why}")
    assert str(refused.value).endswith("so no progress could be kept; move it away.")
    if name != "metrics.jsonl":  # without which a run that has begun goes on
        with pytest.raises(SaveError, match=why):
            save(CheckpointFolder(folder.folder), 20)


@pytest.mark.parametrize("name", [CURRENT, PREV])
def test_a_folder_with_a_snapshots_name_is_moved_aside_or_refused(folder: CheckpointFolder, name: str):
    """A repair gives the name back; where it cannot, the run does not begin."""
    for tokens in (10, 20, 30):
        save(folder, tokens)
    (folder.folder / name).unlink()
    (folder.folder / name).mkdir()
    with folder.held():
        with pytest.raises(SaveError, match=f"{name}: it is a folder"):
            folder.require_writable()
        folder.repair(folder.newest())
        folder.require_writable()
        save(folder, 40)
    assert tokens_of(folder)[:2] == [40, 30]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a tmpfs")
def test_a_state_folder_that_is_read_only_is_refused(folder: CheckpointFolder):
    save(folder, 10)
    state = folder.folder / "state"
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(state)], check=True)
    try:
        with pytest.raises(SaveError, match=r"state: Read-only file system, so no progress"), folder.held():
            pass
    finally:
        subprocess.run(["umount", str(state)], check=True)
    with folder.held():
        pass


def test_a_state_folder_is_the_owners_alone_and_writable(folder: CheckpointFolder):
    save(folder, 10)
    (folder.folder / "state").chmod(0o500)
    with folder.held():
        assert (folder.folder / "state").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(("there", "needed"), [(0, 4), (1, 3), (3, 1)])
def test_checkpoints_that_are_there_count_for_the_room(tmp_path: Path, monkeypatch, there: int, needed: int):
    for name in (CURRENT, PREV, PREV2)[:there]:
        (tmp_path / name).touch()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed * 2**20))
    assert lack_of_room(tmp_path, 2**20) is None
    sentence = lack_of_room(tmp_path, int(1.1 * 2**20))
    assert "a run keeps 3 checkpoints of 1.1 MiB" in sentence and "MiB, or train a smaller model." in sentence
