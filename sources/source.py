"""What every source of text offers, and how a source says that it cannot be read.

A source is a fixed number of shards, each a fixed sequence of documents. A document comes with a cursor: a small JSON
value from which `read` continues with exactly the documents that follow.
"""

import random
import time
from collections import Counter
from collections.abc import Iterator
from typing import Protocol, TypeVar

from sources.redact import redact
from storage import JSON

Cursor = TypeVar("Cursor")  # JSON that only the source itself looks into

# Reasons in `counts` that are counted again whenever a row is read again; whole files are counted once.
PER_ROW = ("rows without text", "lines that are not JSON", "lines that are too long")

TRYING_SECONDS = 20.0  # of retries before training; no further try begins later than this
FIRST_WAIT = 0.5  # seconds before the second try on average, doubled before each further one


class SourceError(Exception):
    """A source cannot be opened or read; `reason` is one sentence for the user and holds no secrets.

    `transient`: trying again may help, as after a lost connection, a stall or a busy hub.
    """

    def __init__(self, reason: str, *, transient: bool = False):
        self.reason = redact(" ".join(reason.split()))
        self.transient = transient
        super().__init__(self.reason)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; its type's name where it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)


class Source(Protocol[Cursor]):
    """Where documents come from. `num_shards` is at least 1; shards are independent of each other.

    A source can be pickled, and reads the same documents in whichever process it is unpickled.
    """

    name: str
    num_shards: int
    notices: list[str]  # facts to announce; whoever announces them empties the list
    counts: Counter[str]  # what was skipped: reason -> number of rows or files

    def pin(self) -> JSON:
        """Return what reopens the same data on another rank or after a restart."""
        ...

    def fingerprint(self) -> JSON:
        """Return a small value that changes when the documents or their order do: the key of what is cached of them."""
        ...

    def read(self, shard: int, cursor: Cursor | None) -> Iterator[tuple[str, Cursor]]:
        """Yield (text, cursor right after this text) from `cursor`, or from the shard's start; raises SourceError."""
        ...


class Backoff:
    """Random pauses between tries, growing from FIRST_WAIT; none begins after TRYING_SECONDS are over."""

    def __init__(self):
        self._started = time.monotonic()
        self._wait = FIRST_WAIT

    def sleep(self) -> bool:
        """Sleep before the next try; returns False at once when that would begin too late."""
        pause = self._wait * random.uniform(0.5, 1.5)  # ranks must not try again all at once
        if time.monotonic() + pause - self._started > TRYING_SECONDS:
            return False
        time.sleep(pause)
        self._wait *= 2
        return True


def read_on(source: Source[Cursor], shard: int) -> Iterator[tuple[str, Cursor]]:
    """Read a shard from its start; after a transient failure, read on from the last cursor for TRYING_SECONDS.

    For what is read before training, where one lost connection must not decide what a run is made of.
    """
    cursor: Cursor | None = None
    backoff: Backoff | None = Backoff()
    while True:
        try:
            for text, after in source.read(shard, cursor):
                cursor, backoff = after, None
                yield text, after
            return
        except SourceError as error:
            backoff = backoff or Backoff()
            if not error.transient or not backoff.sleep():
                raise
            source.notices.append(f"{error.reason}; reading it again from where it stopped")
