"""The plotting library is found where it is installed, and cannot end a script early."""

import sys

import pytest

from engine.screen.report import library


@pytest.fixture(autouse=True)
def unread():
    library.javascript.cache_clear()
    yield
    library.javascript.cache_clear()


def test_it_is_read_whole_and_is_as_large_as_is_said():
    text = library.javascript()
    assert text is not None and 1.2e6 < len(text) < 1.6e6
    assert "Bokeh" in text and "</script" not in text and "<!--" not in text


def test_without_the_package_there_is_none(monkeypatch):
    monkeypatch.setitem(sys.modules, "bokeh.util.paths", None)
    assert library.javascript() is None


def test_without_its_files_there_is_none(monkeypatch, tmp_path):
    monkeypatch.setattr("bokeh.util.paths.bokehjs_path", lambda: tmp_path)
    assert library.javascript() is None
