import errno
import fcntl
import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from engine.checkpoint.folder import CURRENT, MIRROR, PREV, PREV2, CheckpointFolder
from engine.errors import SaveError
from tests.helpers.checkpoints import flip, save, tokens, tokens_of
from tests.helpers.text import REPOSITORY
from tests.helpers.training import environment

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
    command = [sys.executable, "-c", code, str(folder.folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    first = subprocess.Popen(command, env=environment(), cwd=REPOSITORY, **pipes)
    assert first.stdout.readline() == "held\n"
    second = subprocess.run(command, env=environment(), cwd=REPOSITORY, input="", capture_output=True, text=True)
    assert second.returncode == 6
    assert f"{folder.folder} is in use by process {first.pid} on " in second.stdout
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


@pytest.mark.parametrize("generation", ["../../outside", "/etc/passwd", "000001-../../..", "", 7, None, "1-a"])
def test_a_snapshot_cannot_name_a_file_elsewhere(folder: CheckpointFolder, tmp_path: Path, generation):
    save(folder, 10)
    contents = torch.load(folder.current, weights_only=True)
    contents["progress"]["generation"] = generation
    for path in folder.folder.rglob("*"):
        if path.is_file():
            path.unlink()
    torch.save({"generation": generation, "optimizer": {"step": 666}, "data": "null"}, tmp_path / "outside.pt")
    torch.save(contents, folder.current)
    restored = folder.newest()
    assert restored.optimizer is None and "weights only" in restored.notes[0]


def test_files_of_which_none_verifies_stop_the_run_and_stay(folder: CheckpointFolder):
    folder.folder.mkdir()
    folder.current.write_text("this is no checkpoint")
    with pytest.raises(CheckpointError, match="can be trusted; nothing was changed") as caught:
        folder.newest()
    assert caught.value.status == 4
    assert folder.current.read_text() == "this is no checkpoint"


@pytest.mark.parametrize("name", [CURRENT, "state", "manifest.json", "a state", PREV])
@pytest.mark.parametrize("kind", ["a pipe", "links in a circle"])
def test_what_is_no_file_is_not_opened(folder: CheckpointFolder, name: str, kind: str):
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


def test_snapshots_that_were_all_removed_are_missed(folder: CheckpointFolder):
    """What is left of a lineage is not silently replaced by a new one, nor its states removed."""
    save(folder, 10)
    save(folder, 20)
    for name in (CURRENT, PREV, MIRROR):
        (folder.folder / name).unlink()
    before = tree(folder.folder)
    with pytest.raises(CheckpointError, match=r"manifest\.json knows snapshots, and none is there"):
        CheckpointFolder(folder.folder).newest()
    assert tree(folder.folder) == before


def test_a_first_save_that_came_no_further_than_the_manifest_is_none(folder: CheckpointFolder, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EROFS, "read-only")

    with monkeypatch.context() as patch:
        patch.setattr("engine.checkpoint.folder.rotate", refuse)
        for _ in range(2):
            with pytest.raises(SaveError):
                save(folder, 10)
    assert (folder.folder / manifest.FILE_NAME).exists() and CheckpointFolder(folder.folder).newest() is None


def record(folder: CheckpointFolder, **changes) -> None:
    """Writes a manifest that is whole and says something else."""
    path = folder.folder / manifest.FILE_NAME
    contents = json.loads(path.read_text())
    for known in contents["generations"].values():
        known.update(changes)
    del contents["check"]
    path.write_text(json.dumps({**contents, "check": digest(contents)}))


@pytest.mark.parametrize("changes", [{"generation": "abc"}, {"generation": "000009-../../x"}, {"tokens_total": "many"}])
def test_a_manifest_that_nobody_here_wrote_is_not_used(folder: CheckpointFolder, changes: dict):
    save(folder, 10)
    save(folder, 20)
    record(folder, **changes)
    restored = CheckpointFolder(folder.folder).newest()
    assert tokens(restored) == 20 and restored.optimizer is not None
    assert "is damaged and was not used" in restored.notes[0]


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
def test_a_state_that_is_whole_but_none_is_not_used(folder: CheckpointFolder, changes: dict):
    save(folder, 10)
    save(folder, 20)
    (folder.folder / manifest.FILE_NAME).unlink()  # which knows the digest
    path = max((folder.folder / "state").iterdir())
    torch.save({**torch.load(path, weights_only=True), **changes}, path)
    restored = CheckpointFolder(folder.folder).newest()
    assert tokens(restored) == 10 and "is not what this program writes" in restored.notes[-1]


def test_a_known_snapshot_that_this_version_cannot_read_gives_way(folder: CheckpointFolder, monkeypatch):
    save(folder, 10)
    monkeypatch.setattr("model.snapshot.file.FORMAT", 2)  # a later version's
    folder.save(snapshot(20), optimizer(20), {"loader": None})
    monkeypatch.undo()
    restored = CheckpointFolder(folder.folder).newest()
    assert tokens(restored) == 10 and "has format 2" in restored.notes[-1]
    (folder.folder / PREV).unlink()
    with pytest.raises(CheckpointError, match=r"has format 2.* Nothing was changed"):
        CheckpointFolder(folder.folder).newest()


def test_states_do_not_pile_up_while_the_mirror_cannot_be_written(folder: CheckpointFolder, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "no room")

    monkeypatch.setattr("storage.hard_link_or_copy", refuse)
    for number in range(1, 7):
        save(folder, number)
    assert len(list((folder.folder / "state").iterdir())) == 3


def test_a_bare_state_dict_is_a_beginning(folder: CheckpointFolder):
    folder.folder.mkdir()
    torch.save(TransformerLM(SHAPE, 64).state_dict(), folder.current)
    restored = folder.newest()
    assert restored.snapshot.config is None
    assert restored.optimizer is None and restored.data is None
    assert "weights only" in restored.notes[0]


def test_missing_state_keeps_the_weights_and_says_so(folder: CheckpointFolder):
    save(folder, 10)
    for path in (folder.folder / "state").glob("*.pt"):
        path.unlink()
    restored = folder.newest()
    assert restored.snapshot.progress["tokens_total"] == 10
    assert restored.optimizer is None
    assert "No such file" in restored.notes[0]


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
    finished = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(folder.folder), str(limit)],
        env=environment(),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.stdout.startswith("refused:"), finished.stdout + finished.stderr
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
