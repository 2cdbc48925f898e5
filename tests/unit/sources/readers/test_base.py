"""What all readers share: each fact is announced once, each skipped file is counted once per reason."""

import weakref

import pytest

from sources.readers import base
from sources.readers.base import Reader
from sources.readers.fields import compile_template
from sources.readers.parquet import Batch


@pytest.fixture
def reader() -> Reader:
    return Reader("files")


def test_a_fact_about_a_file_is_announced_once(reader: Reader):
    for file in ("a.txt", "b.txt", "a.txt"):
        reader.announce(file, "is long")
    reader.announce("a.txt", "is old")
    assert reader.notices == ["a.txt: is long", "b.txt: is long", "a.txt: is old"]


def test_a_skipped_file_is_counted_once_per_reason(reader: Reader):
    for reason in ("binary files", "damaged files", "binary files"):
        reader.skip("a.txt", reason)
    reader.skip("b.txt", "damaged files", "is damaged (CRC)")
    reader.skip("b.txt", "damaged files", "is damaged (length)")
    assert reader.counts == {"binary files": 1, "damaged files": 2}
    assert reader.notices == ["b.txt: is damaged (CRC)"]


def test_a_changed_folder_is_announced_with_its_detail(reader: Reader):
    reader.announce_change("./notes", " (it had 5, now 6)")
    (notice,) = reader.notices
    assert notice.startswith("the files in ./notes have changed since this run began (it had 5, now 6); reading")


def test_a_missing_column_is_announced_once_a_file(reader: Reader):
    template = compile_template(None, ["text"])
    for columns in ({"body": None}, {"txet": None}):
        assert reader.bind(template, columns, "a.jsonl") is None
    assert reader.bind(template, {"txet": None}, "b.jsonl") is None
    assert reader.bind(template, {"text": None, "id": None}, "a.jsonl") == template
    assert [notice.split(":")[0] for notice in reader.notices] == ["a.jsonl", "b.jsonl"]
    assert "its columns are body. Rows without it are skipped." in reader.notices[0]
    assert 'did you mean "text"' not in reader.notices[0] and '(did you mean "txet"?)' in reader.notices[1]


def test_a_substitute_column_is_announced_unless_it_is_usual(reader: Reader):
    template = compile_template(None, ["question"])
    usual = reader.bind(template, {"query": None}, "a.parquet")
    assert usual is not None and usual.columns == ["query"]
    assert reader.bind(template, {"query": None}, "b.parquet", usual) == usual
    assert reader.bind(template, {"question": None}, "c.parquet", usual) == template
    expected = "a.parquet: field question is read from the column query, since there is no column question"
    assert reader.notices == [expected]


def test_rows_become_texts_with_the_number_of_the_next_row(reader: Reader):
    batches = [Batch(0, 3, {"text": ["one", None, "two"]}), Batch(7, 2, {"text": [" ", "three"]})]
    rows = list(reader.rows(compile_template("<{text}>", None), batches, "a.parquet"))
    assert rows == [("<one>", 1), (None, 2), ("<two>", 3), (None, 8), ("<three>", 9)]
    assert list(reader.joined(rows, "a.parquet")) == [("<one>", 1), ("<two>", 3), ("<three>", 9)]
    assert reader.counts == {"rows without text": 2}


def test_joining_holds_no_more_than_a_text_may_have(reader: Reader, monkeypatch):
    """A thousand rows of just under the bound would be gigabytes."""
    monkeypatch.setattr(base, "LONGEST_TEXT", 100)
    reader.join_rows = 5
    held: weakref.WeakSet[Text] = weakref.WeakSet()
    most = 0

    def rows():
        nonlocal most
        for number in range(12):
            text = Text(f"{number:060}" if number < 10 else f"short {number}")  # a set has equal ones once
            held.add(text)
            yield text, number + 1
            del text
            most = max(most, len(held))

    assert list(reader.joined(rows(), "a.parquet")) == [("short 10\nshort 11", 12)]
    assert reader.counts == {"texts that are too long": 2} and most <= 3


class Text(str):
    """A text that can be referred to weakly."""
