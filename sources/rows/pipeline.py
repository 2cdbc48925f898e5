"""One source in one lane: an endless chain of blocks of packed rows.

A pass deals the source's shards to the lanes by a permutation of its own; where there are fewer shards than lanes, k
lanes share a shard, and of every k documents in a row each takes one, by a permutation again. A block is filled with
documents until it holds BLOCK_ROWS rows, its rows are permuted by a counter-based generator, and the next one begins
where it ended. A pass flows into the next one, unless passes are asked for whole (sequential mixing): then its last
block may be short.

Block n is a function of the state before it alone: position in the pass, the packer's carry, the hashes of recent
documents. So a run resumes by making one block again, wherever it had come to; and what makes the block (thread, worker
process, another world, the shard cache) cannot be told from the rows.
"""

import hashlib
import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from sources.rows.filters import RECENT, Filters, Recent, decode_hashes, encode_hashes, text_hash
from sources.rows.packing import Block, Packer, Packing, ids_dtype
from sources.rows.tokenizer import TextTokenizer
from sources.source import JSON, Source, SourceError

BLOCK_ROWS = 256
BLOCK_TOKENS = 2**18  # of long rows a block holds fewer
PART_CHARACTERS = 16_000  # longer documents are encoded in parts: memory stays bounded, and so does what a resume reads
ENCODE_CHARACTERS = 64_000  # texts are encoded together until they hold this much
LONGEST_WAIT = 60.0  # seconds between two tries

