"""Standard streams that a run can rely on: open, without secrets, and with no failure that ends a run."""

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO, cast

from sources.redact import redact_process


def prepare_streams() -> None:
    """Opens standard streams that are closed, as a daemon's are, and keeps secrets out of logs, warnings, tracebacks.

    A file that took the number of a closed stream would get what libraries print.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    sys.stdin, sys.stdout = sys.stdin or os.fdopen(0), sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")
    if isinstance(sys.stdin, io.TextIOWrapper):  # a key outside the terminal's encoding is only a wrong answer
        sys.stdin.reconfigure(errors="replace")
    redact_process()


class _Output:
    """A stream, as it is at each call, without its failures: a full disk or a closed pipe ends no run."""

    def __init__(self, stream: Callable[[], TextIO]):
        self._stream = stream

    def write(self, text: str) -> int:
        encoding = self._stream().encoding or "utf-8"  # which may lack some characters, as ascii does
        with contextlib.suppress(OSError):
            self._stream().write(text.encode(encoding, "replace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream().flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream(), name)


OUTPUT = cast(TextIO, _Output(lambda: sys.stdout))


def can_draw() -> bool:
    """Whether standard output is a terminal on which a panel can be drawn and redrawn."""
    named = os.environ.get("TERM", "").lower() not in ("", "dumb", "unknown")
    try:
        return named and not os.environ.get("CI") and sys.stdout.isatty() and _is_utf8(sys.stdout)
    except (AttributeError, ValueError):  # no stream, or one that is closed
        return False


@contextlib.contextmanager
def own_terminal() -> Iterator[TextIO]:
    """The terminal behind standard output, which stays there when descriptor 1 is led elsewhere."""
    OUTPUT.flush()
    file = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8", errors="replace")
    try:
        yield cast(TextIO, _Output(lambda: file))
    finally:
        with contextlib.suppress(OSError):
            file.close()


def _is_utf8(stream: TextIO) -> bool:
    return (stream.encoding or "").lower().replace("-", "") == "utf8"
