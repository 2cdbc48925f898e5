"""trackio: curves in a database on this machine (`trackio show`), or in a Space that TRACKIO_SPACE_ID names."""

import os

from engine.trackers.records import Record
from engine.trackers.tracker import Identity, TrackedRun

PROJECT = "forethought"


class Trackio:
    """One run of trackio, which a later start of the same model continues."""

    def __init__(self, run: TrackedRun):
        import trackio

        self._identity = Identity.of(run, "trackio")
        self._markdown = trackio.Markdown
        self._run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=f"{run.name}-{self._identity.id}",
            config={"preset": run.preset},
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, record: Record) -> None:
        if (step := self._identity.place(record)) is None:
            return
        figures: dict[str, object] = dict(record.scalars)
        if record.tokens is not None:
            figures["tokens"] = record.tokens
        for name, text in record.texts.items():
            indented = text.replace("\n", "\n    ")
            figures[name] = self._markdown(f"    {indented}")
        self._run.log(figures, step=step)

    def close(self) -> None:
        self._run.finish()
