"""What turns documents into rows, the same for every lane and source of a run."""

from dataclasses import dataclass
from typing import NotRequired, TypedDict

from sources.rows.filters import Filters
from sources.rows.packing import Packing
from sources.rows.tokenizer import TextTokenizer

BLOCK_ROWS = 256
BLOCK_TOKENS = 2**18  # of long rows a block holds fewer
SMALL_SOURCE = 4_000_000  # characters; below, all lanes share one chain of a source's blocks
MIN_BLOCK_ROWS = 16
PART_CHARACTERS = 16_000  # longer documents are encoded in parts, which bounds memory and what a resume reads again


class RowFormat(TypedDict):
    """What rows look like."""

    seq_length: int
    packing: Packing
    windows: NotRequired[int]  # of a row, each of seq_length; missing: one
    long_text_length: NotRequired[int]  # characters; where rows are made of longer documents alone


class Handover(TypedDict):
    """A chain of blocks goes over to rows of another format (handover.py), behind these rows of the former one."""

    rows: RowFormat  # the former one
    taken: list[list[int]]  # of each lane that reads the chain: blocks that it has behind it, its rows of the next one
    before: NotRequired["Handover"]  # an earlier one, in the same place


@dataclass(frozen=True)
class PipelineConfig:
    """With the source, its lane and the shard cache's format, this decides every row (see caching.py)."""

    tokenizer: TextTokenizer
    seq_length: int  # labels of a row, or of a window where a row has several
    packing: Packing
    filters: Filters
    num_lanes: int
    shuffle: bool
    seed: int
    retry_minutes: float  # how long a source may fail; changes no row
    whole_epochs: bool = False  # an epoch ends with a block that may be short; else the next epoch fills it
    shared: frozenset[str] = frozenset()  # small sources, of whose one chain of blocks each lane takes every n-th row
    windows: int = 1  # of a row

    @property
    def block_rows(self) -> int:
        return max(MIN_BLOCK_ROWS, min(BLOCK_ROWS, BLOCK_TOKENS // self.seq_length) // self.windows)