Event = dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """What makes rows of documents, the same for every lane and source of a run."""

    tokenizer: TextTokenizer
    seq_length: int
    packing: Packing
    filters: Filters
    num_lanes: int
    shuffle: bool
    seed: int
    retry_minutes: float
    whole_passes: bool = False  # a pass ends with a block that may be short; else the next one fills it
    replicated: frozenset[str] = frozenset()  # sources so small that every lane reads all of them

    @property
    def block_rows(self) -> int:
        return max(16, min(BLOCK_ROWS, BLOCK_TOKENS // self.seq_length))


@dataclass
class Surroundings:
    """Where a stream tells what happens, and learns that it should stop waiting."""

    announce: Callable[[str, str, str], None] = lambda name, what, message: None
    stopping: Callable[[], bool] = lambda: False
    counts: dict[str, dict[str, int]] = field(default_factory=dict)  # source -> reason -> documents passed over

    def count(self, name: str, reason: str, number: int = 1) -> None:
        reasons = self.counts.setdefault(name, {})
        reasons[reason] = reasons.get(reason, 0) + number


class Position(NamedTuple):
    """Before a document: the how-many-th of the pass's shards, the cursor, documents seen in it, parts taken of the
    next one, and the text_hash of that one once a part is taken."""

    shard: int = 0
    cursor: JSON = None
    seen: int = 0
    part: int = 0
    document: int | None = None


class Text(NamedTuple):
    """A document, or its next part; `after` is the position behind it."""

    text: str
    begins: bool
    finished: bool
    digests: tuple[int, ...]  # with its first part of other lanes' documents before it, with its last of itself
    after: Position


class Stream:
    """See the module's docstring. `state` is what `next_block` returned with a block, None: the chain's beginning."""

    def __init__(self, source: Source, lane: int, recipe: Recipe, around: Surroundings, state: JSON | None = None):
        self.source, self.lane, self.recipe, self.around = source, lane, recipe, around
        self._dtype = ids_dtype(recipe.tokenizer.vocab_size)
        state = state or beginning(source)
        self._number, self._pass = state["block"], state["pass"]
        self._position = Position(*(state[name] for name in Position._fields))
        if state["num_shards"] != source.num_shards:
            self._position = Position()
            around.announce(
                source.name,
                "notice",
                f"{source.name} now has {source.num_shards} shards instead of {state['num_shards']}; "
                f"lane {lane} begins its pass again",
            )
        self._exhausted = False  # whether this reading has come to the pass's end
        self._fruitful = False  # whether this reading has met a text that passes the filters, whichever lane's
        self._recent = deque(decode_hashes(state["recent"]), maxlen=RECENT)  # of documents that are in blocks
        self._packer = self._new_packer(state["carry"])
        self._encoded = self._read_pass()

    def next_block(self) -> tuple[Block, JSON]:
        """Make the next block; returns it with the state behind it. Raises SourceError.

        A block without rows: no shard holds a text that passes the filters.
        """
        number, recipe = self._number, self.recipe
        rows = recipe.block_rows
        if number == 0:  # of different lengths, so that the lanes do not come to the ends of their blocks together
            rows = max(1, rows * (self.lane + 1) // recipe.num_lanes)
        barren: set[int] = set()  # shards that were read since the last text and hold none for any lane
        while not self._packer.has_block(rows):
            read = next(self._encoded, None)
            if read is not None:
                ids, text = read
                if text.begins:
                    self._packer.end_document()  # which one may have been gone when this stream began
                self._packer.add(ids, text.finished)
                self._position = text.after
                self._recent.extend(text.digests)
                continue
            if recipe.whole_passes and self._packer.tokens:
                break
            # A share of a pass may be empty, and of a later one not: shards and documents are dealt anew each time.
            barren = set() if self._fruitful or self._position != Position() else barren.union(self._shards()[0])
            if len(barren) == self.source.num_shards:
                break
            self._next_pass()
        keys = None
        if recipe.shuffle:
            keys = counter_keys(rows, recipe.seed, self.source.name, "rows", self.lane, number)
        block = self._packer.block(rows, keys)
        if len(block):
            self._number += 1
        if recipe.whole_passes and self._exhausted and not self._packer.tokens and self._position != Position():
            self._next_pass()
        return block, self.state()

    @property
    def is_first_of_shard(self) -> bool:
        """Whether no lane of a lower number reads the same shards."""
        return self.lane == 0 if self.source.name in self.recipe.replicated else self.lane < self.source.num_shards

    def state(self) -> JSON:
        """The state behind the last block."""
        return {
            "block": self._number,
            "pass": self._pass,
            **self._position._asdict(),
            "carry": self._packer.carry(),
            "recent": encode_hashes(self._recent),
            "num_shards": self.source.num_shards,
        }

    def _new_packer(self, carry: JSON = None) -> Packer:
        recipe = self.recipe
        return Packer(recipe.seq_length, recipe.tokenizer.eos_id, self._dtype, recipe.packing, carry)

    def _next_pass(self) -> None:
        self._pass += 1
        self._position = Position()
        self._recent.clear()
        self._encoded = self._read_pass()

    def _read_pass(self) -> Iterator[tuple[np.ndarray, Text]]:
        """Yield the rest of this pass's texts with their ids; what is read ahead is in no state."""
        self._exhausted = self._fruitful = False
        texts, characters = [], 0
        for text in self._split():
            texts.append(text)
            characters += len(text.text)
            if characters >= ENCODE_CHARACTERS:
                yield from self._encode(texts)
                texts, characters = [], 0
        yield from self._encode(texts)
        self._exhausted = True

    def _encode(self, texts: list[Text]) -> Iterator[tuple[np.ndarray, Text]]:
        return zip(self.recipe.tokenizer.encode_batch([text.text for text in texts]), texts, strict=True)

    def _split(self) -> Iterator[Text]:
        """Cut long documents into parts."""
        for text, digests, before, after in self._usable():
            others, its_own = digests[:-1], digests[-1:]
            parts = split_text(text)
            skip = min(before.part, len(parts) - 1)  # fewer only where white space has gone since
            for number, part in enumerate(parts[skip:], start=skip + 1):
                begins, finished = number == 1, number == len(parts)
                # The others' with the first part: a resume between two parts does not read those documents again.
                known = (others if begins else ()) + (its_own if finished else ())
                yield Text(part, begins, finished, known, after if finished else before._replace(part=number))

    def _usable(self) -> Iterator[tuple[str, tuple[int, ...], Position, Position]]:
        """Yield this lane's documents that pass the filters: text, digests, the positions before and after.

        Of a shared shard the other lanes' documents are remembered too, so that all of them tell the same repeats.
        """
        filters, recent, digests = self.recipe.filters, Recent(self._recent), []
        name = self.source.name
        for text, mine, before, after in self._documents():
            if not (mine or filters.deduplicate) and self._fruitful:
                continue
            digest = text_hash(text)
            if before.document != digest:  # else a part of it is in use already
                before = before._replace(part=0, document=digest)
                reason = filters.reject(text, digest)
                self._fruitful |= reason is None
                if reason is None and filters.deduplicate and digest in recent:
                    reason = "repeated"
                if reason is not None:
                    if mine:
                        self.around.count(name, reason)
                    continue
            if filters.deduplicate:
                recent.add(digest)
                digests.append(digest)
            if mine:
                yield text, tuple(digests), before, after
                digests = []

    def _documents(self) -> Iterator[tuple[str, bool, Position, Position]]:
        """Yield the rest of the pass: each text, whether it is this lane's, the positions before and after it; retries
        what fails."""
        shards, lanes, turn = self._shards()
        start = self._position
        for index in range(start.shard, len(shards)):
            position = start if index == start.shard else Position(index)
            failing_since, tries = None, 0
            while True:
                began = time.monotonic()
                try:
                    for text, cursor in self.source.read(shards[index], position.cursor):
                        failing_since, tries, began = None, 0, None
                        before, position = position, Position(index, cursor, position.seen + 1)
                        yield text, self._turn(before, lanes) == turn, before, position
                    break
                except SourceError as error:
                    now = time.monotonic()
                    failing_since = failing_since or began or now
                    tries += 1
                    self._wait(error, position, tries, now - failing_since)

    def _wait(self, error: SourceError, position: Position, tries: int, failing: float) -> None:
        """Wait before another try, or raise the error when it is of no use."""
        left = 60 * self.recipe.retry_minutes - failing
        if not error.transient or left <= 0 or self.around.stopping():
            raise error
        growing = 2.0 ** min(tries - 1, 16)  # a float ends at 2**1024
        pause = min(LONGEST_WAIT, left, growing) * random.uniform(0.5, 1.0)  # waiting changes no row
        self.around.announce(
            self.source.name,
            "retry",
            f"{error.reason}; retrying at row {position.seen:,} of shard {position.shard + 1} in {pause:.0f} s "
            f"(for {left / 60:.0f} minutes more)",
        )
        end = time.monotonic() + pause
        while time.monotonic() < end and not self.around.stopping():
            time.sleep(min(0.1, pause))

    def _shards(self) -> tuple[list[int], int, int]:
        """This lane's shards in this pass, how many lanes share them, and the how-many-th of those this one is."""
        count, lane, lanes = self.source.num_shards, self.lane, self.recipe.num_lanes
        alone = self.source.name in self.recipe.replicated
        order: Sequence[int] = range(count)
        if self.recipe.shuffle:
            draw = (lane,) if alone else ()
            order = permutation(count, self.recipe.seed, self.source.name, "shards", self._pass, *draw)
        if alone:
            return list(order), 1, 0
        place = lane + self._pass  # in the order as it stands, too, every lane comes to every shard
        if count >= lanes:
            return list(order[place % lanes :: lanes]), 1, 0
        return [order[place % count]], len(range(lane % count, lanes, count)), lane // count

    def _turn(self, position: Position, lanes: int) -> int:
        """Which of the `lanes` lanes that share a shard takes the document behind `position`.

        Of `lanes` documents in a row each takes one, but not always the same one: those that are passed over may well
        stand at equal distances.
        """
        if lanes == 1:
            return 0
        row, place = divmod(position.seen, lanes)
        return permutation(lanes, self.recipe.seed, self.source.name, "documents", self._pass, row)[place]


def beginning(source: Source) -> JSON:
    """The state before a chain's first block."""
    return {
        "block": 0,
        "pass": 0,
        **Position()._asdict(),
        "carry": None,
        "recent": "",
        "num_shards": source.num_shards,
    }


def counter_keys(count: int, *key: str | int) -> np.ndarray:
    """Return `count` numbers drawn by Philox for this key: the same on every machine, whatever was drawn before.

    Raw bits: numpy promises their sequence for good, which it does not for its distributions and permutations.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=16).digest()
    bits = np.random.Philox(key=np.frombuffer(digest, dtype="<u8")).random_raw(count)
    return (bits >> np.uint64(11)) * 2.0**-53


@lru_cache(maxsize=256)
def permutation(count: int, *key: str | int) -> tuple[int, ...]:
    """Return the numbers below `count` in an order drawn for this key."""
    return tuple(np.argsort(counter_keys(count, *key), kind="stable").tolist())


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
