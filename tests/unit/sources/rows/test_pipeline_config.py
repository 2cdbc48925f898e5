"""How many rows a block has."""

import pytest

from sources.rows.filters import Filters
from sources.rows.pipeline_config import PipelineConfig


@pytest.mark.parametrize(("seq_length", "rows"), [(32, 256), (1024, 256), (2048, 128), (2**20, 16)])
def test_a_block_of_long_rows_has_fewer(tokenizer, seq_length: int, rows: int):
    assert PipelineConfig(tokenizer, seq_length, "best_fit", Filters(20), 16, True, 5, 0.0).block_rows == rows
