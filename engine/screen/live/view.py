"""What the panel shows of a run: the latest event of each kind, the curve so far, and what is being done now.

A run adds its events as they are written. Who watches it reads them from metrics.jsonl, and so does a run that
continues, for the part of the curve that is there already.
"""

import math
import time
from collections import Counter
from pathlib import Path

from engine import events
from engine.screen.live.remaining import Remaining
from engine.screen.live.starts import FIRST_STEPS
from engine.screen.report.history import Curve
from engine.screen.text import Event

HISTORY_BYTES = 2**25  # of metrics.jsonl that are looked at: days of a run
MOST_STEPS = 2_000  # step events that are parsed of them
MOST_MARKS = 200  # evaluations in the curve
STEP = b'{"event": "step"'


class RunView:
    """The state of one run as its events tell it. `add` is cheap, since the training thread calls it."""

    def __init__(self) -> None:
        self.latest: dict[str, Event] = {}  # by kind: run, step, evaluation, save, end
        self.counts: Counter[str] = Counter()  # spikes, skipped steps, rollbacks
        self.stage: Event | None = None  # that has begun and not ended
        self.stages: list[Event] = []  # that ended, since the start
        self.expected: dict[str, float] = {}  # seconds of each stage at the start before
        self.curve = Curve()
        self.marks: list[tuple[float, float]] = []  # evaluations: tokens over all runs, loss
        self.remaining = Remaining(0)

    @property
    def run(self) -> Event | None:
        return self.latest.get("run")

    @property
    def begins_at(self) -> int:
        """Tokens over all runs at which this run begins, as far as is known."""
        step = self.latest.get("step")
        return step["tokens_total"] - step["tokens"] if step else 0

    def add(self, event: Event) -> None:
        """Take over one event; what an older version wrote without a field that is needed here counts as nothing."""
        kind, add = event["event"], getattr(self, f"_add_{event['event']}", None)
        if kind in ("spike", "skip", "rollback"):
            self.counts[kind] += 1
        elif add is not None:
            add(event)
            if kind != "stage":
                self.latest[kind] = event

    def restart(self) -> None:
        """Another start of the run begins: what was true of the process before it is no longer."""
        self.expected |= {stage["name"]: stage["seconds"] for stage in self.stages}
        self.stages, self.stage = [], None
        for kind in ("step", "end"):
            self.latest.pop(kind, None)
        self.remaining.restart()

    def _add_run(self, event: Event) -> None:
        before, derived = self.run, event["derived"]
        if before is not None and before["derived"]["run"] != derived["run"]:
            self._forget_curve()
            self.latest.pop("evaluation", None)
        self.remaining = Remaining(derived["token_budget"])

    def _add_step(self, event: Event) -> None:
        if (before := self.latest.get("step")) and event["tokens"] < before["tokens"] and event["step"] == 1:
            self._forget_curve()
        self.remaining.add(event)
        if _is_finite(event["loss"]):
            self.curve.add(event["tokens_total"], event["loss"])

    def _add_evaluation(self, event: Event) -> None:
        if _is_finite(event["ce"]):
            self.marks = [*self.marks[1 - MOST_MARKS :], (event["tokens_total"], event["ce"])]

    def _add_save(self, event: Event) -> None: ...

    def _add_end(self, event: Event) -> None:
        self.stage = None

    def _add_stage(self, event: Event) -> None:
        if event["seconds"] is None:
            if event["name"] == events.FIRST_STAGE:
                self.restart()
            self.stage = event
        else:
            self.stage = None
            if "step" in self.latest:
                self.expected[event["name"]] = event["seconds"]
            else:
                self.stages.append(event)

    def _forget_curve(self) -> None:
        self.curve, self.marks = Curve(), []


def stage_now(view: RunView) -> Event | None:
    """The stage that goes on; the time between the last one of a start and the first report of steps is one, too."""
    if view.stage or not view.stages or view.run is None or view.latest.keys() & {"step", "end"}:
        return view.stage
    return {"event": "stage", "name": FIRST_STEPS, "time": view.stages[-1]["time"], "seconds": None}


def read_view(folder: Path) -> RunView:
    """What a folder's metrics.jsonl tells, of its last HISTORY_BYTES; of very many steps only some are parsed."""
    view = RunView()
    recent = list(events.lines(folder, HISTORY_BYTES))
    stride = 1 + sum(line.startswith(STEP) for line in recent) // MOST_STEPS
    number = 0
    for line in recent:
        if line.startswith(STEP):
            number += 1
            if number % stride:
                continue
        add_line(view, line)
    return view


def add_line(view: RunView, line: bytes) -> Event | None:
    """Add a line of metrics.jsonl to `view` and return its event, or None where it is none that can be shown."""
    event = events.parse(line)
    try:
        if event is not None:
            view.add(event)
        return event
    except (KeyError, TypeError, ValueError, AttributeError):  # of another version, or with a flipped bit
        return None


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def age(event: Event, now: float | None = None) -> float:
    """Seconds since an event."""
    return max(0.0, (time.time() if now is None else now) - event["time"])
