"""Questions and answers in lines, at a terminal or through a pipe."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator

from rich.console import Console as RichConsole

from engine.formatting import brief
from engine.screen import machines
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


def moves_the_cursor() -> bool:
    """Whether standard input and output are a terminal that understands cursor movements."""
    capable = os.environ.get("TERM", "dumb") not in ("", "dumb", "unknown")
    return capable and sys.stdin.isatty() and sys.stdout.isatty()


@contextlib.contextmanager
def working(what: str, shown: bool = True) -> Iterator[None]:
    """Show, at a terminal, what takes a while in the block, and how long it took here the last time."""
    if not shown or not moves_the_cursor():
        yield
        return
    begin, took = time.monotonic(), machines.start_seconds(what).get(what, 0.0)
    expected = f" (about {brief(took)})" if took >= 0.5 else ""
    with RichConsole(file=OUTPUT).status(f"{what} ...{expected}"):
        yield
    machines.remember_start(what, {what: round(time.monotonic() - begin, 3)})
