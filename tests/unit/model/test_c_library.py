"""model/c_library.py: what it compiles can be called, is kept, and is another where the sources or flags differ."""

from pathlib import Path

import pytest

from model.c_library import compiled_library


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "forethought"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "three.c"
    path.write_text("int number(void) { return NUMBER; }")
    return path


def test_a_library_is_kept_by_its_source_and_flags(cache: Path, source: Path):
    first = compiled_library("numbers", (source,), ("-DNUMBER=3",))
    again = compiled_library("numbers", (source,), ("-DNUMBER=3",))
    other = compiled_library("numbers", (source,), ("-DNUMBER=4",))
    assert first is not None and again is not None and other is not None
    assert (first.number(), again.number(), other.number()) == (3, 3, 4)
    assert first._name == again._name != other._name
    assert sorted(path.name.split("-")[0] for path in cache.iterdir()) == ["numbers", "numbers"]


def test_what_cannot_be_compiled_is_none(cache: Path, source: Path, monkeypatch: pytest.MonkeyPatch):
    source.write_text("not C")
    assert compiled_library("numbers", (source,), ()) is None
    monkeypatch.setenv("CC", "no-such-compiler")
    assert compiled_library("numbers", (source,), ("-DNUMBER=3",)) is None
