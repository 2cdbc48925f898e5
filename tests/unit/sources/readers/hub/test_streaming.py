"""The real `datasets` library on files of this machine: long lines, zstandard, files without rows, joined rows."""

import gzip
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sources.config import HubSpec
from sources.readers.base import Reader
from sources.readers.hub import streaming
from sources.readers.hub.reader import HubSource
from sources.readers.hub.streaming import BoundedLines
from sources.source import SourceError

LONGEST = 1000


@pytest.fixture
def short(monkeypatch):
    """A text may have 1,000 characters, and pieces are small."""
    monkeypatch.setattr(streaming, "LONGEST_TEXT", LONGEST)
    monkeypatch.setattr(streaming, "PIECE", 7)


def open_folder(path: Path, **options) -> HubSource:
    return HubSource(HubSpec(type="hf", dataset=str(path), **options))


def read_all(source: HubSource) -> list[str]:
    return [text for shard in range(source.num_shards) for text, _ in source.read(shard, None)]


def assert_resumable(source: HubSource) -> None:
    for shard in range(source.num_shards):
        documents = list(source.read(shard, None))
        for number in range(0, len(documents), max(1, len(documents) // 10)):
            rest = [text for text, _ in source.read(shard, json.loads(json.dumps(documents[number][1])))]
            assert rest == [text for text, _ in documents[number + 1 :]]


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize("size", [1, 50, 999, 1001, 5000])
@pytest.mark.parametrize("long_at", [0, 2, 5])
def test_lines_are_as_they_were_but_for_long_ones(short, as_text: bool, size: int, long_at: int):
    lines = ["a" * 10, "", "b" * 600, "c" * (LONGEST - 1), "d"]
    for ending in ("", "\n"):
        whole = "\n".join([*lines[:long_at], "x" * 3000, *lines[long_at:]]) + ending
        kept = "\n".join(lines) + ending if long_at < 5 else "\n".join([*lines, ""])
        stream = io.StringIO(whole) if as_text else io.BytesIO(whole.encode())
        with BoundedLines(stream, "a.jsonl", values=True) as bounded:
            found = "" if as_text else b""
            while piece := bounded.read(size):
                assert piece[-1:] in ("\n", b"\n") or found + piece == (kept if as_text else kept.encode())
                found += piece
                found += bounded.readline()
        assert found == (kept if as_text else kept.encode())
        assert stream.closed


def test_a_file_that_is_one_value_is_read_whole_up_to_a_bound(short, monkeypatch):
    value = json.dumps([{"text": "x" * 5000}]).encode()
    assert BoundedLines(io.BytesIO(value), "a.json", values=True).read(10) == value[:10]
    assert BoundedLines(io.BytesIO(value), "a.json", values=True).read() == value
    assert BoundedLines(io.BytesIO(value + b"\n[1]"), "a.txt", values=False).read(10) == b"[1]"
    monkeypatch.setattr(streaming, "LARGEST_VALUE", 4000)
    for size in (-1, 100):
        bounded = BoundedLines(io.BytesIO(value), "a.json", values=True)
        with pytest.raises(SourceError, match=r"a\.json is one JSON value of more than"):
            while bounded.read(size):
                pass


@pytest.mark.parametrize("name", ["train.jsonl.gz", "train.txt.gz"])
def test_the_library_skips_long_lines(tmp_path: Path, name: str):
    """40 MB in a line, packed into 40 kB."""
    lines = [f"row {number}" for number in range(300)]
    lines.insert(150, "x" * 40_000_000)
    packed = [json.dumps({"text": line}) if "json" in name else line for line in lines]
    (tmp_path / name).write_bytes(gzip.compress("".join(f"{line}\n" for line in packed).encode(), 1))
    del packed
    source = open_folder(tmp_path)
    assert read_all(source) == [f"row {number}" for number in range(300)]
    assert source.counts["lines that are too long"] >= 1
    assert len(source.notices) == 1 and source.notices[0].endswith("holds a line of more than 32 MiB, which is skipped")
    assert_resumable(source)


def test_lines_are_counted_for_the_reader_that_reads(short):
    first, second = Reader("first"), Reader("second")
    for reader in (first, second, second):
        with streaming.bounded_lines(reader):
            assert BoundedLines(io.BytesIO(b"x" * 2000 + b"\nend\n"), "a.jsonl", values=True).read(10) == b"end\n"
    assert (first.counts.total(), second.counts.total()) == (1, 2)


def test_zstandard_needs_no_further_package(tmp_path: Path, texts):
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts[:100]).encode()
    (tmp_path / "train.jsonl.zst").write_bytes(pa.Codec("zstd").compress(lines, asbytes=True))
    source = open_folder(tmp_path)
    assert read_all(source) == texts[:100]
    assert_resumable(source)


def test_files_without_rows_say_so(tmp_path: Path):
    (tmp_path / "train.jsonl").touch()
    with pytest.raises(SourceError, match=r"holds no rows; correct"):
        open_folder(tmp_path)
    (tmp_path / "train-2.jsonl").write_text('{"text": "a row"}\n')
    assert read_all(open_folder(tmp_path)) == ["a row"]


@pytest.mark.parametrize("kind", ["txt", "parquet"])
def test_rows_are_joined_across_batches(tmp_path: Path, kind: str):
    rows = [f"sentence {number}" for number in range(500)]
    rows[17] = ""
    if kind == "txt":
        (tmp_path / "train.txt").write_text("\n".join(rows) + "\n")
    else:
        pq.write_table(pa.table({"text": rows}), tmp_path / "train.parquet", row_group_size=150)
    source = open_folder(tmp_path, join_rows=100)
    # Text files are read as one, parquet by row groups.
    ends = [100, 200, 300, 400, 500] if kind == "txt" else [100, 150, 250, 300, 400, 450, 500]
    expected = ["\n".join(filter(None, rows[first:end])) for first, end in zip([0, *ends], ends, strict=False)]
    assert read_all(source) == expected
    assert_resumable(source)
    assert source.fingerprint()["join_rows"] == 100 and "join_rows" not in open_folder(tmp_path).fingerprint()
