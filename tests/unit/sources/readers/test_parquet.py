"""Parquet rows from any row on, by row groups; and what a schema nests."""

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sources.readers import parquet
from sources.readers.parquet import columns_of, parquet_shards, read_columns

ROWS = 50  # in row groups of 20, 20 and 10


@pytest.fixture
def path(tmp_path: Path, texts) -> Path:
    rows = [{"text": text, "id": number} for number, text in enumerate(texts[:ROWS])]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=20)
    return tmp_path / "a.parquet"


def rows_of(path: Path, start: int = 0, group: int | None = None) -> list[tuple[int, str]]:
    """(row number, text) of what is read."""
    with pq.ParquetFile(path) as file:
        batches = list(read_columns(file, ["text"], start, group))
    assert all(columns.keys() == {"text"} for _, columns in batches)
    return [(first + number, text) for first, columns in batches for number, text in enumerate(columns["text"])]


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
    with pq.ParquetFile(path) as file:
        sizes = [len(columns["text"]) for _, columns in read_columns(file, ["text"], 0)]
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
            found += [text for _, columns in read_columns(file, ["text"], 0, shard.group) for text in columns["text"]]
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


def test_columns_are_named_with_what_they_nest():
    line = {"text": "x", "answers": [{"text": ["a"], "start": 1}], "meta": {"title": "y", "tags": ["z"]}}
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([json.loads(json.dumps(line))]), stream)
    assert columns_of(pq.read_schema(stream)) == {
        "text": None,
        "answers": {"start": None, "text": None},
        "meta": {"tags": None, "title": None},
    }
