"""Parquet files, read row by row from any row on, at the cost of whole columns.

A position is a row number. The file's footer says which row group holds it, so resuming late in a file reads the footer
and that row group, nothing before. Rows come in batches of Python lists, column by column, which costs less than a
dictionary per row. How many rows a batch has depends on what they may need (`parquet_pages.py`): a small file may
unpack to gigabytes, and a million rows may share one text of megabytes.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple, cast

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from sources.readers.damage import is_damage
from sources.readers.fields import Columns
from sources.readers.parquet_pages import TooLarge, chunk_place, need
from sources.source import LONGEST_TEXT

BATCH_BYTES = 2**20  # a batch holds about this much: rows can be books, and a batch of few small rows is slow
MAX_ROWS = 1024
MOST_BATCH_BYTES = 64 * 1024**2  # what a batch may hold where rows differ, or share texts
MOST_LIST_BYTES = 2 * 1024**3  # of a row group's lists, any of which may belong to one row
FEW_FILES = 16  # fewer files are divided into their row groups


class Batch(NamedTuple):
    """Rows from number `first` on, by column; `columns` is None for rows that take too much memory."""

    first: int
    num_rows: int
    columns: Mapping[str, Sequence[object]] | None


class ParquetFile(pq.ParquetFile):
    """A parquet file whose column chunks are looked at before pyarrow decodes them; each is still read once."""

    def __init__(self, stream: BinaryIO, footer: pq.FileMetaData | None = None):
        self.chunks = ChunkFile(stream)
        super().__init__(self.chunks, metadata=footer, pre_buffer=False)


class ChunkFile(io.RawIOBase):
    """A file that may hold some byte ranges of it in memory."""

    def __init__(self, stream: BinaryIO):
        self._stream, self._at = stream, 0
        self._size = stream.seek(0, io.SEEK_END)
        self._held: dict[int, bytes] = {}

    def hold(self, places: Sequence[tuple[int, int]]) -> list[bytes]:
        """Read these ranges, given as (start, length), hold them instead of the former ones, and return them."""
        self._held = {}
        for start, length in places:
            self._stream.seek(start)
            self._held[start] = self._stream.read(max(0, min(length, self._size - start)))
        return [self._held[start] for start, _ in places]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        size = self._size - self._at if size < 0 else size
        data = self._held.get(self._at)
        if data is None or len(data) < size:
            self._stream.seek(self._at)
            data = self._stream.read(size)
        elif len(data) > size:
            data = data[:size]
        self._at += len(data)
        return data


@dataclass(frozen=True)
class ParquetShard:
    """A parquet file, or one row group of it together with the file's footer."""

    files: fsspec.AbstractFileSystem
    path: str
    group: int | None = None
    footer: pq.FileMetaData | None = None

    @contextmanager
    def open(self) -> Iterator[ParquetFile]:
        """Open the file, reading ahead where all of it is read."""
        with (
            self.files.open(self.path, cache_type="readahead" if self.group is None else "none") as stream,
            ParquetFile(cast(BinaryIO, stream), self.footer) as parquet,
        ):
            yield parquet

    @property
    def num_rows(self) -> int | None:
        """None where the footer has not been read."""
        return None if self.footer is None else self.footer.row_group(self.group).num_rows


def parquet_shards(addresses: Sequence[str]) -> list[ParquetShard]:
    """Return a shard per file, or per row group where there are fewer than FEW_FILES files.

    A file whose footer is damaged is one shard, whatever it holds: reading it says so.
    """
    shards = [ParquetShard(*fsspec.core.url_to_fs(address)) for address in addresses]
    if len(shards) >= FEW_FILES:
        return shards
    groups = []
    for shard in shards:
        footer = _footer(shard)
        if footer is None:
            groups.append(shard)
        else:
            groups += [ParquetShard(shard.files, shard.path, group, footer) for group in range(footer.num_row_groups)]
    return groups


