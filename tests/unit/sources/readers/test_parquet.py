"""Parquet rows from any row on, by row groups; and what a schema nests."""

import io
import json
import subprocess
import sys
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sources.readers import parquet, parquet_pages
from sources.readers.parquet import ParquetShard, columns_of, parquet_shards, read_columns
from tests.helpers.text import REPOSITORY

ROWS = 50  # in row groups of 20, 20 and 10


@pytest.fixture
def path(tmp_path: Path, texts) -> Path:
    rows = [{"text": text, "id": number} for number, text in enumerate(texts[:ROWS])]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=20)
    return tmp_path / "a.parquet"


def opened(path: Path):
    return ParquetShard(fsspec.filesystem("file"), str(path)).open()


def rows_of(path: Path, start: int = 0, group: int | None = None) -> list[tuple[int, str]]:
    """(row number, text) of what is read."""
    with opened(path) as file:
        batches = list(read_columns(file, ["text"], start, group))
    assert all(columns.keys() == {"text"} and len(columns["text"]) == rows for _, rows, columns in batches)
    return [(first + number, text) for first, _, columns in batches for number, text in enumerate(columns["text"])]


@pytest.mark.parametrize("most_rows", [7, 1024])
def test_reading_continues_from_any_row(path: Path, texts, monkeypatch, most_rows: int):
    monkeypatch.setattr(parquet, "MAX_ROWS", most_rows)
    whole = list(enumerate(texts[:ROWS]))
    for start in (0, 1, 19, 20, 33, 49, 50):
        assert rows_of(path, start) == whole[start:]
        for group, (first, last) in enumerate([(0, 20), (20, 40), (40, 50)]):
            assert rows_of(path, start, group) == whole[max(start, first) : last]


def test_a_batch_of_large_rows_is_small(path: Path, monkeypatch):
    monkeypatch.setattr(parquet, "BATCH_BYTES", 1)
    with opened(path) as file:
        sizes = [len(columns["text"]) for _, _, columns in read_columns(file, ["text"], 0)]
    assert sizes == [1] * ROWS


def test_resuming_late_reads_nothing_before(path: Path):
    """The row groups before are overwritten; the footer says where the last one is."""
    with pq.ParquetFile(path) as file:
        last = file.metadata.row_group(2).column(0)
        begin = last.dictionary_page_offset or last.data_page_offset
    expected, contents = rows_of(path, 41), bytearray(path.read_bytes())
    contents[4:begin] = b"\xff" * (begin - 4)
    path.write_bytes(contents)
    assert rows_of(path, 41) == expected and len(expected) == 9
    with pytest.raises(OSError):
        rows_of(path, 39)


def test_few_files_are_divided_into_row_groups(path: Path, texts):
    shards = parquet_shards([str(path)])
    assert [shard.group for shard in shards] == [0, 1, 2]
    found = []
    for shard in shards:
        with shard.open() as file:
            found += [text for batch in read_columns(file, ["text"], 0, shard.group) for text in batch.columns["text"]]
    assert found == texts[:ROWS]
    many = parquet_shards([str(path)] * parquet.FEW_FILES)
    assert len(many) == parquet.FEW_FILES and {shard.group for shard in many} == {None}


def test_a_file_without_rows_has_no_shard(tmp_path: Path):
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "empty.parquet")
    assert not sum(shard.num_rows or 0 for shard in parquet_shards([str(tmp_path / "empty.parquet")]))


def test_a_file_whose_footer_is_damaged_is_one_shard(tmp_path: Path, path: Path):
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and nothing else")
    shards = parquet_shards([str(path), str(tmp_path / "broken.parquet")])
    assert [shard.group for shard in shards] == [0, 1, 2, None] and shards[-1].num_rows is None
    with pytest.raises(pa.ArrowInvalid), shards[-1].open():
        pass


def write_shared(path: Path, size: int, kind: str, store_schema: bool = True) -> None:
    """100,000 references to one text of `size` bytes, in a file of two kilobytes: in 100,000 rows, or in one list."""
    values = pa.DictionaryArray.from_arrays(pa.array(np.zeros(100_000, "int32")), pa.array(["b" * size]))
    if kind == "struct":
        values = pa.StructArray.from_arrays([values], ["inner"])
    if kind == "list":
        values = pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values)
    options = {"compression": "zstd", "dictionary_pagesize_limit": 10**9, "store_schema": store_schema}
    pq.write_table(pa.table({"text": values}), path, **options)


