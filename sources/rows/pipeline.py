"""One source in one lane: documents in, an endless chain of blocks of packed rows out.

A text's way from a document to the loss:

    1. read      readers/                    a reader yields a shard's documents, each with the cursor behind it
    2. filter    filters.py                  drop what is short, held out, a near-copy, repeated, contaminated, foreign
    3. split     split_text, here            cut a long document into parts
    4. tokenize  tokenizer.py                encode several parts at a time
    5. pack      packing.py                  cut ids into pieces, and fit pieces into rows of seq_length
    6. prefetch  loading/prefetch.py         threads or processes make blocks ahead, or read cached ones (producer.py)
    7. batch     loading/loader.py           lanes.py and mixing.py say whose row is next; rows become tensors
    8. train     engine/run, model/loss.py   forward, backward and optimizer step

Steps 1 to 5 are this file's `RowPipeline`. It packs documents until a block of rows is full, orders the rows by a
counter-based generator, and goes on behind them with the next block. An epoch flows into the next one, or, with whole
epochs (sequential mixing), ends with a block that may be short. sharding.py says which shards and documents a lane
reads in an epoch. Of a small source there is one chain, made as if there were a single lane, and its rows are dealt to
the lanes in turn.

A block is a function of the state before it alone: the position in the epoch, the packer's carry, the hashes of recent
documents. So a run resumes by making one block again, wherever it was stopped, and neither threads, worker processes,
the number of ranks nor the shard cache change a row. What is read ahead of a block is in no state. Where rows get
another format, handover.py goes on behind those that were delivered.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, NotRequired, TypedDict, cast

import numpy as np

from sources.retries import Retries
from sources.rows.filters import RecentHashes, condensed_hash, older_condense
from sources.rows.near_copies import NearCopies, condense
from sources.rows.packing import Carry, Packer, RowBlock, ids_dtype
from sources.rows.pipeline_config import MIN_BLOCK_ROWS, PART_CHARACTERS, Handover, PipelineConfig
from sources.rows.sharding import LaneShare, counter_keys, share_of_lane
from sources.rows.tokenizer import RememberingEncoder
from sources.source import Source, SourceError
from storage import JSON

ENCODE_CHARACTERS = 64_000  # parts are encoded together until they hold this much

PipelineState = TypedDict(
    "PipelineState",
    {
        "block": int,  # blocks made so far, over all epochs
        "pass": int,  # the epoch, from 0
        "shard": int,  # this and the next four: Position
        "cursor": JSON,
        "seen": int,
        "part": int,
        "document": int | None,
        "carry": Carry | None,  # of the packer
        "recent": str,  # RecentHashes, encoded
        "num_shards": int,  # of the source
        "rows": NotRequired[int],  # made so far; of a chain that all lanes share
        "cycle": NotRequired[int],  # of share_of_lane in this epoch, of a chain of one lane; older versions: 1
        "handover": NotRequired[Handover],  # what `handover.open_chain` begins with
    },
)


@dataclass(frozen=True)
class PipelineCallbacks:
    """`announce(source, kind of event, message)` reports an event; `stopping()` tells a retry to give up."""

    announce: Callable[[str, str, str], None] = lambda source, what, message: None
    stopping: Callable[[], bool] = lambda: False


class Position(NamedTuple):
    """Where a lane stands in an epoch, before a document."""

    shard: int = 0  # index into the lane's shards of this epoch
    cursor: JSON = None  # the reader's, in this shard
    seen: int = 0  # documents of this shard before the cursor, those of other lanes included
    part: int = 0  # parts of the next document that are packed
    document: int | None = None  # text_hash of the next document, if parts of it are packed


START = Position()


class Document(NamedTuple):
    """A document of a shard that this lane reads, or a part of a long one: the first has `before.part` 0, the last
    `after.part` 0."""

    text: str
    is_own: bool  # else it is another lane's that shares the shard
    before: Position
    after: Position
    hashes: tuple[int, ...] = ()  # to remember with it: of other lanes' documents and near-copies before it, its own


@dataclass(frozen=True)
class BlockResult:
    """A block, the state behind it, and the documents that were filtered out (by reason) or packed on the way."""

    block: RowBlock
    after: PipelineState
    filtered: dict[str, int]
    documents: int = 0


class RowPipeline:
    """`state` is one that an earlier block was returned with; None begins the chain."""

    def __init__(
        self,
        source: Source,
        lane: int,
        config: PipelineConfig,
        callbacks: PipelineCallbacks,
        state: PipelineState | None = None,
    ):
        self.source, self.lane, self.config, self.callbacks = source, lane, config, callbacks
        state = state or initial_state(source, config)
        self.state = state  # behind the last block
        self._is_shared = source.name in config.shared
        self._encode = config.tokenizer.encode_batch
        if self._is_shared:
            self._encode = RememberingEncoder(config.tokenizer).encode_batch
        dtype, eos_id = ids_dtype(config.tokenizer.vocab_size), config.tokenizer.eos_id
        carry = state["carry"]
        self._is_first = state["block"] == 0 or bool(carry and not carry["seq_length"])  # block of rows of this format
        self.packer = Packer(config.seq_length, eos_id, dtype, config.packing, carry, config.windows)
        self._filtered: Counter[str] = Counter()
        self._documents = 0  # packed since the last block
        self._share: LaneShare | None = None  # what is read in this epoch
        position = Position(state["shard"], state["cursor"], state["seen"], state["part"], state["document"])
        if state["num_shards"] != source.num_shards:
            position, counted = START, f"{source.num_shards} shards instead of {state['num_shards']}"
            message = f"{source.name} now has {counted}; lane {lane} restarts its epoch"
            callbacks.announce(source.name, "notice", message)
        self._start(state["pass"], state.get("cycle", 1), position, RecentHashes.decode(state["recent"]))

    def next_block(self, *, retry: bool = True) -> BlockResult:
        """Make the next block. Raises SourceError once the source has failed for `retry_minutes`, or, without `retry`,
        at its first failure.

        A block without rows says that no shard holds a text that passes the filters.
        """
        config, number = self.config, self.state["block"]
        patience = 60 * config.retry_minutes if retry else 0.0
        self._retries = Retries(self.source.name, patience, self.callbacks.announce, self.callbacks.stopping)
        rows = config.block_rows
        if self._is_first and not self._is_shared:  # so that the lanes do not reach the ends of their blocks together
            rows = max(1, rows * (self.lane + 1) // config.num_lanes)
        rows = self._fill(rows)
        key = (config.seed, self.source.name, "rows", self.lane, number)
        block = self.packer.block(rows, counter_keys(rows, *key) if config.shuffle else None)
        if config.whole_epochs and self._position != START and self._epoch_is_over():
            self._start(self._epoch + 1, config.num_lanes)
        number, self._is_first = number + (len(block) > 0), False
        chain = {"rows": self.state.get("rows", 0) + len(block)} if self._is_shared else {"cycle": self._cycle}
        counts = {"block": number, "pass": self._epoch, **chain}
        was_older = self._is_older
        self.state = _state(self.source, counts, self._position, self.packer.carry(), self._recent.encode())
        if was_older:  # what is read ahead of it is filtered in today's way
            self._start(self._epoch, self._cycle, self._position, self._recent)
        documents, self._documents = self._documents, 0
        return BlockResult(block, self.state, self._take_filtered(), documents)

    @property
    def _is_older(self) -> bool:
        """Whether version 0.2.0 began the next block: it must hold the same rows, as some of them were trained on."""
        return not self._is_shared and "cycle" not in self.state

    def _fill(self, rows: int) -> int:
        """Pack parts until there is a block of `rows` rows, or the rest of a whole epoch; returns the block's rows.

        Blocks of a chain that all lanes share end with an epoch if they can: rows are permuted, and pieces wait, in
        blocks, which for a very small source would be many epochs.
        """
        empty_shards: set[int] = set()  # those read since the last text, which hold none for any lane
        while not self.packer.has_block(rows):
            if (item := self._next_part()) is not None:
                part, ids = item
                if part.before.part == 0:
                    self.packer.end_document()  # an unfinished one, whose rest has gone from the source
                    self._documents += 1
                self.packer.add(ids, finished=part.after.part == 0)
                self._position = part.after
                for digest in part.hashes:
                    self._recent.add(digest)
                continue
            if self.config.whole_epochs and self.packer.tokens:
                return rows
            # A lane's share of one epoch may be empty and that of a later one not: each deals anew.
            assert self._share is not None
            if self._found_text or self._position != START:
                empty_shards.clear()
            else:
                empty_shards.update(self._share.shards)
            if len(empty_shards) == self.source.num_shards:
                break
            self._start(self._epoch + 1, 1 if self._is_older else self.config.num_lanes)
            if self._is_shared and self.packer.has_block(MIN_BLOCK_ROWS):
                return self.packer.rows_ready
        return rows

    def _start(self, epoch: int, cycle: int, position: Position = START, recent: RecentHashes | None = None) -> None:
        """Set up the chain of steps 1 to 4 from `position` on."""
        self._count_unusable()
        self._epoch, self._cycle, self._position, self._recent = epoch, cycle, position, recent or RecentHashes()
        self._share = share_of_lane(self.source, self.config, self.lane, epoch, cycle)
        self._found_text = False  # whether a text passed the filters since here, whichever lane's
        self._tokenized = tokenize(split(self._filter(self._read(self._share))), self._encode)
        self._ahead: tuple[Document, np.ndarray] | None = None  # what `_epoch_is_over` met

    def _next_part(self) -> tuple[Document, np.ndarray] | None:
        """Return the epoch's next part with its ids, or None at its end."""
        item, self._ahead = self._ahead, None
        return item or next(self._tokenized, None)

    def _epoch_is_over(self) -> bool:
        """Whether all of this epoch is packed: the next block must not be taken for one of it."""
        if self.packer.tokens:
            return False
        self._ahead = self._next_part()
        return self._ahead is None

    def _read(self, share: LaneShare) -> Iterator[Document]:
        """Step 1: yield the rest of the epoch's documents; retries what fails."""
        first = self._position
        for index in range(first.shard, len(share.shards)):
            position = first if index == first.shard else Position(index)
            while True:
                try:
                    for text, cursor in self.source.read(share.shards[index], position.cursor):
                        before, position = position, Position(index, cursor, position.seen + 1)
                        yield Document(text, share.owns(before.seen), before, position)
                        self._retries.succeeded()
                    break
                except SourceError as error:
                    self._retries.wait(error, f" at row {position.seen:,} of shard {position.shard + 1}")

    def _filter(self, documents: Iterable[Document]) -> Iterator[Document]:
        """Step 2: yield this lane's documents that pass the filters.

        Lanes that share a shard remember each other's documents, so that all of them find the same repeats. They do not
        ask which of these are near-copies, so every lane remembers its own near-copies too.
        """
        filters, recent = self.config.filters, RecentHashes(self._recent)  # a copy: reading runs ahead of packing
        condensing, near_copies = condense, filters.near_copies
        if self._is_older:
            condensing, near_copies = older_condense, NearCopies()
        hashes: list[int] = []
        for document in documents:
            if not (document.is_own or filters.deduplicate) and self._found_text:
                continue
            condensed, begun = condensing(document.text), document.before.document
            digest, reason = condensed_hash(condensed), None
            before = document.before._replace(document=digest)
            # Else parts of it are packed already.
            if begun is None or begun not in (digest, condensed_hash(older_condense(document.text))):
                before = before._replace(part=0)
                reason = filters.reject(document.text, digest)
                if reason is None and filters.deduplicate and digest in recent:
                    reason = "repeated"
                if reason is not None:
                    if document.is_own:
                        self._filtered[reason] += 1
                    continue
                if (document.is_own or not self._found_text) and near_copies.recognize(condensed):
                    reason = "similar to a validation document"
                self._found_text |= reason is None
            if filters.deduplicate:
                recent.add(digest)
                hashes.append(digest)
            if not document.is_own:
                continue
            if reason is not None:
                self._filtered[reason] += 1
                continue
            yield document._replace(before=before, hashes=tuple(hashes))
            hashes = []

    def _take_filtered(self) -> dict[str, int]:
        """Return what was filtered out since the last block, by the reader too."""
        self._count_unusable()
        filtered, self._filtered = dict(self._filtered), Counter()
        return filtered

    def _count_unusable(self) -> None:
        """Count what the reader skipped; once, where lanes share a shard and all meet the same rows."""
        if self._share is None:  # nothing is read yet
            return
        if self._share.turn == 0:
            self._filtered.update(self.source.counts)
        self.source.counts.clear()


