"""What a column chunk needs is known from its pages alone: honest ones, shared texts, deltas, lists, damage."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sources.readers import parquet_pages
from sources.readers.parquet_pages import TooLarge, chunk_place, need

LONG = "x" * 100_000


def chunk_of(path: Path, values, **options) -> tuple[bytes, pq.ColumnChunkMetaData]:
    pq.write_table(pa.table({"text": values}), path / "a.parquet", **options)
    with pq.ParquetFile(path / "a.parquet") as file:
        column = file.metadata.row_group(0).column(0)
    start, length = chunk_place(column)
    return (path / "a.parquet").read_bytes()[start : start + length], column


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "zstd", "lz4", "brotli"])
def test_a_dictionary_needs_its_longest_entry_for_each_row(tmp_path: Path, compression: str, version: str):
    texts = pa.array(["short", "a little longer", LONG]).take(pa.array(np.arange(50_000) % 3))
    needed = need(*chunk_of(tmp_path, texts, compression=compression, data_page_version=version))
    assert needed == (len(LONG), 50_000 * len(LONG))


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_plain_pages_need_what_they_hold(tmp_path: Path, version: str):
    texts = [f"{number} {LONG[: number % 900]}" for number in range(30_000)]
    options = {"use_dictionary": False, "compression": "zstd", "data_page_size": 100_000}
    chunk, column = chunk_of(tmp_path, texts, data_page_version=version, **options)
    needed, held = need(chunk, column), sum(map(len, texts))
    assert len(chunk) < held / 20 and held < needed.total < 1.05 * held
    assert 450 < needed.value < 600


def test_a_delta_may_repeat_all_that_was_before(tmp_path: Path):
    options = {"use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY"}}
    chunk, column = chunk_of(tmp_path, [LONG + str(number) for number in range(100)], **options)
    assert need(chunk, column).value > len(LONG) and need(chunk, column).total > 100 * len(LONG)
    assert len(chunk) < 2 * len(LONG)


def test_a_page_of_any_size_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(parquet_pages, "LARGEST_PAGE", 50_000)
    for dictionary in (True, False):
        with pytest.raises(TooLarge):
            need(*chunk_of(tmp_path, [LONG], use_dictionary=dictionary, compression="zstd"))


def test_numbers_have_pages_too(tmp_path: Path):
    assert need(*chunk_of(tmp_path, list(range(1000)))).value < 20_000


def test_any_damage_is_an_error_or_a_number(tmp_path: Path):
    """Every byte of a chunk of small pages, changed; nothing but OSError and TooLarge comes out of it."""
    chunk, column = chunk_of(tmp_path, ["one", "two", "two"] * 30, compression="none")
    failures = 0
    for place in range(len(chunk)):
        for value in (0, 0x7F, 0xFF, chunk[place] ^ 1):
            try:
                need(chunk[:place] + bytes([value]) + chunk[place + 1 :], column)
            except (OSError, TooLarge):
                failures += 1
    assert failures > len(chunk) // 10
    for end in range(1, len(chunk)):
        with pytest.raises(OSError):
            need(chunk[:end], column)
            need(chunk[:end][: end - 1], column)
