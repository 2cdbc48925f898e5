"""Virtual lanes: the unit of sharding and of resuming.

A run has V lanes, fixed when its lineage begins. Of every source, lane v owns the shards s with s % V == v; where there
are fewer shards than lanes, it reads shard v % S and takes every k-th document of it, k being the number of lanes that
read this shard. Together the lanes give every document exactly once per pass, and a lane goes on pass after pass.

A lane has one stream per source (documents -> filter -> tokens -> rows) and one mixer that picks whose row is next. A
stream's state is the cursor before the first document that is not fully consumed, and how many of its tokens are: on a
resume that document is read and tokenised again. No tokens are ever saved.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sources.config import DataConfig
from sources.held_out import is_held_out
from sources.mixing import Mixer, SequentialMixer
from sources.packing import Packer
from sources.source import JSON, Source, SourceError
from sources.tokenizer import TextTokenizer

RETRIES = 2  # after the first failure; the network's own retries come before each
BACKOFF = 1.0  # seconds before the first retry, doubled for each further one
ENCODE_CHARACTERS = 64 * 1024  # texts are encoded together until they hold this much
ENCODE_DOCUMENTS = 64

Event = dict[str, Any]


@dataclass
class Shared:
    """What the lanes of one process have in common."""

    config: DataConfig
    tokenizer: TextTokenizer
    seq_length: int
    num_lanes: int
    events: list[Event] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)  # source -> why it is no longer read
    newest_pass: dict[str, int] = field(default_factory=dict)
    stopping: Callable[[], bool] = lambda: False

    def announce(self, name: str, what: str, message: str) -> None:
        self.events.append({"event": "source", "name": name, "what": what, "message": message})


@dataclass(frozen=True)
class Position:
    """Before a document: which pass, the how-many-th of the lane's shards, the cursor, documents seen in this shard."""

    number: int = 0
    shard: int = 0
    cursor: JSON = None
    seen: int = 0