def _footer(shard: ParquetShard) -> pq.FileMetaData | None:
    """Return a file's footer; None where it is damaged, and still is when it is read once more."""
    for _ in range(2):
        try:
            with shard.open() as parquet:
                return parquet.metadata
        except Exception as error:
            if not is_damage(error):
                raise
    return None


def read_columns(parquet: ParquetFile, columns: Sequence[str], start: int, group: int | None = None) -> Iterator[Batch]:
    """Yield batches of rows from row `start` on, of one row group or of all."""
    first = 0
    for number in range(parquet.num_row_groups):
        end = first + parquet.metadata.row_group(number).num_rows
        if end > start and group in (None, number):
            yield from _read_group(parquet, columns, number, first, max(start, first))
        first = end


def _read_group(parquet: ParquetFile, columns: Sequence[str], group: int, first: int, start: int) -> Iterator[Batch]:
    """Yield batches of one row group, which begins at row `first`, from row `start` on."""
    try:
        rows = _rows_per_batch(parquet, columns, group)
    except TooLarge:
        yield Batch(start, first + parquet.metadata.row_group(group).num_rows - start, None)
        return
    row = first
    for batch in parquet.iter_batches(rows, row_groups=[group], columns=columns):
        done = min(max(start - row, 0), batch.num_rows)
        if done < batch.num_rows:
            yield from to_python(_without_dictionaries(batch.slice(done)), row + done)
        row += batch.num_rows


def _rows_per_batch(parquet: ParquetFile, columns: Sequence[str], group: int) -> int:
    """Read the columns' chunks and return how many rows may be decoded at once. Raises TooLarge."""
    about = parquet.metadata.row_group(group)
    wanted = []
    for number in range(about.num_columns):
        path = about.column(number).path_in_schema
        if any(path == column or path.startswith(f"{column}.") for column in columns):
            wanted.append((about.column(number), parquet.schema.column(number).max_repetition_level > 0))
    value = 1
    chunks = parquet.chunks.hold([chunk_place(column) for column, _ in wanted])
    for (column, in_lists), chunk in zip(wanted, chunks, strict=True):
        needed = need(chunk, column)
        if in_lists and needed.total > MOST_LIST_BYTES:
            raise TooLarge(f"lists of {needed.total // 1024**2:,} MiB")
        value += needed.value
    rows = 1 + BATCH_BYTES * about.num_rows // max(1, about.total_byte_size)
    return max(1, min(MAX_ROWS, rows, MOST_BATCH_BYTES // value))


def to_python(rows: pa.RecordBatch | pa.Table, first: int) -> Iterator[Batch]:
    """Yield the rows as Python values; one by one where some take more than a text may."""
    if rows.nbytes <= LONGEST_TEXT:
        yield Batch(first, rows.num_rows, rows.to_pydict())
        return
    for number in range(rows.num_rows):
        row = rows.slice(number, 1)
        yield Batch(first + number, 1, row.to_pydict() if row.nbytes <= LONGEST_TEXT else None)


def _without_dictionaries(rows: pa.RecordBatch) -> pa.RecordBatch:
    """Return rows in which each value is there by itself, so that their size is known."""
    schema = pa.schema([field.with_type(_plain_type(field.type)) for field in rows.schema])
    return rows if schema == rows.schema else rows.cast(schema)


def _plain_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return kind.value_type
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_plain_type(field.type)) for field in kind])
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        plain = kind.value_field.with_type(_plain_type(kind.value_type))
        return pa.list_(plain) if pa.types.is_list(kind) else pa.large_list(plain)
    return kind


def columns_of(schema: pa.Schema) -> Columns:
    """Return a schema's columns and what is nested in them."""
    return {field.name: _nested(field.type) for field in schema}


def _nested(kind: pa.DataType) -> Columns | None:
    while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        kind = kind.value_type
    return {field.name: _nested(field.type) for field in kind} if pa.types.is_struct(kind) else None
