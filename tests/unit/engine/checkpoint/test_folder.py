import errno
import fcntl
import os
from collections import namedtuple
from pathlib import Path

import pytest

from engine.checkpoint.folder import CURRENT, MIRROR, PREV, PREV2, CheckpointFolder
from engine.errors import SaveError
from tests.helpers.checkpoints import flip, save, tokens, tokens_of
from tests.helpers.processes import run_program, start
from tests.helpers.text import REPOSITORY

Usage = namedtuple("Usage", "total used free")


def test_three_generations_roll_and_the_mirror_follows(folder: CheckpointFolder):
    expected = {1: [10, 10], 2: [20, 10, 20], 3: [30, 20, 10, 30], 4: [40, 30, 20, 40], 5: [50, 40, 30, 50]}
    for number, kept in expected.items():
        save(folder, 10 * number)
        assert tokens_of(folder) == kept
        assert len(list((folder.folder / "state").glob("*.pt"))) == min(number, 3)
    assert not list(folder.folder.rglob(".writing-*"))


def test_the_mirror_replaces_a_lost_current_name(folder: CheckpointFolder):
    save(folder, 10)
    save(folder, 20)
    folder.current.unlink()
    restored = folder.newest()
    assert (restored.path.name, tokens(restored)) == (MIRROR, 20)
    assert folder.repair(restored) == [f"Put in order: {CURRENT}."]
    assert tokens_of(folder) == [20, 10, 20]


def test_exchanged_names_are_put_in_order(folder: CheckpointFolder):
    for number in (10, 20, 30):
        save(folder, number)
    current, prev2 = folder.current, folder.folder / PREV2
    current.rename(folder.folder / "x")
    prev2.rename(current)
    (folder.folder / "x").rename(prev2)
    restored = folder.newest()
    assert tokens(restored) == 30 and restored.optimizer["step"] == 30
    assert folder.repair(restored) == [f"Put in order: {CURRENT}, {PREV2}."]
    assert tokens_of(folder) == [30, 20, 10, 30]
    assert folder.repair(folder.newest()) == []
    assert not (folder.folder / "archive").exists(), "nothing was damaged, so nothing needs to be kept aside"


def test_damaged_files_are_archived_and_named(folder: CheckpointFolder):
    for number in (10, 20, 30):
        save(folder, number)
    flip(folder.current)
    damaged = folder.current.read_bytes()
    restored = folder.newest()
    (told,) = folder.repair(restored)
    assert told.startswith(f"Put in order: {CURRENT}, {PREV}, {PREV2}, {MIRROR}. The files that had these names are in")
    assert tokens_of(folder) == [20, 10, 20]
    (aside,) = (folder.folder / "archive").iterdir()
    assert (aside / CURRENT).read_bytes() == damaged
    save(folder, 40)
    assert tokens_of(folder) == [40, 20, 10, 40]
    assert tokens(folder.newest()) == 40


def test_stepping_back_archives_all_but_the_last(folder: CheckpointFolder):
    for number in (10, 20, 30):
        save(folder, number)
    folder.step_back(0)
    assert tokens_of(folder) == [30, 20, 10, 30]
    folder.step_back(1)
    assert tokens_of(folder) == [20, 10, 20]
    save(folder, 25)
    assert tokens(folder.newest()) == 25, "the newest is what was saved last, however many tokens it has"
    folder.step_back(7)
    assert tokens_of(folder) == [10, 10]


def test_an_empty_folder_has_nothing_to_step_back_to(folder: CheckpointFolder):
    folder.step_back(1)
    assert folder.newest() is None


def test_a_save_that_fails_leaves_no_state_behind(folder: CheckpointFolder, monkeypatch):
    save(folder, 10)

    def refuse(*_):
        raise OSError(errno.EIO, "the disk fails")

    with monkeypatch.context() as failing:
        failing.setattr("engine.checkpoint.folder.rotate", refuse)
        for number in (20, 30, 40):
            with pytest.raises(SaveError, match="could not be written"):
                save(folder, number)
    assert len(list((folder.folder / "state").iterdir())) == 1
    save(folder, 50)
    assert tokens_of(folder) == [50, 10, 50] and folder.newest().optimizer is not None


def test_one_run_at_a_time(folder: CheckpointFolder, tmp_path: Path):
    code = """
import sys
from engine.checkpoint.folder import CheckpointFolder
from engine.errors import FolderInUse
try:
    with CheckpointFolder(sys.argv[1]).held():
        print("held", flush=True)
        sys.stdin.readline()
except FolderInUse as error:
    print(error)
    sys.exit(error.status)
"""
    first = start(code, str(folder.folder), cwd=REPOSITORY)
    assert first.stdout.readline() == "held\n"
    status, output = run_program(code, str(folder.folder))
    assert status == 6
    assert f"{folder.folder} is in use by process {first.pid} on " in output
    first.kill()
    first.wait()
    with folder.held():  # a killed process leaves no lock
        pass


def test_a_disk_without_locks_is_reported(folder: CheckpointFolder, monkeypatch: pytest.MonkeyPatch):
    def refuse(*arguments: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)  # no such file system can be mounted here
    said: list[str] = []
    with folder.held(said.append), folder.held(said.append):
        assert len(said) == 2 and f"The file system of {folder.folder} has no locks (No locks available)" in said[0]


def test_the_archive_takes_the_whole_lineage(folder: CheckpointFolder):
    save(folder, 10)
    (folder.folder / "metrics.jsonl").write_text("{}\n")
    target = folder.archive()
    assert folder.newest() is None
    assert {path.name for path in folder.folder.iterdir()} == {"archive"}
    assert {CURRENT, MIRROR, "manifest.json", "metrics.jsonl", "state"} <= {path.name for path in target.iterdir()}
    assert CheckpointFolder(target).newest().snapshot.progress["tokens_total"] == 10


FULL_DISK = """
import resource, sys
from engine.checkpoint.folder import CheckpointFolder
from engine.errors import SaveError
from tests.helpers.checkpoints import save
folder = CheckpointFolder(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
try:
    save(folder, 30)
except SaveError as error:
    print("refused:", error)
"""


@pytest.mark.parametrize("limit", [0, 5_000, 20_000])
def test_a_failed_write_leaves_the_old_generations(folder: CheckpointFolder, limit: int):
    save(folder, 10)
    save(folder, 20)
    names = (CURRENT, PREV, MIRROR)
    before = {name: (folder.folder / name).read_bytes() for name in names}
    # Python ignores SIGXFSZ, so a file over the limit fails with an error, as on a full disk.
    _, output = run_program(FULL_DISK, str(folder.folder), str(limit))
    assert output.startswith("refused:"), output
    assert {name: (folder.folder / name).read_bytes() for name in names} == before
    save(folder, 30)
    assert tokens_of(folder) == [30, 20, 10, 30]
    assert not list(folder.folder.rglob(".writing-*"))


def test_too_little_space_is_reported_in_numbers(folder: CheckpointFolder, monkeypatch: pytest.MonkeyPatch):
    save(folder, 10)
    left_by_a_kill = folder.folder / "state" / "000002-0badcafe.pt"
    left_by_a_kill.write_bytes(b"state")
    # The one thing that cannot be had for real here is a disk that is nearly full.
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(1_000_000, 999_000, 1_000))
    with pytest.raises(SaveError, match=r"a snapshot needs 1 MiB and the disk has 0 MiB left; free 1 MiB"):
        save(folder, 20)
    assert tokens_of(folder) == [10, 10] and not left_by_a_kill.exists()
