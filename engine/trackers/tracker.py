"""What a tracker is, and what its run is known by when a model's training continues."""

import contextlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import storage
from engine.trackers.records import Record

FOLDER = "trackers"  # in the checkpoint folder: one small file a tracker


@dataclass(frozen=True)
class TrackedRun:
    """A start of a run, as trackers see it."""

    folder: Path  # of the checkpoints
    preset: dict[str, Any]
    resumed_at: tuple[int, int] | None  # step and tokens over all runs; None for a new model
    say: Callable[[str], None]

    @property
    def name(self) -> str:
        return self.preset["name"]


class Tracker(Protocol):
    """One tracker's run, from a start to its end. It may raise anything, and take as long as it likes."""

    def __init__(self, run: TrackedRun): ...

    def log(self, record: Record) -> None: ...

    def close(self) -> None: ...


@dataclass
class Identity:
    """By what a tracker on a server knows the run of a model, and how far it has been told of it.

    Such a tracker takes a step once: after a checkpoint that is older than what was shown, the steps between are left
    out. The file lies beside the checkpoints and is archived with them.
    """

    path: Path
    id: str
    steps: dict[str, int] = field(default_factory=dict)  # the latest step by kind of record

    @classmethod
    def of(cls, run: TrackedRun, tracker: str) -> "Identity":
        """Return the identity that the folder has for a tracker, or a new one for a new model."""
        path = run.folder / FOLDER / f"{tracker}.json"
        if run.resumed_at is not None:
            with contextlib.suppress(storage.Damaged, KeyError, TypeError):
                if (known := storage.read_record(path)) is not None:
                    return cls(path, str(known["id"]), dict(known["steps"]))
        return cls(path, secrets.token_hex(4))

    def place(self, record: Record) -> int | None:
        """Return the step at which a record is shown, and remember it; None where it was shown before."""
        latest = max(self.steps.values(), default=0)
        if record.step is None:
            return latest
        if record.scalars and record.step <= self.steps.get(record.kind, -1):
            return None
        self.steps[record.kind] = max(latest, record.step)
        with contextlib.suppress(OSError):  # a later start would show some steps twice, at worst
            self.path.parent.mkdir(exist_ok=True)
            storage.write_record(self.path, {"id": self.id, "steps": self.steps})
        return self.steps[record.kind]
