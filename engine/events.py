"""Events of a run: one append-only JSON line each in metrics.jsonl beside the snapshots, and a sink that shows them.

Events: stage, run, step, spike, skip, rollback, evaluation, save, resume, source, advice, end. Each line has `event`
and `time` (seconds since 1970). ARCHITECTURE.md lists their keys.
"""

import contextlib
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO, TypeAlias

import storage
from engine.errors import Interrupted, RunError, first_line
from sources.redact import redact

Event: TypeAlias = dict[str, Any]
Listener: TypeAlias = Callable[[Event], None]

FILE_NAME = "metrics.jsonl"
REPORT_NAME = "report.html"  # what engine/screen/report makes of it, in the same folder
MAX_LINE_BYTES = 2**20  # of an event; what is longer is none
FIRST_STAGE = "checkpoint"  # with which every start of a run begins
RECENT_BYTES = 2**22  # of metrics.jsonl that a start looks at: the last hours of a run


class Sink(Protocol):
    """What shows events and messages to a person (engine/screen/console.py); nothing unless `enabled`."""

    enabled: bool

    def show(self, event: Event) -> None:
        """Show an event; kinds without a line of their own are only written to the file."""
        ...

    def say(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...

    def error(self, text: str) -> None: ...


class EventLog:
    """Writes events on rank 0; on the other ranks (`enabled` false) there are none, and the sink shows nothing.

    `listeners` are called with each event after it is written.
    """

    def __init__(self, folder: Path, sink: Sink, enabled: bool = True, listeners: Sequence[Listener] = ()):
        self.path = folder / FILE_NAME
        self.sink, self.enabled, self.listeners = sink, enabled, listeners
        self._file: TextIO | None = None
        self._held: list[str] | None = None  # lines that are written once it is known that the run may begin
        self._failing = False

    def write(self, event: str, **values: Any) -> None:
        """Append one event to the file and show it."""
        if not self.enabled:
            return
        line = {"event": event, "time": round(time.time(), 3), **values}
        text = redact(_to_json(line)) + "\n"
        if self._held is None:
            self._append(text)
        else:
            self._held.append(text)
        self.sink.show(line)
        for listener in self.listeners:
            listener(line)

    def _append(self, text: str) -> None:
        try:
            if self._file is None:
                self._file = _open_to_append(self.path)
            self._file.write(text)
            self._file.flush()
            self._failing = False
        except OSError as error:  # a full disk must not end a run that can still train
            self.close()
            if not self._failing:  # warn once, until it works again
                reason = storage.os_error_reason(error)
                self.warn(f"{self.path} cannot be written: {reason}. Training goes on without it.")
            self._failing = True

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Write the events of the block when it ends. If it raises, neither they nor later ones are written: a start
        that is refused leaves the folder as it was."""
        self._held = []
        yield
        held, self._held = self._held, None
        if held:
            self._append("".join(held))

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Say that the block is begun and, unless it raises, how long it took."""
        begin = time.monotonic()
        self.write("stage", name=name, seconds=None)
        yield
        self.write("stage", name=name, seconds=round(time.monotonic() - begin, 3))

    @contextlib.contextmanager
    def ending(self) -> Iterator[None]:
        """Say how the block ended: finished, stopped by a signal, or failed."""
        try:
            yield
        except Interrupted as error:
            self.write("end", how="stopped", message=str(error))
            raise
        except Exception as error:
            message = str(error) if isinstance(error, RunError) else f"{type(error).__name__}: {first_line(error)}"
            self.write("end", how="failed", message=message)
            raise
        self.write("end", how="finished", message=None)

    def say(self, text: str) -> None:
        """Show a message that is not an event."""
        self.sink.say(text)

    def warn(self, text: str) -> None:
        self.sink.warn(text)

    def move(self, folder: Path) -> None:
        """Write to the file in `folder` from now on."""
        self.close()
        self.path = folder / FILE_NAME

    def close(self) -> None:
        """Close the file; a later event opens it again."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # what could not be written was reported by `write`
                self._file.close()
            self._file = None


def _open_to_append(path: Path) -> TextIO:
    """Open `path` itself, never a link's target; after half a line (a killed run, a full disk) start a new one."""
    file = io.TextIOWrapper(
        storage.open_regular(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, follow=False), encoding="utf-8"
    )
    size = os.fstat(file.fileno()).st_size
    if size and os.pread(file.fileno(), 1, size - 1) != b"\n":
        file.write("\n")
    return file


def lines(folder: Path, last_bytes: int) -> Iterator[bytes]:
    """Yield the lines in the last `last_bytes` of a folder's metrics.jsonl, without any that is too long for an event.

    What is not a regular file has none.
    """
    with contextlib.suppress(OSError), storage.open_regular(folder / FILE_NAME, follow=False) as file:
        left = min(os.fstat(file.fileno()).st_size, last_bytes + 1)  # one more: it tells whether a line begins there
        begins = file.seek(-left, os.SEEK_END) == 0
        while left > 0 and (line := file.readline(min(left, MAX_LINE_BYTES))):
            left -= len(line)
            ends = line.endswith(b"\n")
            if begins and (ends or not left):
                yield line
            begins = ends


def parse(line: bytes) -> Event | None:
    """Return the event of a line; None for one that was cut short or is no event."""
    with contextlib.suppress(ValueError, RecursionError):
        event = json.loads(line.decode(errors="replace"))
        if isinstance(event, dict) and "event" in event:
            return event
    return None


def read(folder: Path, last_bytes: int = sys.maxsize - 1) -> list[Event]:
    """Return all whole events of a folder, or those in the last bytes of its file."""
    return [event for line in lines(folder, last_bytes) if (event := parse(line)) is not None]


def tokens_reached(folder: Path) -> int:
    """Return the tokens over all runs at the last step event; 0 without one lately."""
    counts = (event.get("tokens_total") for event in reversed(read(folder, RECENT_BYTES)))
    return next((count for count in counts if isinstance(count, int) and count > 0), 0)


def _to_json(event: Event) -> str:
    """Return `event` in one line, with null for NaN and infinity, which JSON does not have."""
    return json.dumps(json.loads(json.dumps(event, default=str), parse_constant=lambda name: None))