class Stream:
    """One source's rows in one lane, without end; `dry` once a whole pass has given nothing."""

    def __init__(self, source: Source, lane: int, shared: Shared, state: JSON | None):
        self.source, self.lane, self.shared = source, lane, shared
        self.shards, self.stride, self.offset = owned_shards(source.num_shards, lane, shared.num_lanes)
        self.packer = Packer(shared.seq_length, shared.tokenizer.eos_id)
        self.dry = False
        self.tokens = 0  # labels delivered since the lineage began
        self._read_to = Position()  # after the last document that was read
        self._skip = 0  # ids of the next document that were consumed before a restart
        self._failure: SourceError | None = None
        self._found = False  # whether the pass that is being read has given a document
        if state is not None:
            self._load(state)
        self._documents = self._read()

    def fill(self, tokens: int) -> bool:
        """Queue documents until `tokens` labels are ready; False when there will be none. Raises SourceError."""
        self._queue(tokens)
        if self.packer.queued < tokens and self._failure is not None:
            raise self._failure
        return self.packer.queued >= tokens

    def row(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the next row's input ids and labels; `fill(seq_length)` must have succeeded."""
        assert self.packer.queued >= self.shared.seq_length
        self.tokens += self.shared.seq_length
        return self.packer.row()

    def next_pass(self) -> int:
        """Which pass the next token belongs to."""
        self._queue(1)
        position, _ = self.packer.front or (self._read_to, 0)
        return position.number

    def state(self) -> JSON:
        position, taken = self.packer.front or (self._read_to, self._skip)
        return {
            "pass": position.number,
            "shard": position.shard,
            "cursor": position.cursor,
            "seen": position.seen,
            "taken": taken,
            "tokens": self.tokens,
            "num_shards": self.source.num_shards,
        }

    def _queue(self, tokens: int) -> None:
        """Read and encode until `tokens` labels are queued, or the stream is dry, or it fails (kept for `fill`)."""
        while self.packer.queued < tokens and not self.dry and self._failure is None:
            batch: list[tuple[str, Position]] = []
            characters = 0
            try:
                while characters < ENCODE_CHARACTERS and len(batch) < ENCODE_DOCUMENTS:
                    document = next(self._documents, None)
                    if document is None:
                        self.dry = not batch
                        break
                    batch.append(document)
                    characters += len(document[0])
            except SourceError as error:
                self._failure = error  # what was read before it is still good
            encoded = self.shared.tokenizer.encode_batch([text for text, _ in batch])
            for ids, (_, position) in zip(encoded, batch, strict=True):
                self.packer.add(ids, position, min(self._skip, len(ids)))
                self._skip = 0

    def _load(self, state: JSON) -> None:
        self.tokens = state["tokens"]
        newest = self.shared.newest_pass
        newest[self.source.name] = max(state["pass"], newest.get(self.source.name, 0))
        if state["num_shards"] == self.source.num_shards:
            self._read_to = Position(state["pass"], state["shard"], state["cursor"], state["seen"])
            self._skip = state["taken"]
            self._found = self._read_to != Position(state["pass"])
        else:
            self._read_to = Position(state["pass"])
            self.shared.announce(
                self.source.name,
                "notice",
                f"{self.source.name} now has {self.source.num_shards} shards instead of {state['num_shards']}; "
                f"lane {self.lane} begins its pass again",
            )

    def _read(self) -> Iterator[tuple[str, Position]]:
        """Yield this lane's usable documents with the position before each, pass after pass."""
        while True:
            for text, before in self._one_pass():
                stripped = text.strip()
                if len(stripped) >= self.shared.config.min_text_length and stripped and not is_held_out(text):
                    self._found = True
                    yield text, before
            if not self._found:
                self._read_to = Position(self._read_to.number)
                return
            self._found = False
            self._read_to = Position(self._read_to.number + 1)
            newest = self.shared.newest_pass
            if self._read_to.number > newest.get(self.source.name, 0):
                newest[self.source.name] = self._read_to.number
                message = f"{self.source.name} begins pass {self._read_to.number + 1}"
                self.shared.announce(self.source.name, "next_pass", message)

    def _one_pass(self) -> Iterator[tuple[str, Position]]:
        """Yield the rest of this pass's documents of this lane; retries what fails, then raises SourceError."""
        while self._read_to.shard < len(self.shards):
            failures = 0
            while True:
                try:
                    start = self._read_to
                    for text, cursor in self.source.read(self.shards[start.shard], start.cursor):
                        failures = 0
                        before = self._read_to
                        self._read_to = Position(before.number, before.shard, cursor, before.seen + 1)
                        if before.seen % self.stride == self.offset:
                            yield text, before
                    break
                except SourceError as error:
                    failures += 1
                    if failures > RETRIES or self.shared.stopping():
                        raise
                    self.shared.announce(self.source.name, "retry", f"{error.reason} (retry {failures} of {RETRIES})")
                    time.sleep(BACKOFF * 2 ** (failures - 1))
            self._read_to = Position(self._read_to.number, self._read_to.shard + 1)


class Lane:
    """One lane's streams and mixer; entries of sources that are absent this time pass through its state untouched."""

    def __init__(self, number: int, sources: dict[str, Source], shared: Shared, state: JSON | None = None):
        self.shared = shared
        kept = state["streams"] if state else {}
        self._absent = {name: stream for name, stream in kept.items() if name not in sources}
        self.streams = {name: Stream(source, number, shared, kept.get(name)) for name, source in sources.items()}
        weights = {name: weight for name, weight in shared.config.weights().items() if name in sources}
        if shared.config.mix_strategy == "sequential":
            self.mixer = SequentialMixer(list(weights), lambda name: self.streams[name].next_pass())
        else:
            self.mixer = Mixer(weights, shared.seq_length, phase=0 if state else number)
        self._begun = False
        turn = state["mixer"].get("current") if state else None
        if state is not None and (turn is None or turn in kept):  # a source that begins anew has no turn to finish
            self.mixer.load(state["mixer"])

    def row(self) -> tuple[str, np.ndarray, np.ndarray] | None:
        """Return (source, input ids, labels) of the next row, or None when this lane has nothing to read."""
        if not self._begun:
            self._begun = True
            # Which sources share the rows must not depend on which of them were asked before a restart.
            for stream in self.streams.values():
                stream.next_pass()
        while live := [name for name in self.streams if self._is_live(name)]:
            name = self._attempt(live)
            if name is not None:
                self.mixer.charge(name, live)
                return (name, *self.streams[name].row())
        return None

    def state(self) -> JSON:
        streams = {name: stream.state() for name, stream in self.streams.items()}
        return {"streams": self._absent | streams, "mixer": self.mixer.state()}

    def _is_live(self, name: str) -> bool:
        return name not in self.shared.dropped and not self.streams[name].dry

    def _attempt(self, live: list[str]) -> str | None:
        """Pick a source and ready its row; None when that source turned out dry or was dropped."""
        name = self.mixer.pick(live)
        try:
            return name if self.streams[name].fill(self.shared.seq_length) else None
        except SourceError as error:
            self.shared.dropped[name] = error.reason
            self.shared.announce(name, "dropped", f"{name} is no longer read: {error.reason}")
            return None


def owned_shards(num_shards: int, lane: int, num_lanes: int) -> tuple[list[int], int, int]:
    """Return the shards that `lane` reads, and (stride, offset): it takes the documents n with n % stride == offset."""
    if num_shards >= num_lanes:
        return list(range(lane, num_shards, num_lanes)), 1, 0
    shard = lane % num_shards
    return [shard], len(range(shard, num_lanes, num_shards)), lane // num_shards


def choose_num_lanes(world_size: int) -> int:
    """Return the number of lanes for a new lineage: the smallest world_size * 2**k that is at least 8."""
    lanes = world_size
    while lanes < 8:
        lanes *= 2
    return lanes
