"""How what failed is tried again: with pauses that are announced, that end in time, and that a stop ends at once.

Nothing else in `sources` waits for a server: its client raises every refusal at once (readers/hub/client.py), and a
reader raises a SourceError that says whether trying again may help, for how long, and when the server wants to be asked
again.
"""

import random
import time
from collections.abc import Callable, Iterator
from typing import TypeAlias

from sources.source import Cursor, Source, SourceError

FIRST_WAIT = 1.0  # seconds before the second try, doubled before each further one
LONGEST_WAIT = 60.0  # seconds between two tries, unless the server asks for more
TRYING_SECONDS = 20.0  # before training, where one source that is down must not hold up the others
ASKED_SECONDS = 1800.0  # before training, at most: the other ranks wait, and give up after an hour

Announce: TypeAlias = Callable[[str, str, str], None]  # source, kind of event, message


def silent(source: str, what: str, message: str) -> None:
    """Announce nothing."""


class Retries:
    """The tries of one thing that may fail for `patience` seconds; for `asked_patience` where a server says when it
    wants to be asked again."""

    def __init__(
        self,
        name: str,
        patience: float,
        announce: Announce = silent,
        stopping: Callable[[], bool] = lambda: False,
        asked_patience: float | None = None,
    ):
        self._name, self._announce, self._stopping = name, announce, stopping
        self._patience = patience
        self._asked_patience = patience if asked_patience is None else asked_patience
        self.succeeded()

    @classmethod
    def before_training(cls, name: str, retry_minutes: float, announce: Announce = silent) -> "Retries":
        """A signal ends the whole process then, so nothing needs to be asked whether to stop."""
        asked_patience = max(TRYING_SECONDS, min(ASKED_SECONDS, 60 * retry_minutes))
        return cls(name, TRYING_SECONDS, announce, asked_patience=asked_patience)

    def succeeded(self) -> None:
        """Whatever fails from now on is a new failure."""
        self._since, self._tries = time.monotonic(), 0

    def wait(self, error: SourceError, where: str = "") -> None:
        """Announce a pause and wait before the next try; raise `error` where trying again is of no use."""
        left = self._left(error)
        if not error.transient or left <= 0 or self._stopping():
            raise error
        growing = min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** min(self._tries, 16))  # a float ends at 2**1024
        pause = growing * random.uniform(0.5, 1.0)  # ranks must not try again all at once; waiting changes no row
        if error.retry_after is not None:
            pause = max(pause, error.retry_after * random.uniform(1.0, 1.1))
        pause = min(pause, left)
        self._tries += 1
        remaining = f"{left:.0f} s" if left < 120 else f"{left / 60:.0f} minutes"
        message = f"{error.reason}; retrying{where} in {pause:.0f} s (for {remaining} at most)"
        self._announce(self._name, "retry", message)
        end = time.monotonic() + pause
        while (ahead := end - time.monotonic()) > 0:
            if self._stopping():
                raise error
            time.sleep(min(0.1, ahead))

    def _left(self, error: SourceError) -> float:
        """Return for how many seconds this may go on failing."""
        patience = self._patience if error.retry_after is None else self._asked_patience
        if error.patience is not None:
            patience = min(patience, error.patience)
        return self._since + patience - time.monotonic()


def read_on(source: Source[Cursor], shard: int, retries: Retries) -> Iterator[tuple[str, Cursor]]:
    """Read a shard from its start; after a transient failure, read on from the last cursor.

    For what is read before training, where one lost connection must not decide what a run is made of.
    """
    cursor: Cursor | None = None
    retries.succeeded()
    while True:
        try:
            for text, after in source.read(shard, cursor):
                cursor = after
                yield text, after
                retries.succeeded()
            return
        except SourceError as error:
            retries.wait(error)
