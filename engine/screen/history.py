"""What the report shows of all events of a folder, in memory that does not grow with their number.

A curve is averaged as it comes. Of a long metrics.jsonl most steps and evaluations are skipped unparsed, so that a
history of millions of steps is read within a second.
"""

import os
from collections import Counter, deque
from pathlib import Path
from typing import Any

from engine import events
from engine.screen.text import Event

MAX_POINTS = 400  # of a curve
MAX_CURVES = 64  # of a section
MAX_DROPPED = 100  # sources that are listed
HISTORY_BYTES = 2**30  # of metrics.jsonl: its end
PARSED_BYTES = 2**25  # of it, about, in steps and evaluations
SAMPLED = (b'{"event": "step"', b'{"event": "evaluation"')

Points = list[tuple[float, float]]  # tokens over all runs, and a figure


class Curve:
    """A figure over tokens: the means of groups of neighbours, whose size doubles when there are too many."""

    def __init__(self) -> None:
        self._groups: list[tuple[float, float, int]] = []  # sums of tokens and of figures, and how many
        self._size = 1

    def add(self, tokens: float, figure: float) -> None:
        last = self._groups.pop() if self._groups and self._groups[-1][2] < self._size else (0.0, 0.0, 0)
        self._groups.append(_sum(last, (tokens, figure, 1)))
        if len(self._groups) > MAX_POINTS:
            pairs = [self._groups[first : first + 2] for first in range(0, len(self._groups), 2)]
            self._groups = [_sum(*pair) if len(pair) == 2 else pair[0] for pair in pairs]
            self._size *= 2

    def points(self) -> Points:
        return [(tokens / number, figure / number) for tokens, figure, number in self._groups]


class History:
    """Counts by kind, the latest event of each kind that is shown in full, and curves by section and name."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.latest: dict[str, Event] = {}  # run, step, evaluation
        self.dropped: deque[Event] = deque(maxlen=MAX_DROPPED)  # sources
        self.curves: dict[str, dict[str, Curve]] = {"loss": {}, "sources": {}, "auxiliary": {}}

    def add(self, event: Event) -> None:
        """Count an event, whatever it holds."""
        kind = event["event"]
        if kind in ("run", "step", "evaluation"):
            self.latest[kind] = event
        if kind in ("run", "save", "resume", "skip", "spike", "rollback"):
            self.counts[kind] += 1
        elif kind == "source" and event.get("what") == "dropped":
            self.dropped.append(event)
        elif kind == "evaluation":
            self._extend("loss", event.get("tokens_total"), {"validation": event.get("ce")})
        elif kind == "step":
            self._extend("loss", event.get("tokens_total"), {"training": event.get("loss")})
            for section in ("sources", "auxiliary"):
                self._extend(section, event.get("tokens_total"), event.get(section))

    def points(self, section: str) -> dict[str, Points]:
        return {name: curve.points() for name, curve in self.curves[section].items()}

    def _extend(self, section: str, tokens: Any, figures: Any) -> None:
        curves = self.curves[section]
        for name, figure in figures.items() if isinstance(figures, dict) else ():
            if name in curves or len(curves) < MAX_CURVES:
                curve = curves.setdefault(name, Curve())
                if _is_number(tokens) and _is_number(figure):
                    curve.add(tokens, figure)


def read_history(folder: Path) -> History:
    """What `folder`'s metrics.jsonl holds."""
    history = History()
    path = folder / events.FILE_NAME
    stride = 1 + (min(os.path.getsize(path), HISTORY_BYTES) // PARSED_BYTES if path.is_file() else 0)
    seen: Counter[bytes] = Counter()
    skipped: dict[bytes, bytes] = {}  # the latest line of each kind, unless it was parsed

    def add(line: bytes) -> None:
        if event := events.parse(line):
            history.add(event)

    for line in events.lines(folder, HISTORY_BYTES):
        if prefix := next(filter(line.startswith, SAMPLED), None):
            seen[prefix] += 1
            if seen[prefix] % stride:
                skipped[prefix] = line
                continue
            skipped.pop(prefix, None)
        add(line)
    for line in skipped.values():
        add(line)
    return history


def _sum(one: tuple[float, float, int], other: tuple[float, float, int]) -> tuple[float, float, int]:
    return one[0] + other[0], one[1] + other[1], one[2] + other[2]


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300  # not NaN, and no integer that a float cannot hold
