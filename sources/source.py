"""What every kind of source offers, and how a source says that it cannot be read.

A source is a fixed number of shards, each a fixed sequence of documents. Every document leaves together with a cursor:
a small JSON value from which `read` goes on with exactly the documents that follow.
"""

from collections.abc import Iterator
from typing import Any, Protocol

from sources.redact import redact

JSON = Any  # whatever json.dumps takes: None, bool, int, float, str, and lists and dicts of these

# What `counts` tells at every reading; whole files are counted once.
PER_ROW = ("rows without text", "lines that are not JSON", "lines that are too long")


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
