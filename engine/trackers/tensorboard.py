"""TensorBoard event files, in checkpoints/tensorboard/: once by steps and once by tokens.

A resumed run begins a new file, whose first record tells TensorBoard to forget what older files have from there on.
"""

import json
from typing import TYPE_CHECKING

from engine.trackers.records import Record
from engine.trackers.tracker import TrackedRun

if TYPE_CHECKING:
    pass

FOLDER = "tensorboard"
AXES = ("by_step", "by_tokens")  # folders, which TensorBoard calls runs; a file has one axis
FLUSH_SECONDS = 10


class TensorBoard:
    """The event files of one start."""

    def __init__(self, run: TrackedRun):
        from torch.utils.tensorboard import SummaryWriter

        self._at = run.resumed_at or (0, 0)
        purge = (0, 0) if run.resumed_at is None else (self._at[0] + 1, self._at[1] + 1)
        self._writers: list[SummaryWriter] = [
            SummaryWriter(str(run.folder / FOLDER / axis), purge_step=first, flush_secs=FLUSH_SECONDS)
            for axis, first in zip(AXES, purge, strict=True)
        ]
        preset = json.dumps(run.preset, indent=1).replace("\n", "\n    ")
        self._writers[0].add_text("preset", f"    {preset}", self._at[0])

    def log(self, record: Record) -> None:
        if record.step is not None and record.tokens is not None:
            self._at = (record.step, record.tokens)
        for writer, axis, at in zip(self._writers, AXES, self._at, strict=True):
            for name, value in record.scalars.items():
                # Curves of two axes in one chart would be of no use.
                name = name if axis == "by_step" else name.replace("/", "_by_tokens/", 1)
                writer.add_scalar(name, value, at, record.time)
        for name, text in record.texts.items():
            indented = text.replace("\n", "\n    ")  # which Markdown shows as it is
            self._writers[0].add_text(name, f"    {indented}", self._at[0], record.time)

    def close(self) -> None:
        for writer in self._writers:
            writer.close()
