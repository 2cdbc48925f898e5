"""Trackers beside a run: each has a thread and a queue of its own, so that none can hold up or end a run.

A tracker that fails is left out from then on; one that is slow misses what its queue has no room for. Both are said
once. A tracker that hangs at the end is left behind after a while.
"""

import contextlib
import json
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.errors import PresetError
from engine.events import Event
from engine.installed import is_installed
from engine.trackers.records import record_of
from engine.trackers.tensorboard import TensorBoard
from engine.trackers.tracker import TrackedRun, Tracker
from engine.trackers.trackio import Trackio
from engine.trackers.wandb import Wandb
from sources.redact import redact

TRACKERS: dict[str, Callable[[TrackedRun], Tracker]] = {"tensorboard": TensorBoard, "trackio": Trackio, "wandb": Wandb}
THREAD = "tracker"  # the name of their threads, which may hang in a library when a process ends
WAITING_EVENTS = 500  # that a queue has room for
CLOSE_SECONDS = 10.0  # for all trackers together


def require_packages(names: Sequence[str]) -> None:
    """Raise PresetError where a tracker's package, which has the tracker's own name, is not installed."""
    for name in names:
        if not is_installed(name):
            raise PresetError(
                f'train.log_to: "{name}" needs the package {name}, which is not installed. Install it with '
                f'python -m pip install {name}, or take "{name}" out of the list.'
            )


class Trackers:
    """Hands the events of a run to its trackers: the listener of an event log. Rank 0 alone has any."""

    def __init__(
        self,
        names: Sequence[str],
        folder: Callable[[], Path],
        say: Callable[[str], None],
        warn: Callable[[str], None],
    ):
        self._lanes = [_Lane(name, TRACKERS[name], folder, say, warn) for name in dict.fromkeys(names)]

    def take(self, event: Event) -> None:
        """Hand on an event; returns at once."""
        for lane in self._lanes:
            lane.put(event)

    def close(self) -> None:
        """Wait until the trackers have taken all events, for a limited time."""
        deadline = time.monotonic() + CLOSE_SECONDS
        for lane in self._lanes:
            lane.close(deadline)


@dataclass
class _Lane:
    """One tracker with its queue and its thread, which begins with the run."""

    name: str
    make: Callable[[TrackedRun], Tracker]
    folder: Callable[[], Path]
    say: Callable[[str], None]
    warn: Callable[[str], None]

    def __post_init__(self) -> None:
        self._queue: queue.Queue[Event | None] = queue.Queue(WAITING_EVENTS)
        self._thread = threading.Thread(target=self._work, name=THREAD, daemon=True)
        self._failed = self._full = False

    def put(self, event: Event) -> None:
        if self._failed:
            return
        if self._thread.ident is None:
            if event["event"] not in ("resume", "run"):  # nothing is shown of what comes before
                return
            self._thread.start()
        try:
            self._queue.put_nowait(event)
        except queue.Full:
            if not self._full:
                self.warn(f"train.log_to: {self.name} does not keep up, so it misses a part of this run.")
            self._full = True

    def close(self, deadline: float) -> None:
        if self._thread.ident is None or self._failed:
            return
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=max(0.0, deadline - time.monotonic()))
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self.warn(f"train.log_to: {self.name} has not taken all events in time; the rest of them is left out.")

    def _work(self) -> None:
        tracker: Tracker | None = None
        try:
            resumed_at: tuple[int, int] | None = None
            while (event := self._queue.get()) is not None:
                event = json.loads(redact(json.dumps(event, default=str)))
                if event["event"] == "resume":
                    resumed_at = event["step"], event.get("tokens_total", 0)
                if event["event"] == "run":  # also after a rollback, which resumes
                    if tracker is not None:
                        tracker.close()
                    folder = self.folder().resolve()
                    tracker = self.make(TrackedRun(folder, event["preset"], resumed_at, self.say))
                elif tracker is not None and (record := record_of(event)) is not None:
                    tracker.log(record)
            if tracker is not None:
                tracker.close()
        except BaseException as error:  # whatever it is, a run does without
            self._failed = True
            self.warn(f"train.log_to: {self.name} failed ({_short(error)}). Training goes on without it.")


def _short(error: BaseException) -> str:
    """What an error says, in one line; a library's may have many."""
    return redact(" ".join(str(error).split()) or type(error).__name__)[:200]