PEAK = """
import json, resource, sys
from pathlib import Path
import fsspec
from sources.readers.parquet import ParquetShard, read_columns

resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1024
rows, long, before = 0, 0, peak()
with ParquetShard(fsspec.filesystem("file"), sys.argv[1]).open() as file:
    for batch in read_columns(file, ["text"], 0):
        rows, long = rows + batch.num_rows, long + (batch.columns is None)
        if rows >= 100:
            break
print(json.dumps([rows >= int(sys.argv[2]), long, peak() - before]))
"""


def peak_of(path: Path, rows: int = 1) -> list:
    """Whether that many rows were read, batches of long rows, and megabytes that reading took, in a fresh process."""
    command = [sys.executable, "-c", PEAK, str(path), str(rows)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind, store_schema", [("rows", True), ("rows", False), ("struct", True)])
def test_rows_that_share_a_text_stay_small(tmp_path: Path, kind: str, store_schema: bool):
    write_shared(tmp_path / "a.parquet", 4_000_000, kind, store_schema)
    enough, long, megabytes = peak_of(tmp_path / "a.parquet", rows=100)
    assert enough and not long and megabytes < 350


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_lists_that_share_a_text_and_long_texts_are_skipped(tmp_path: Path):
    write_shared(tmp_path / "list.parquet", 1_000_000, "list")
    assert peak_of(tmp_path / "list.parquet")[:2] == [True, 1]
    assert peak_of(tmp_path / "list.parquet")[2] < 50
    pq.write_table(pa.table({"text": ["c" * 80_000_000]}), tmp_path / "long.parquet", compression="zstd")
    enough, long, megabytes = peak_of(tmp_path / "long.parquet")
    assert enough and long == 1 and megabytes < 300


def test_a_long_row_is_skipped_by_itself(tmp_path: Path, monkeypatch, texts):
    monkeypatch.setattr(parquet, "LONGEST_TEXT", 50_000)
    rows = [*texts[:5], "x" * 60_000, *texts[5:9]]
    pq.write_table(pa.table({"text": rows}), tmp_path / "a.parquet")
    for start in (0, 3, 5, 6):
        found = {}
        with opened(tmp_path / "a.parquet") as file:
            for first, num_rows, columns in read_columns(file, ["text"], start):
                assert columns is not None or (first, num_rows) == (5, 1)
                found |= {first + n: text for n, text in enumerate(columns["text"])} if columns else {}
        assert found == {n: text for n, text in enumerate(rows) if n >= start and n != 5}


def test_a_row_group_that_is_refused_is_passed(path: Path, monkeypatch, texts):
    pq.write_table(pa.table({"text": ["x" * 300_000] * 20}), path.parent / "b.parquet")
    monkeypatch.setattr(parquet_pages, "LARGEST_PAGE", 200_000)
    tables = [pq.read_table(name, columns=["text"]) for name in (path, path.parent / "b.parquet", path)]
    pq.write_table(pa.concat_tables(tables).combine_chunks(), path, row_group_size=10, use_dictionary=False)
    with opened(path) as file:
        batches = list(read_columns(file, ["text"], 3))
        refused = [(first, rows) for first, rows, columns in batches if columns is None]
        assert refused == [(50, 10), (60, 10)]
        assert sum(rows for _, rows, _ in batches) == 117
        assert [batch.first for batch in read_columns(file, ["text"], 55) if batch.columns is None] == [55, 60]


def test_each_chunk_is_read_once(path: Path):
    """A remote file costs a request a read."""
    stream = io.BytesIO(path.read_bytes())
    reads: list[tuple[int, int]] = []
    read = stream.read
    stream.read = lambda size=-1: reads.append((stream.tell(), size)) or read(size)
    with parquet.ParquetFile(stream) as file:
        reads.clear()
        assert sum(batch.num_rows for batch in read_columns(file, ["text"], 0)) == ROWS
        places = [parquet_pages.chunk_place(file.metadata.row_group(number).column(0)) for number in range(3)]
    assert reads == places


def test_columns_are_named_with_what_they_nest():
    line = {"text": "x", "answers": [{"text": ["a"], "start": 1}], "meta": {"title": "y", "tags": ["z"]}}
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([json.loads(json.dumps(line))]), stream)
    assert columns_of(pq.read_schema(stream)) == {
        "text": None,
        "answers": {"start": None, "text": None},
        "meta": {"tags": None, "title": None},
    }
