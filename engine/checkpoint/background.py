"""Saves checkpoints beside training: all ranks take a copy of the run, a thread of rank 0 writes it.

Saves are serialized; shutdown waits for the last one. A failed save is announced and retried. What needs all ranks
(taking the copy, giving up at the end) they decide together.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
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


@dataclass
class BackgroundSaver:
    """`capture` returns a copy of the run that nothing changes any more; all ranks must call it, rank 0's is written.
    `saved` is the progress of the newest checkpoint, or None where something of it is missing. `moved` says, on rank 0,
    where the last checkpoint went when the folder was not in its place."""

    capture: Callable[[], Checkpoint]
    interval_minutes: float
    folder: CheckpointFolder
    ranks: Ranks
    log: EventLog
    saved: dict[str, Any] | None

    def __post_init__(self) -> None:
        self._has_saved = False
        self.moved: str | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="saving")
        self._pending: Future[tuple[dict[str, Any], dict[str, Any]]] | None = None
        self._due_at = time.monotonic() + 60 * self.interval_minutes

    @property
    def due(self) -> bool:
        """Whether a checkpoint is due, by rank 0's clock."""
        return self.ranks.is_main and time.monotonic() >= self._due_at

    def save(self, follow: bool = False) -> None:
        """Take a copy and start to write it, with `follow` also where the folder went. All ranks must call it."""
        begin = time.monotonic()
        self._due_at = begin + 60 * self.interval_minutes
        self._wait()
        checkpoint = self.capture()
        if self.ranks.is_main:
            self._pending = self._thread.submit(self._write, checkpoint, time.monotonic() - begin, follow)

    def poll(self) -> None:
        """Call after every step: logs a save that is done, and schedules a failed one again."""
        if (problem := self._finish()) and self.folder.hold.in_place():  # else the ranks are about to stop
            self.log.warn(f"{problem} Training goes on; the next try is in {RETRY_SECONDS:.0f} s.")
            self._due_at = time.monotonic() + RETRY_SECONDS

    def save_final(self, progress: dict[str, Any], stopping: Callable[[], bool]) -> None:
        """Save until the checkpoint at `progress` is on the disk. All ranks must call it.

        It goes where the folder went, or to a new folder where that is gone; a warning says so, and `moved`. A failed
        save is retried for a while, or until the ranks are `stopping` (asked on all of them); then all ranks raise
        SaveError.
        """
        deadline = time.monotonic() + FINAL_TIMEOUT_SECONDS
        self._wait()
        while self.ranks.on_main(lambda: self.saved != progress or not self.folder.hold.in_place()):
            self.save(follow=True)
            problem = self.ranks.on_main(lambda: self._finish(wait=True))
            if problem is None:
                continue
            if stopping() or self.ranks.on_main(lambda: time.monotonic() >= deadline):
                raise SaveError(f"{problem} The snapshots before it are untouched.")
            self.log.warn(f"{problem} Trying again in {FINAL_RETRY_SECONDS:.0f} s.")
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
            self.log.warn(problem)

    def _finish(self, wait: bool = False) -> str | None:
        """Log the pending save if it is done, or once it is; return why it failed."""
        if self._pending is None or not (wait or self._pending.done()):
            return None
        pending, self._pending = self._pending, None
        try:
            self.saved, event = pending.result()
        except SaveError as error:
            return str(error)
        self._has_saved = True
        if self.moved:
            self.log.move(self.folder.folder)
        self.log.write("save", **event)
        return None

    def _write(
        self, checkpoint: Checkpoint, held_up_seconds: float, follow: bool
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the progress that is on the disk then, and the values of the save event. Raises SaveError."""
        begin, progress = time.monotonic(), checkpoint[0].progress
        if follow and (moved := self.folder.follow()):
            self.moved = moved
            self.log.warn(moved)
        event = {"path": str(self.folder.save(*checkpoint)), **{key: progress[key] for key in ("step", "tokens_total")}}
        return progress, event | {"seconds": time.monotonic() - begin, "held_up_seconds": held_up_seconds}
