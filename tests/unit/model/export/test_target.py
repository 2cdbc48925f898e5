"""model/export/target.py: an export takes a free name or none, whole or not at all."""

import os
import shutil
import subprocess

import pytest

from model.export import ExportError
from model.export.target import require_free, staged
from tests.helpers.failing import FailingDisk
from tests.helpers.processes import run_program


def test_a_free_name_or_an_empty_folder_is_taken(tmp_path):
    for name in ("new", "empty"):
        if name == "empty":
            (tmp_path / name).mkdir()
        require_free(tmp_path / name, 10)
        with staged(tmp_path / name) as folder:
            folder.mkdir()
            (folder / "x").write_text("x")
            assert not (tmp_path / name / "x").exists()
        assert (tmp_path / name / "x").read_text() == "x"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "new"]


@pytest.mark.parametrize("what", ["file", "folder", "link", "broken link", "link to an empty folder"])
def test_what_exists_is_never_overwritten(tmp_path, what):
    target, other = tmp_path / "target", tmp_path / "other"
    if what == "file":
        target.write_text("mine")
    elif what == "folder":
        target.mkdir()
        (target / "config.json").write_text("mine")
    else:
        target.symlink_to(other)
        if what == "link":
            other.write_text("mine")
        elif what == "link to an empty folder":
            other.mkdir()
    with pytest.raises(ExportError, match=r"and is never overwritten; give another name, or move it away\.$"):
        require_free(target, 10)
    with pytest.raises(ExportError, match="meanwhile"), staged(target) as path:
        path.write_text("x")
    left = {"target", "other"} if other.exists() else {"target"}
    assert {path.name for path in tmp_path.iterdir()} == left
    assert what != "file" or target.read_text() == "mine"


def test_a_folder_that_is_missing_is_named(tmp_path):
    with pytest.raises(ExportError, match="nowhere is no folder"):
        require_free(tmp_path / "nowhere" / "model", 10)


@pytest.mark.parametrize("name", ["x" * 300, "x" * 250])
def test_a_name_that_no_disk_takes_is_said(tmp_path, name):
    """Beyond 255 letters; a shorter one is taken, though its temporary name would be longer."""
    if len(name) > 255:
        with pytest.raises(ExportError, match="File name too long"), staged(tmp_path / name) as path:
            require_free(tmp_path / name, 10)
            path.write_text("x")
        assert not any(tmp_path.iterdir())
    else:
        with staged(tmp_path / name) as path:
            path.write_text("x")
        assert (tmp_path / name).read_text() == "x"


def test_a_disk_without_room_is_said_before_anything_is_written(tmp_path):
    with pytest.raises(ExportError, match=r"MB are needed and only \d+ MB are free"):
        require_free(tmp_path / "model", shutil.disk_usage(tmp_path).free + 2**30)


@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_failing_disk_leaves_nothing(tmp_path, monkeypatch, call):
    """fsync of the file, of the folder; the third one comes after the rename, when the export is there."""
    FailingDisk(monkeypatch, at=call)
    said = r"could not be written \(Input/output error\)"
    with pytest.raises(ExportError, match=said), staged(tmp_path / "x") as path:
        path.mkdir()
        (path / "file").write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == (["x"] if call == 3 else [])


def test_an_interrupt_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), staged(tmp_path / "x") as path:
        path.write_text("half")
        raise KeyboardInterrupt
    assert not any(tmp_path.iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a tmpfs")
@pytest.mark.parametrize("name", ["model", "model.gguf"])
def test_a_full_disk_leaves_nothing(make, tmp_path, monkeypatch, name):
    """A real disk of 100 kB, whose free space is not looked at first."""
    disk = tmp_path / "disk"
    disk.mkdir()
    make().save(tmp_path / "lm.pth")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", disk], check=True)
    try:
        program = f"""
import shutil
from model import ExportError, load
lm = load("{tmp_path}/lm.pth", device="cpu")
usage = shutil.disk_usage
shutil.disk_usage = lambda path: usage("/")._replace(free=10**12)
try:
    lm.export("{disk}/{name}")
except ExportError as error:
    print(error)
"""
        status, output = run_program(program)
        assert status == 0 and "could not be written (" in output, output
        assert not any(disk.iterdir())
    finally:
        subprocess.run(["umount", disk], check=True)
