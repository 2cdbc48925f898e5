"""The cache of compiled code: begun anew after a kill, left alone while others use it."""

import fcntl
import os
from pathlib import Path

import pytest
import torch

from engine.compiling import NOTE, VARIABLE, Compiling, choose_compile
from engine.console import Console
from engine.errors import PresetError
from engine.ranks import Ranks

ALONE = Ranks(0, 1, torch.device("cpu"), None)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder, with something compiled in it."""
    folder = tmp_path / "compiled"
    folder.mkdir(mode=0o700)
    (folder / "ab").mkdir()
    (folder / "ab" / "library.so").write_bytes(b"")
    monkeypatch.setenv(VARIABLE, str(folder))
    return folder


def notes(folder: Path) -> list[Path]:
    return list(folder.glob(f"{NOTE}*"))


def test_what_was_compiled_in_peace_is_kept(cache: Path):
    compiling = Compiling(ALONE)
    assert os.environ[VARIABLE] == str(cache) and len(notes(cache)) == 1
    compiling.done()
    compiling.done()
    compiling.close()
    again = Compiling(ALONE)
    assert (cache / "ab" / "library.so").exists() and os.environ[VARIABLE] == str(cache)
    again.close()


def test_after_a_kill_the_cache_begins_anew(cache: Path):
    Compiling(ALONE).close()  # without being done, which is all that a killed process leaves
    assert len(notes(cache)) == 1
    compiling = Compiling(ALONE)
    assert [path.name[: len(NOTE)] for path in cache.iterdir()] == [NOTE]
    compiling.close()


def test_nothing_is_removed_under_a_process_that_compiles(cache: Path):
    Compiling(ALONE).close()
    with (cache / f"{NOTE}of-another").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        compiling = Compiling(ALONE)
    elsewhere = Path(os.environ[VARIABLE])
    assert elsewhere != cache and len(notes(elsewhere)) == 1 and (cache / "ab" / "library.so").exists()
    compiling.close()
    assert os.environ[VARIABLE] == str(cache)


@pytest.mark.parametrize("kind", ["others may write there", "a link", "a file"])
def test_code_is_only_loaded_from_where_nobody_else_writes(cache: Path, tmp_path: Path, kind: str, monkeypatch):
    if kind == "others may write there":
        cache.chmod(0o777)
    else:
        monkeypatch.setenv(VARIABLE, str(tmp_path / "x"))
        (tmp_path / "x").symlink_to(cache) if kind == "a link" else (tmp_path / "x").write_text("")
    compiling = Compiling(ALONE)
    elsewhere = Path(os.environ[VARIABLE])
    assert elsewhere not in (cache, tmp_path / "x") and elsewhere.stat().st_mode & 0o777 == 0o700
    compiling.close()


def test_without_room_for_a_compiler_it_trains_uncompiled(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    assert choose_compile("auto", ALONE, Console()) is None
    assert "torch.compile is not available here" in capsys.readouterr().out
    with pytest.raises(PresetError, match=r"train\.compile is true but"):
        choose_compile(True, ALONE, Console())
