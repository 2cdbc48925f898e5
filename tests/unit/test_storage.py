"""Rotation step by step: every call of the system that it makes is made to fail in turn."""

import errno
import os
from pathlib import Path

import pytest

import storage

NAMES = ["first", "second", "third"]


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.name in NAMES}


def fill(folder: Path, names: list[str]) -> None:
    """Gives each name a file of its own that holds the name, and makes one more, `fresh`."""
    for name in names:
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_text(name)
    (folder / "fresh").write_text("fresh")


class Failing:
    """Lets os.link, os.replace and os.fsync work until call number `at` fails, and with `sticky` all later ones."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, sticky: bool = False):
        self.count = 0
        for name in ("link", "replace", "fsync"):
            monkeypatch.setattr(os, name, self._wrapped(getattr(os, name), at, sticky))

    def _wrapped(self, real, at: int, sticky: bool):
        def call(*arguments, **options):
            self.count += 1
            if self.count == at or (sticky and self.count > at):
                raise OSError(errno.EIO, "Input/output error")
            return real(*arguments, **options)

        return call


@pytest.fixture(params=["hard links", "none"])
def folder(request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if request.param == "none":

        def refuse(*arguments, **options):
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
    return tmp_path


@pytest.mark.parametrize("there", [0, 1, 2, 3])
def test_each_name_takes_over_what_the_one_before_it_was(folder: Path, there: int):
    fill(folder, NAMES[:there])
    storage.rotate(folder / "fresh", [folder / name for name in NAMES])
    assert contents(folder) == dict(zip(NAMES, ["fresh", *NAMES][: there + 1], strict=False))
    assert {path.name for path in folder.iterdir()} <= set(NAMES)


@pytest.mark.parametrize("there", [1, 2, 3])
def test_a_rotation_that_fails_anywhere_puts_the_names_back(folder: Path, there: int, monkeypatch: pytest.MonkeyPatch):
    before = {name: name for name in NAMES[:there]}
    for at in range(1, 40):
        fill(folder, NAMES[:there])
        with monkeypatch.context() as patch:
            failing = Failing(patch, at)
            try:
                storage.rotate(folder / "fresh", [folder / name for name in NAMES])
            except OSError:
                assert contents(folder) == before
                assert {path.name for path in folder.iterdir()} <= {*NAMES, "fresh"}
            else:
                assert failing.count < at
                break
    assert at > 2 * there


def test_a_disk_that_takes_nothing_more_leaves_whole_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It can stop between two renames, and then nothing can be put back; no name is missing even so."""
    for at in range(1, 14):
        fill(tmp_path, NAMES)
        with monkeypatch.context() as patch:
            failing = Failing(patch, at, sticky=True)
            try:
                storage.rotate(tmp_path / "fresh", [tmp_path / name for name in NAMES])
            except OSError:
                assert set(contents(tmp_path)) == set(NAMES)
                assert set(contents(tmp_path).values()) <= {*NAMES, "fresh"}
                assert {"first", "second"} <= set(contents(tmp_path).values())
            else:
                assert failing.count < at


def test_a_text_is_the_old_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    storage.write_text(tmp_path / "x", "old")
    for at in range(1, 5):
        with monkeypatch.context() as patch:
            failing = Failing(patch, at)
            try:
                storage.write_text(tmp_path / "x", f"new {at}")
            except OSError:
                assert (tmp_path / "x").read_text() in ("old", f"new {at}")
            else:
                assert failing.count < at
        assert len(list(tmp_path.iterdir())) == 1


def test_a_file_system_without_links_gets_copies(folder: Path):
    (folder / "first").write_text("one")
    (folder / "second").write_text("two")
    storage.duplicate(folder / "first", folder / "second")
    assert contents(folder) == {"first": "one", "second": "one"}
    assert len(list(folder.iterdir())) == 2
