"""Saves checkpoints beside training: all ranks take a copy of the run, a thread of rank 0 writes it.

Saves are serialized; shutdown waits for the last one. A failed save is announced and retried. What needs all ranks
(taking the copy, giving up at the end) they decide together.
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
from engine.events import EventLog
from model.snapshot import Snapshot

RETRY_SECONDS = 60.0  # until a failed save is retried during training
FINAL_RETRY_SECONDS = 10.0  # the same for the last save of a run
FINAL_TIMEOUT_SECONDS = 600.0  # until the last save gives up

# A snapshot, its optimizer state and its RunState (engine/run/state.py): what CheckpointFolder.save takes.
Checkpoint = tuple[Snapshot, OptimizerState, dict[str, Any]]


@dataclass(frozen=True)
class SaveResult:
    """The outcome of a save: the snapshot's path, or why there is none."""

    progress: dict[str, Any]
    path: Path | None
    problem: str | None
    seconds: float
    held_up_seconds: float  # for which training waited for the copy


class BackgroundSaver:
    """`capture` returns a copy of the run that nothing changes any more; all ranks must call it, rank 0's is written.
    `saved` is the progress of the checkpoint that the run starts from, or None where something of it is missing."""

    def __init__(
        self,
        capture: Callable[[], Checkpoint],
        interval_minutes: float,
        folder: CheckpointFolder,
        ranks: Ranks,
        log: EventLog,
        saved: dict[str, Any] | None,
    ):
        self._capture, self._interval = capture, 60 * interval_minutes
        self._folder, self._ranks, self._log = folder, ranks, log
        self._saved, self._has_saved = saved, False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="saving")
        self._pending: Future[SaveResult] | None = None
        self._due_at = time.monotonic() + self._interval

    @property
    def due(self) -> bool:
        """Whether a checkpoint is due, by rank 0's clock."""
        return self._ranks.is_main and time.monotonic() >= self._due_at

    def save(self) -> None:
        """Take a copy and start to write it. All ranks must call it."""
        begin = time.monotonic()
        self._due_at = begin + self._interval
        self._wait()
        checkpoint = self._capture()
        if self._ranks.is_main:
            self._pending = self._thread.submit(self._write, checkpoint, time.monotonic() - begin)

    def poll(self) -> None:
        """Call after every step: logs a save that is done, and schedules a failed one again."""
        if problem := self._finish():
            self._log.warn(f"{problem} Training goes on; the next try is in {RETRY_SECONDS:.0f} s.")
            self._due_at = time.monotonic() + RETRY_SECONDS

    def save_final(self, progress: dict[str, Any], stopping: Callable[[], bool]) -> None:
        """Save until the checkpoint at `progress` is on the disk. All ranks must call it.

        A failed save is retried for a while, or until the ranks are `stopping` (asked on all of them); then all ranks
        raise SaveError.
        """
        deadline = time.monotonic() + FINAL_TIMEOUT_SECONDS
        self._wait()
        while self._ranks.on_main(lambda: self._saved != progress):
            self.save()
            problem = self._ranks.on_main(lambda: self._finish(wait=True))
            if problem is None:
                continue
            if stopping() or self._ranks.on_main(lambda: time.monotonic() >= deadline):
                raise SaveError(f"{problem} The snapshots before it are untouched.")
            self._log.warn(f"{problem} Trying again in {FINAL_RETRY_SECONDS:.0f} s.")
            time.sleep(FINAL_RETRY_SECONDS)

    def has_saved(self) -> bool:
        """Wait for a pending save; return whether any has succeeded in this process. Known to rank 0 only."""
        self._wait()
        return self._has_saved

    def close(self) -> None:
        """Wait for a pending save."""
        self._thread.shutdown()

    def _wait(self) -> None:
        if problem := self._finish(wait=True):
            self._log.warn(problem)

    def _finish(self, wait: bool = False) -> str | None:
        """Log the pending save if it is done, or once it is; return why it failed."""
        if self._pending is None or not (wait or self._pending.done()):
            return None
        result, self._pending = self._pending.result(), None
        if result.problem:
            return result.problem
        self._saved, self._has_saved = result.progress, True
        self._log.write(
            "save",
            path=str(result.path),
            step=result.progress["step"],
            tokens_total=result.progress["tokens_total"],
            seconds=result.seconds,
            held_up_seconds=result.held_up_seconds,
        )
        return None

    def _write(self, checkpoint: Checkpoint, held_up_seconds: float) -> SaveResult:
        begin = time.monotonic()
        path = problem = None
        try:
            path = self._folder.save(*checkpoint)
        except SaveError as error:
            problem = str(error)
        progress = checkpoint[0].progress
        assert progress is not None
        return SaveResult(progress, path, problem, time.monotonic() - begin, held_up_seconds)
