"""Parquet files, read row by row from any row on, at the cost of whole columns.

A position is a row number. The file's footer says which row group holds it, so resuming late in a file reads the footer
and that row group, nothing before. Rows come in batches of Python lists, column by column, which costs less than a
dictionary per row.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from sources.readers.damage import is_damage
from sources.readers.fields import Columns

BATCH_BYTES = 2**20  # a batch holds about this much: rows can be books, and a batch of few small rows is slow
MAX_ROWS = 1024
FEW_FILES = 16  # fewer files are divided into their row groups

Batch: TypeAlias = tuple[int, Mapping[str, Sequence[object]]]  # number of the first row; column -> values


@dataclass(frozen=True)
class ParquetShard:
    """A parquet file, or one row group of it together with the file's footer."""

    files: fsspec.AbstractFileSystem
    path: str
    group: int | None = None
    footer: pq.FileMetaData | None = None

    @contextmanager
    def open(self) -> Iterator[pq.ParquetFile]:
        """Open the file, reading ahead where all of it is read."""
        with (
            self.files.open(self.path, cache_type="readahead" if self.group is None else "none") as stream,
            pq.ParquetFile(stream, metadata=self.footer) as parquet,
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


def read_columns(
    parquet: pq.ParquetFile, columns: Sequence[str], start: int, group: int | None = None
) -> Iterator[Batch]:
    """Yield batches of rows from row `start` on, of one row group or of all."""
    first = 0
    for number in range(parquet.num_row_groups):
        about = parquet.metadata.row_group(number)
        end = first + about.num_rows
        if end > start and group in (None, number):
            row = first
            rows = min(MAX_ROWS, 1 + BATCH_BYTES * about.num_rows // max(1, about.total_byte_size))
            for batch in parquet.iter_batches(rows, row_groups=[number], columns=columns):
                done = min(max(start - row, 0), batch.num_rows)
                if done < batch.num_rows:
                    yield row + done, batch.slice(done).to_pydict()
                row += batch.num_rows
        first = end


def columns_of(schema: pa.Schema) -> Columns:
    """Return a schema's columns and what is nested in them."""
    return {field.name: _nested(field.type) for field in schema}


def _nested(kind: pa.DataType) -> Columns | None:
    while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        kind = kind.value_type
    return {field.name: _nested(field.type) for field in kind} if pa.types.is_struct(kind) else None
