"""One append-only JSON line per event, in metrics.jsonl beside the snapshots; the console reads the same events.

Events: run, step, spike, skip, rollback, evaluation, save, resume, source. Each line has `event` and `time` (seconds
since 1970).
"""

import contextlib
import json
import math
import os
import time
from pathlib import Path
from typing import Any, TextIO

import storage
from engine.screen.console import Console
from sources.redact import redact

FILE_NAME = "metrics.jsonl"
# No link is followed, and a pipe of this name is an error, not a wait. Windows has no such flags.
CAREFULLY = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


class Metrics:
    """Rank 0 writes and shows events; on the other ranks every call does nothing."""

    def __init__(self, folder: Path, console: Console, enabled: bool):
        self.path = folder / FILE_NAME
        self.console = console
        self.enabled = enabled
        self._file: TextIO | None = None
        self._failing = False

    def write(self, event: str, **values: Any) -> None:
        """Appends one event and shows it on the console."""
        if not self.enabled:
            return
        line = {"event": event, "time": round(time.time(), 3), **values}
        try:
            if self._file is None:
                self._file = _open_to_append(self.path)
            self._file.write(redact(json.dumps(_finite(line), default=str)) + "\n")
            self._file.flush()
            self._failing = False
        except OSError as error:  # a full disk must not end a run that can still train
            self.close()
            if not self._failing:  # said once, until it works again
                link = " (it is a symbolic link, and none is followed)" if self.path.is_symlink() else ""
                self.console.warn(
                    f"{self.path} cannot be written: {error.strerror}{link}. Training goes on without it."
                )
            self._failing = True
        self.console.show(line)

    def close(self) -> None:
        """Closes the file; a later event opens it again."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # of what could not be written, and was told then
                self._file.close()
            self._file = None


def _open_to_append(path: Path) -> TextIO:
    """`path`, not what a link of this name points to; after half a line, which a killed run or a full disk leaves,
    on a new one."""
    file = os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | CAREFULLY, 0o666), "a", encoding="utf-8")
    if file.tell() and not _ends_with_newline(path):
        file.write("\n")
    return file


def read(folder: Path) -> list[dict[str, Any]]:
    """All whole lines of a folder's metrics; a line cut by a kill is passed over."""
    events = []
    try:
        storage.refuse_escape(folder / FILE_NAME, folder)
        lines = (folder / FILE_NAME).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            events.append(json.loads(line))
        except (ValueError, RecursionError):
            continue
    return [event for event in events if isinstance(event, dict) and "event" in event]


def tokens_reached(folder: Path) -> int:
    """Tokens over all runs at the last report that was written down; 0 where there is none."""
    counts = (event.get("tokens_total") for event in reversed(read(folder)))
    return next((count for count in counts if isinstance(count, int) and count > 0), 0)


def _finite(value: Any) -> Any:
    """JSON has no NaN or infinity; they are written as null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return value


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read() == b"\n"
