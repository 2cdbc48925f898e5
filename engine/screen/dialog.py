"""Questions and answers in lines, at a terminal or through a pipe."""

import contextlib
import signal
import sys
from collections.abc import Iterator

from engine.screen.streams import OUTPUT
from engine.screen.text import printable


def say(text: str = "", end: str = "\n") -> None:
    print(printable(text), end=end, file=OUTPUT, flush=True)


def ask(question: str) -> str | None:
    """A line of standard input, None at its end. Only a terminal shows the question."""
    try:
        return input(printable(question) if sys.stdin.isatty() else "")
    except EOFError:
        return None


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt, which elsewhere in the program it does not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
