"""What every source of text offers, and how a source says that it cannot be read.

A source is a fixed number of shards, each a fixed sequence of documents. A document comes with a cursor: a small JSON
value from which `read` continues with exactly the documents that follow.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Protocol, TypeVar

from sources.redact import redact
from storage import JSON

Cursor = TypeVar("Cursor")  # JSON that only the source itself looks into

# Reasons in `counts` that are counted again whenever a row is read again; whole files are counted once.
PER_ROW = ("rows without text", "lines that are not JSON", "lines that are too long", "texts that are too long")

READER = "blocks"  # the name of the threads that read sources; the process may end while one waits for a network

LONGEST_TEXT = 32 * 1024**2  # bytes of a text, or of the row it is in; a few kilobytes may unpack to gigabytes


class SourceError(Exception):
    """A source cannot be opened or read; `reason` is one sentence for the user and holds no secrets.

    `transient`: trying again may help, as after a lost connection, a stall or a busy hub; for no longer than `patience`
    seconds, where that is given. `retry_after`: in how many seconds the server wants to be asked again.
    """

    def __init__(
        self,
        reason: str,
        *,
        transient: bool = False,
        patience: float | None = None,
        retry_after: float | None = None,
    ):
        self.reason = redact(" ".join(reason.split()))
        self.transient, self.patience, self.retry_after = transient, patience, retry_after
        super().__init__(self.reason)


class SourceGone(SourceError):
    """Nothing is there any more where the source was. A source that has changed is not gone."""


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
