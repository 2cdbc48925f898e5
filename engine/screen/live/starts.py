"""How long each stage of a start takes: noted from its events, and remembered for the next start of its kind here."""

from pathlib import Path

from engine import events
from engine.checkpoint.names import NAMES
from engine.screen import machines
from engine.screen.text import Event

FIRST_STEPS = "first steps"  # from the last stage to the first report of steps


class StartTimes:
    """The start of a preset's run in `folder`. `expected` has the seconds of each stage of the latest such start here;
    one that resumed something is of another kind than one that began a model."""

    def __init__(self, preset: str, folder: Path):
        resumes = any((folder / name).exists() for name in NAMES)
        self._what = f"{preset}, {'resumed' if resumes else 'new'}"
        self._seconds: machines.Seconds | None = {}  # None once they are written
        self._ended_at = 0.0  # seconds since 1970: the last stage
        self.expected = machines.start_seconds(self._what)

    def add(self, event: Event) -> None:
        """Take over one event; the first report of steps ends the start."""
        if self._seconds is None:
            return
        if event["event"] == "stage" and event["seconds"] is None and event["name"] == events.FIRST_STAGE:
            self._seconds = {}
        elif event["event"] == "stage" and event["seconds"] is not None:
            self._seconds[event["name"]], self._ended_at = event["seconds"], event["time"]
        elif event["event"] == "step" and self._seconds:
            seconds, self._seconds = self._seconds, None
            machines.remember_start(self._what, {**seconds, FIRST_STEPS: round(event["time"] - self._ended_at, 3)})
