"""A chain of blocks goes over to rows of another format: every token is in one row, of the former format or the new.

Of the blocks in use some rows were delivered. A Handover in the state before them says which. The blocks are made once
more, in the former format, and what stands in the other rows goes back to the packer, before what it has left over. The
pieces of a document that follow each other there are joined, so that longer rows hold longer parts of it. The next
block of the chain follows from that state alone, as any block does.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from typing import cast

from sources.rows.packing import Piece
from sources.rows.pipeline import PipelineCallbacks, PipelineState, RowPipeline
from sources.rows.pipeline_config import Handover, PipelineConfig, RowFormat
from sources.source import Source

Rows = Sequence[tuple[int, Piece]]  # of a block: the pieces, those of a document in order, each with its row's number


def handed_over(state: PipelineState, rows: RowFormat, taken: list[list[int]]) -> PipelineState:
    """Return the state behind what was delivered in rows of the format `rows`; `taken` is Handover's."""
    if not any(map(any, taken)):
        return state
    handover = Handover(rows=rows, taken=taken)
    if "handover" in state:
        handover["before"] = state["handover"]
    return {**state, "handover": handover}


def in_format(config: PipelineConfig, rows: RowFormat) -> PipelineConfig:
    """Return how rows of this format are made."""
    filters = replace(config.filters, long_text_length=rows.get("long_text_length", 0))
    length, windows = rows["seq_length"], rows.get("windows", 1)
    return replace(config, seq_length=length, windows=windows, packing=rows["packing"], filters=filters)


def open_chain(
    source: Source,
    lane: int,
    config: PipelineConfig,
    callbacks: PipelineCallbacks,
    state: PipelineState,
    *,
    retry: bool = True,
) -> RowPipeline:
    """Return the pipeline behind `state`, whose rows have `config`'s format. Raises SourceError, as next_block does."""
    handover = state.get("handover")
    if handover is None:
        return RowPipeline(source, lane, config, callbacks, state)
    former = {key: value for key, value in state.items() if key != "handover"}
    if "before" in handover:
        former["handover"] = handover["before"]
    pipeline = open_chain(
        source, lane, in_format(config, handover["rows"]), callbacks, cast(PipelineState, former), retry=retry
    )
    pipeline.packer.kept = kept = []
    lanes, made, last, delivered = len(handover["taken"]), state.get("rows", 0), pipeline.state, []
    for number in range(max(blocks + (own > 0) for blocks, own in handover["taken"])):
        last = pipeline.state
        block = pipeline.next_block(retry=retry).block
        delivered.append(
            [_was_taken(handover["taken"][(made + row) % lanes], number, row // lanes) for row in range(len(block))]
        )
        made += len(block)
    left = undelivered(kept, delivered)
    behind = pipeline.state
    if config.whole_epochs and left and behind["pass"] > last["pass"]:
        behind = _at_the_end_of_its_epoch(last)
    resumed = {**behind, "carry": pipeline.packer.carry(left), "block": state["block"]}
    if "rows" in state:  # by which lanes know their rows
        resumed["rows"] = state["rows"]
    return RowPipeline(source, lane, config, callbacks, cast(PipelineState, resumed))


def _was_taken(taken: Sequence[int], block: int, row: int) -> bool:
    """Whether a lane was given its row `row` of this block."""
    blocks, rows = taken
    return block < blocks or (block == blocks and row < rows)


def _at_the_end_of_its_epoch(state: PipelineState) -> PipelineState:
    """Behind the last shard: what is left of the epoch is no part of the next one."""
    end = {"shard": state["num_shards"], "cursor": None, "seen": 0, "part": 0, "document": None, "recent": ""}
    cycle = {} if "rows" in state else {"cycle": state.get("cycle", 1)}
    return cast(PipelineState, {**state, **end, **cycle})


def undelivered(blocks: Sequence[Rows], delivered: Sequence[Sequence[bool]]) -> list[Piece]:
    """Return the pieces, in order, of the rows that were not `delivered`.

    Of a chain that several lanes read, or in rows of several windows, a later piece of a document may be delivered
    before an earlier one. Pieces between which one was delivered are of different documents here, since they must not
    be joined.
    """
    left: list[Piece] = []
    runs: dict[int, list[int]] = {}  # of each document: the places in `left` of its pieces since a delivered one
    fresh = count(-1, -1)
    for rows, given in zip(blocks, delivered, strict=True):
        for row, piece in rows:
            if not given[row]:
                runs.setdefault(piece.document, []).append(len(left))
                left.append(piece)
            elif places := runs.pop(piece.document, None):
                number = next(fresh)
                for place in places:
                    left[place] = left[place]._replace(document=number)
    return left
