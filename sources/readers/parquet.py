"""Parquet files, row by row from any row on, at the cost of whole columns.

A position is a row number. The file's footer says which row group holds it, so that going on late in a file reads the
footer and that row group, nothing before. Rows come in batches of Python lists, column by column, which costs less than
a dictionary per row.
"""

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from sources.readers.fields import Columns

BATCH_BYTES = 2**20  # a batch holds about so much: rows can be books, and a batch of few small rows is slow
MAX_ROWS = 1024


def read_columns(
    parquet: pq.ParquetFile, columns: Sequence[str], start: int = 0, group: int | None = None
) -> Iterator[tuple[int, dict[str, list]]]:
    """Yield (number of the first row, column -> values) in batches, from row `start` on, of one row group or of all."""
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
    return {field.name: _inside(field.type) for field in schema}


def _inside(kind: pa.DataType) -> Columns | None:
    while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        kind = kind.value_type
    return {field.name: _inside(field.type) for field in kind} if pa.types.is_struct(kind) else None
