"""Signals before a run exists: while a preset is chosen, and while the libraries of a run are imported.

Nothing is lost by then. Later the ranks agree on what a signal means (signals.py).
"""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from signal import SIGHUP, SIGINT, SIGTERM
from types import FrameType
from typing import Any

from engine.errors import Interrupted

SIGNALS = (SIGINT, SIGTERM, SIGHUP)  # the last is a terminal that closes
SHOW_CURSOR = "\x1b[?25h"


def nothing_saved(number: int) -> str:
    """What is said of a signal before the first step."""
    return f"{signal.Signals(number).name} before the first step; there was nothing to save."


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let a signal raise Interrupted in the block, so that whoever has changed the terminal puts it back."""

    def handle(number: int, _frame: FrameType | None) -> None:
        raise Interrupted(number, nothing_saved(number))

    with handlers(handle):
        yield


@contextlib.contextmanager
def ends_at_once(show: Callable[[str], Any]) -> Iterator[None]:
    """Let a signal end the process in the block, with a sentence: libraries that are half imported may swallow an
    exception."""

    def handle(number: int, _frame: FrameType | None) -> None:
        with contextlib.suppress(OSError, ValueError):
            if sys.stdout.isatty():
                sys.stdout.write(f"{SHOW_CURSOR}\r\n")
            show(nothing_saved(number))
            sys.stdout.flush()
        os._exit(128 + number)

    with handlers(handle):
        yield


@contextlib.contextmanager
def handlers(handle: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """Handle the signals in the block; SIGHUP stays ignored under nohup."""
    numbers = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN or number != SIGHUP]
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
