"""Watching a run that another process trains: the same panel, drawn from the events in metrics.jsonl as they come."""

import os
import re
import socket
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil

import storage
from engine import events
from engine.screen.dialog import ask, interruptible, say
from engine.screen.live.display import PERIOD, Display
from engine.screen.live.view import RunView, read_view
from engine.screen.streams import can_draw
from engine.screen.text import Event

HOLDER = re.compile(r"process (\d+) on (.*)")  # as storage.locked writes it
MOST_BYTES = 2**22  # that are read at a time


def offered(folder: Path) -> bool:
    """Ask at a terminal whether to watch the run in `folder`, and watch it; False where nobody could or wanted to."""
    if not can_watch():
        return False
    with interruptible():
        try:
            if (ask("Watch that run? [Y/n] ") or "").strip().lower() not in ("", "y", "yes"):
                return False
        except KeyboardInterrupt:
            say()
            return True
    show(folder)
    return True


def show(folder: Path) -> None:
    """Watch the run in `folder`, and say what became of it."""
    with interruptible():
        try:
            say(watch(folder))
        except KeyboardInterrupt:
            say()


def can_watch() -> bool:
    """Whether this process is alone, and a person at a terminal that can show a panel."""
    return int(os.environ.get("WORLD_SIZE", "1")) == 1 and sys.stdin.isatty() and can_draw()


def watch(folder: Path) -> str:
    """Draw the run in `folder` until it ends, or until Ctrl-C; return what became of it, in a sentence."""
    follower = Follower(folder)
    view = follower.begin()
    with Display(view) as display:
        try:
            while (end := _end(follower.new(), display)) is None:
                if holder_is_gone(folder):
                    if "end" in view.latest:  # while it was about to be watched
                        return _last_words(view.latest["end"])
                    return "The run has ended without a word: its process is gone. The next start continues it."
                time.sleep(PERIOD)
        except KeyboardInterrupt:
            return "The run goes on."
    return end


def _end(new: Iterable[Event], display: Display) -> str | None:
    """Show new events; return what the run says of its end, if it is among them."""
    for event in new:
        display.show(event)
        if event["event"] == "end":
            return _last_words(event)
    return None


def _last_words(event: Event) -> str:
    return event.get("message") or "The run is finished."


class Follower:
    """Reads a folder's metrics.jsonl from where it was left."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._inode = self._offset = 0
        self._rest = b""  # a line that is not whole yet

    def begin(self) -> RunView:
        """What the file tells so far."""
        while True:
            before = self._status()
            view = read_view(self._folder)
            if (now := self._status()) == before:
                self._inode, self._offset = now
                return view

    def new(self) -> Iterator[Event]:
        """The events that were written since the last call."""
        inode, size = self._status()
        if inode != self._inode or size < self._offset:  # another file has the name
            self._inode, self._offset, self._rest = inode, 0, b""
        if size == self._offset:
            return
        with storage.open_regular(self._folder / events.FILE_NAME, follow=False) as file:
            file.seek(self._offset)
            text = self._rest + file.read(MOST_BYTES)
            self._offset = file.tell()
        *whole, self._rest = text.split(b"\n")
        for line in whole:
            if (event := events.parse(line)) is not None:
                yield event

    def _status(self) -> tuple[int, int]:
        """The file's inode and size."""
        try:
            found = os.lstat(self._folder / events.FILE_NAME)
            return found.st_ino, found.st_size
        except OSError:
            return 0, 0


def holder_is_gone(folder: Path) -> bool:
    """Whether the process that holds `folder` has ended; that of another machine is not known."""
    try:
        found = HOLDER.match((storage.read_regular(folder / storage.LOCK) or b"").decode(errors="replace"))
    except storage.Damaged:
        return False
    return bool(found) and found[2].strip() == socket.gethostname() and not psutil.pid_exists(int(found[1]))
