"""One append-only JSON line per event, in metrics.jsonl beside the snapshots; the console reads the same events.

Events: run, step, spike, skip, rollback, evaluation, save, resume, source. Each line has `event` and `time` (seconds
since 1970).
"""

import json
import math
import time
from pathlib import Path
from typing import Any, TextIO

from engine.console import Console

FILE_NAME = "metrics.jsonl"


class Metrics:
    """Rank 0 writes and shows events; on the other ranks every call does nothing."""

    def __init__(self, folder: Path, console: Console, enabled: bool):
        self.console = console
        self.enabled = enabled
        self._file: TextIO | None = None
        if enabled:
            self._file = (folder / FILE_NAME).open("a", encoding="utf-8")
            if self._file.tell() and not _ends_with_newline(folder / FILE_NAME):
                self._file.write("\n")  # a killed run may have left half a line

    def write(self, event: str, **values: Any) -> None:
        """Appends one event and shows it on the console."""
        if not self.enabled:
            return
        line = {"event": event, "time": round(time.time(), 3), **values}
        try:
            self._file.write(json.dumps(_finite(line), default=str) + "\n")
            self._file.flush()
        except OSError as error:  # a full disk must not end a run that can still train
            self.console.warn(f"{FILE_NAME} cannot be written ({error.strerror}).")
        self.console.show(line)

    def close(self) -> None:
        if self._file is not None:
            try:
                self._file.close()
            except OSError:
                self.console.warn(f"The end of {FILE_NAME} could not be written.")


def read(folder: Path) -> list[dict[str, Any]]:
    """All whole lines of a folder's metrics; a line cut by a kill is passed over."""
    events = []
    try:
        lines = (folder / FILE_NAME).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            events.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return [event for event in events if isinstance(event, dict) and "event" in event]


def tokens_reached(folder: Path) -> int:
    """Tokens over all runs at the last report that was written down; 0 where there is none."""
    return next((event["tokens_total"] for event in reversed(read(folder)) if event.get("tokens_total")), 0)


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
