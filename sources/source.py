"""What every kind of source offers, and how a source says that it cannot be read.

A source is a fixed number of shards, each a fixed sequence of documents. Every document leaves together with a cursor:
a small JSON value from which `read` goes on with exactly the documents that follow.
"""

import random
import time
from collections.abc import Iterator
from typing import Any, Protocol

from sources.redact import redact

JSON = Any  # whatever json.dumps takes: None, bool, int, float, str, and lists and dicts of these

# What `counts` tells at every reading; whole files are counted once.
PER_ROW = ("rows without text", "lines that are not JSON", "lines that are too long")

TRYING_SECONDS = 20.0  # at a start, before training: no further try begins after this
FIRST_WAIT = 0.5  # seconds before the second try, doubled for each further one


class SourceError(Exception):
    """A source cannot be opened or read; `reason` is one sentence for the user and holds no secrets.

    `transient` tells that trying again may help: a lost connection, a stall, a busy hub.
    """

    def __init__(self, reason: str, *, transient: bool = False):
        self.reason = redact(" ".join(reason.split()))
        self.transient = transient
        super().__init__(self.reason)


class Source(Protocol):
    """Where documents come from. `num_shards` is at least 1; shards are independent of each other.

    A source can be pickled, and reads the same documents in whichever process it is unpickled.
    """

    name: str
    num_shards: int
    notices: list[str]  # facts to announce; whoever announces them empties the list
    counts: dict[str, int]  # what was skipped: reason -> how many rows or files

    def pin(self) -> dict[str, JSON]:
        """Return what reopens the same data on another rank or after a restart."""
        ...

    def fingerprint(self) -> JSON:
        """Return a small value that changes when the documents or their order do: the key of what is cached of them."""
        ...

    def read(self, shard: int, cursor: JSON | None) -> Iterator[tuple[str, JSON]]:
        """Yield (text, cursor right after this text) from `cursor`, or from the shard's start; raises SourceError."""
        ...


def read_on(source: Source, shard: int) -> Iterator[tuple[str, JSON]]:
    """Read a shard from its start; a failure that may pass is tried again from the last cursor for TRYING_SECONDS.

    For what is read at a start, where one lost connection must not decide what a lineage is made of.
    """
    cursor, failing_since, wait = None, None, FIRST_WAIT
    while True:
        began = time.monotonic()
        try:
            for text, after in source.read(shard, cursor):
                cursor, began, failing_since, wait = after, None, None, FIRST_WAIT
                yield text, cursor
            return
        except SourceError as error:
            now = time.monotonic()
            failing_since = failing_since or began or now
            pause = wait * random.uniform(0.5, 1.5)  # ranks must not come back all at once
            if not error.transient or now + pause - failing_since > TRYING_SECONDS:
                raise
            source.notices.append(f"{error.reason}; reading it again from there")
        time.sleep(pause)
        wait *= 2
