"""Rotation step by step: every call of the system that it makes is made to fail in turn."""

from pathlib import Path

import pytest

from engine.checkpoint.rotation import rotate
from tests.helpers.failing import FailingDisk, without_hard_links

NAMES = ["first", "second", "third"]


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.name in NAMES}


def fill(folder: Path, names: list[str]) -> None:
    """Gives each name a file of its own that holds the name, and makes one more, `fresh`."""
    for name in names:
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_text(name)
    (folder / "fresh").write_text("fresh")


@pytest.fixture(params=["hard links", "none"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if request.param == "none":
        without_hard_links(monkeypatch)
    return tmp_path


@pytest.mark.parametrize("existing", [0, 1, 2, 3])
def test_each_file_moves_one_name_along(folder: Path, existing: int):
    fill(folder, NAMES[:existing])
    rotate(folder / "fresh", [folder / name for name in NAMES])
    assert contents(folder) == dict(zip(NAMES, ["fresh", *NAMES][: existing + 1], strict=False))
    assert {path.name for path in folder.iterdir()} <= set(NAMES)


@pytest.mark.parametrize("existing", [1, 2, 3])
def test_a_failed_rotation_puts_the_names_back(folder: Path, existing: int, monkeypatch: pytest.MonkeyPatch):
    before = {name: name for name in NAMES[:existing]}
    for at in range(1, 40):
        fill(folder, NAMES[:existing])
        with monkeypatch.context() as patch:
            failing = FailingDisk(patch, at)
            try:
                rotate(folder / "fresh", [folder / name for name in NAMES])
            except OSError:
                assert contents(folder) == before
                assert {path.name for path in folder.iterdir()} <= {*NAMES, "fresh"}
            else:
                assert failing.count < at
                break
    assert at > 2 * existing


def test_a_disk_that_fails_for_good_leaves_whole_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It can stop between two renames, and then nothing can be put back; no name is missing even so."""
    for at in range(1, 14):
        fill(tmp_path, NAMES)
        with monkeypatch.context() as patch:
            failing = FailingDisk(patch, at, sticky=True)
            try:
                rotate(tmp_path / "fresh", [tmp_path / name for name in NAMES])
            except OSError:
                assert set(contents(tmp_path)) == set(NAMES)
                assert set(contents(tmp_path).values()) <= {*NAMES, "fresh"}
                assert {"first", "second"} <= set(contents(tmp_path).values())
            else:
                assert failing.count < at
