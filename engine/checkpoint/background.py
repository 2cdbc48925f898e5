"""When a run is saved, and how: a copy is taken, a thread of rank 0 writes it, training goes on meanwhile.

One save at a time: the next waits for the one before, and so does leaving. A save that fails is announced and tried
again; what all ranks must do together (taking the copy, giving up at the end) they decide together.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.checkpoint.folder import CheckpointFolder
from engine.checkpoint.state import OptimizerState
from engine.device.ranks import Ranks
from engine.errors import SaveError
from engine.events import Metrics
from engine.screen.console import Console
from model.snapshot.file import Snapshot

RETRY_SECONDS = 60.0  # until a save that failed is tried again
PATIENCE_SECONDS = 600.0  # of a finished run with a disk that does not take its last snapshot
PAUSE_SECONDS = 10.0  # between its attempts

Copy = tuple[Snapshot, OptimizerState, dict[str, Any]]  # a snapshot with its optimizer state and data position


@dataclass(frozen=True)
class Written:
    """What became of a save: the snapshot's path, or why there is none."""

    progress: dict[str, Any]
    path: Path | None
    problem: str | None
    seconds: float
    held_up_seconds: float  # of training, for taking the copy


class Saving:
    """`take` gives a copy of the run that nothing changes any more; all ranks must call it, and only rank 0's is used.
    `saved` is the progress of the snapshot on the disk that the run begins with, if all of its beginning is there."""

    def __init__(
        self,
        take: Callable[[], Copy],
        interval_minutes: float,
        folder: CheckpointFolder,
        ranks: Ranks,
        console: Console,
        metrics: Metrics,
        saved: dict[str, Any] | None,
    ):
        self._take, self._interval = take, 60 * interval_minutes
        self._folder, self._ranks, self._console, self._metrics = folder, ranks, console, metrics
        self._saved, self._has_written = saved, False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="saving")
        self._writing: Future[Written] | None = None
        self._due_at = time.monotonic() + self._interval

    @property
    def due(self) -> bool:
        """Whether it is time for a snapshot, by rank 0's clock."""
        return self._ranks.is_main and time.monotonic() >= self._due_at

    def save(self) -> None:
        """Takes a copy and begins to write it. All ranks must call it."""
        begin = time.monotonic()
        self._due_at = begin + self._interval
        self._settle()
        copy = self._take()
        if self._ranks.is_main:
            self._writing = self._thread.submit(self._write, copy, time.monotonic() - begin)

    def look(self) -> None:
        """After every step: tells what became of the save under way."""
        if problem := self._finish():
            self._console.warn(f"{problem} Training goes on; the next try is in {RETRY_SECONDS:.0f} s.")
            self._due_at = time.monotonic() + RETRY_SECONDS

    def save_at_last(self, progress: dict[str, Any], stopping: Callable[[], bool]) -> None:
        """Leaves nothing unsaved. All ranks must call it. While the disk does not take it, tries again for a while, or
        until the ranks are `stopping`, which is asked on all of them; then raises SaveError, on all ranks."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        self._settle()
        while self._ranks.on_main(lambda: self._saved != progress):
            self.save()
            problem = self._ranks.on_main(lambda: self._finish(wait=True))
            if problem is None:
                continue
            if stopping() or self._ranks.on_main(lambda: time.monotonic() >= deadline):
                raise SaveError(f"{problem} The snapshots before it are untouched.")
            self._console.warn(f"{problem} Trying again in {PAUSE_SECONDS:.0f} s.")
            time.sleep(PAUSE_SECONDS)

    def settled(self) -> bool:
        """Waits for the save under way; whether any has succeeded here, as rank 0 knows."""
        self._settle()
        return self._has_written

    def close(self) -> None:
        """Waits for the save under way."""
        self._thread.shutdown()

    def _settle(self) -> None:
        """Waits for the save under way and tells what became of it."""
        if problem := self._finish(wait=True):
            self._console.warn(problem)

    def _finish(self, wait: bool = False) -> str | None:
        """Writes down what became of the save under way, if it is done or told to wait. Returns why it failed."""
        if self._writing is None or not (wait or self._writing.done()):
            return None
        written, self._writing = self._writing.result(), None
        if written.problem:
            return written.problem
        self._saved, self._has_written = written.progress, True
        self._metrics.write(
            "save",
            path=str(written.path),
            step=written.progress["step"],
            tokens_total=written.progress["tokens_total"],
            seconds=written.seconds,
            held_up_seconds=written.held_up_seconds,
        )
        return None

    def _write(self, copy: Copy, held_up_seconds: float) -> Written:
        begin = time.monotonic()
        path = problem = None
        try:
            path = self._folder.save(*copy)
        except SaveError as error:
            problem = str(error)
        return Written(copy[0].progress, path, problem, time.monotonic() - begin, held_up_seconds)