def initial_state(source: Source, config: PipelineConfig, epoch: int = 0) -> PipelineState:
    """Return the state before a chain's first block, which begins with this epoch."""
    chain = {"rows": 0} if source.name in config.shared else {"cycle": config.num_lanes}
    return _state(source, {"block": 0, "pass": epoch, **chain}, START, None, "")


def _state(
    source: Source, counts: dict[str, int], position: Position, carry: Carry | None, recent: str
) -> PipelineState:
    state = {**counts, **position._asdict(), "carry": carry, "recent": recent, "num_shards": source.num_shards}
    return cast(PipelineState, state)


def split(documents: Iterable[Document]) -> Iterator[Document]:
    """Step 3: yield the parts of each document that are not packed yet."""
    for document in documents:
        texts = split_text(document.text)
        last = len(texts) - 1
        packed = min(document.before.part, last)  # fewer parts only where white space has gone since
        for number, text in enumerate(texts[packed:], start=packed):
            # Other lanes' with the first part: a resume between two parts does not read those documents again.
            hashes = document.hashes[:-1] if number == 0 else ()
            hashes += document.hashes[-1:] if number == last else ()
            before, after = (document.before._replace(part=part) for part in (number, number + 1))
            yield Document(text, document.is_own, before, document.after if number == last else after, hashes)


def split_text(text: str) -> list[str]:
    """Cut a long text into parts of at most PART_CHARACTERS, where a line or a word ends if one does."""
    parts, start = [], 0
    while len(text) - start > PART_CHARACTERS:
        end = start + PART_CHARACTERS
        for mark in ("\n", " "):
            if (found := text.rfind(mark, start + PART_CHARACTERS // 2, end)) > 0:
                end = found
                break
        parts.append(text[start:end])
        start = end
    return [*parts, text[start:]]


def tokenize(
    parts: Iterable[Document], encode: Callable[[Sequence[str]], list[np.ndarray]]
) -> Iterator[tuple[Document, np.ndarray]]:
    """Step 4: yield parts with their ids."""
    batch: list[Document] = []
    characters = 0
    for part in parts:
        batch.append(part)
        characters += len(part.text)
        if characters >= ENCODE_CHARACTERS:
            yield from zip(batch, encode([part.text for part in batch]), strict=True)
            batch, characters = [], 0
    yield from zip(batch, encode([part.text for part in batch]), strict=True)
