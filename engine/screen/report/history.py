"""What the report shows of all events of a folder, in memory that does not grow with their number.

A curve is averaged as it comes. Of a long metrics.jsonl most steps and evaluations are skipped unparsed, so that a
history of millions of steps is read within a second.
"""

import os
from collections import Counter, deque
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from engine import events
from engine.screen.text import Event, is_news

MAX_POINTS = 400  # of a curve
MAX_CURVES = 64  # of a section
MAX_MOMENTS = 60  # events that are listed, of each kind
MAX_SAMPLES = 12
MAX_LETTERS = 2000  # of a text in an event that is listed
MAX_RUNS = 64
HISTORY_BYTES = 2**30  # of metrics.jsonl: its end
PARSED_BYTES = 2**25  # of it, about, in steps and evaluations
SAMPLED = (b'{"event": "step"', b'{"event": "evaluation"')

SECTIONS = ("loss", "lr", "rate", "grad_norm", "sources", "validation", "weights", "shares", "auxiliary", "waits")
LISTED = ("spike", "skip", "rollback", "resume", "advice", "end", "dropped", "retry", "next_pass", "skipped", "notice")
COUNTED = ("run", "save", "resume", "skip", "spike", "rollback", "source")
LATEST = ("run", "step", "evaluation", "save", "end")

Points = list[tuple[float, float]]  # tokens over all runs, and a figure
T = TypeVar("T")


class Moment(NamedTuple):
    """An event that is listed, and where in the lineage it happened."""

    tokens: float
    event: Event


class Curve:
    """A figure over tokens: the means of groups of neighbours, whose size doubles when there are too many.

    Tokens that are fewer than before mean that a checkpoint was loaded: what came after it is taken back.
    """

    def __init__(self) -> None:
        self._groups: list[tuple[float, float, int]] = []  # sums of tokens and of figures, and how many
        self._size = 1

    def add(self, tokens: float, figure: float) -> None:
        while self._groups and self._groups[-1][0] > tokens * self._groups[-1][2]:
            self._groups.pop()
        last = self._groups.pop() if self._groups and self._groups[-1][2] < self._size else (0.0, 0.0, 0)
        self._groups.append(_sum(last, (tokens, figure, 1)))
        if len(self._groups) > MAX_POINTS:
            pairs = [self._groups[first : first + 2] for first in range(0, len(self._groups), 2)]
            self._groups = [_sum(*pair) if len(pair) == 2 else pair[0] for pair in pairs]
            self._size *= 2

    def points(self) -> Points:
        return [(tokens / number, figure / number) for tokens, figure, number in self._groups]


class Thinned(Generic[T]):
    """At most about `limit` of all values, evenly spread, the first and the latest among them."""

    def __init__(self, limit: int):
        self.limit = limit
        self._kept: list[T] = []
        self._stride, self._seen = 1, 0

    def add(self, value: T) -> None:
        if self._kept and (self._seen - 1) % self._stride:  # the value before this one is the latest no more
            self._kept.pop()
        self._kept.append(value)
        self._seen += 1
        if len(self._kept) > self.limit:
            self._kept = [*self._kept[:-1:2], self._kept[-1]]
            self._stride *= 2

    def __iter__(self):
        return iter(self._kept)


class History:
    """Counts by kind, the latest event of each kind that is shown in full, curves by section and name, samples, and the
    events that are listed."""

    def __init__(self) -> None:
        self.tokens = 0.0  # over all runs, at the latest event that has them
        self.counts: Counter[str] = Counter()
        self.latest: dict[str, Event] = {}
        self.runs: deque[tuple[Any, float]] = deque(maxlen=MAX_RUNS)  # numbers, and where in the lineage they began
        self.moments: dict[str, deque[Moment]] = {}  # by kind; of a source's events, by what happened
        self.samples: Thinned[Event] = Thinned(MAX_SAMPLES)  # evaluations
        self.curves: dict[str, dict[str, Curve]] = {section: {} for section in SECTIONS}
        self._documents = Documents()

    def add(self, event: Event) -> None:
        """Count an event, whatever it holds."""
        kind = event["event"]
        if _is_number(event.get("tokens_total")):
            self.tokens = event["tokens_total"]
        if not isinstance(kind, str):
            return
        if kind in LATEST:
            self.latest[kind] = event
        if kind in COUNTED:
            self.counts[kind] += 1
        if kind == "step":
            self._add_step(event)
        elif kind == "evaluation":
            self._add_evaluation(event)
        elif kind == "run":
            self.latest.pop("end", None)  # of the start before
            self._documents.start()
            number = _dict(event.get("derived")).get("run")
            if _is_number(number) and (not self.runs or number != self.runs[-1][0]):
                self.runs.append((number, self.tokens))
        elif kind == "source" and event.get("what") == "weights":
            self._extend("weights", self.tokens, _shares(event.get("weights")))
        elif (what := event.get("what") if kind == "source" else kind) in LISTED and is_news(event):
            self.moments.setdefault(what, deque(maxlen=MAX_MOMENTS)).append(Moment(self.tokens, _brief(event)))

    def points(self, section: str) -> dict[str, Points]:
        return {name: curve.points() for name, curve in self.curves[section].items()}

    def documents(self) -> dict[str, dict[str, int]]:
        """By source, documents that were packed (`documents`) and filtered out (by reason), over all starts."""
        return self._documents.totals()

    def _add_step(self, event: Event) -> None:
        tokens = event.get("tokens_total")
        self._extend("loss", tokens, {"training": event.get("loss")})
        self._extend("lr", tokens, {"learning rate": event.get("lr")})
        self._extend("rate", tokens, {"tokens/s": event.get("tokens_per_second")})
        self._extend("waits", tokens, {"MFU": event.get("mfu"), "data stall": event.get("data_wait")})
        self._extend("grad_norm", tokens, {"trunk": event.get("grad_norm")})
        if "core_grad_norm" in event:
            self._extend("grad_norm", tokens, {"lookahead core": event["core_grad_norm"]})
        for section in ("sources", "auxiliary"):
            self._extend(section, tokens, event.get(section))

    def _add_evaluation(self, event: Event) -> None:
        tokens = event.get("tokens_total")
        self._extend("loss", tokens, {"validation": event.get("ce")})
        by_source = {name: _dict(figures).get("ce") for name, figures in _dict(event.get("sources")).items()}
        self._extend("validation", tokens, by_source)
        if sample := event.get("sample"):
            sample = {key: str(words)[:MAX_LETTERS] for key, words in _dict(sample).items()}
            self.samples.add({"tokens_total": tokens, "ce": event.get("ce"), "sample": sample})
        read = {name: _dict(source) for name, source in _dict(event.get("data")).items()}
        self._extend("shares", tokens, _shares({name: source.get("tokens") for name, source in read.items()}))
        self._documents.add(read)

    def _extend(self, section: str, tokens: Any, figures: Any) -> None:
        curves = self.curves[section]
        for name, figure in _dict(figures).items():
            if name in curves or len(curves) < MAX_CURVES:
                curve = curves.setdefault(name, Curve())
                if _is_number(tokens) and _is_number(figure):
                    curve.add(tokens, figure)


class Documents:
    """Counts of documents, which a run gives since its start, over all starts."""

    def __init__(self) -> None:
        self._before: dict[str, Counter[str]] = {}
        self._now: dict[str, Counter[str]] = {}

    def start(self) -> None:
        self._before, self._now = self._sums(), {}

    def add(self, read: dict[str, dict[str, Any]]) -> None:
        for name, source in list(read.items())[:MAX_CURVES]:
            counts = {"documents": source.get("documents"), **_dict(source.get("filtered"))}
            self._now[name] = Counter({reason: n for reason, n in list(counts.items())[:MAX_CURVES] if _is_number(n)})

    def totals(self) -> dict[str, dict[str, int]]:
        return {name: dict(counts) for name, counts in self._sums().items()}

    def _sums(self) -> dict[str, Counter[str]]:
        names = list(dict.fromkeys([*self._before, *self._now]))[:MAX_CURVES]
        return {name: self._before.get(name, Counter()) + self._now.get(name, Counter()) for name in names}


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

    def add_skipped() -> None:
        for line in skipped.values():
            add(line)
        skipped.clear()

    for line in events.lines(folder, HISTORY_BYTES):
        if prefix := next(filter(line.startswith, SAMPLED), None):
            seen[prefix] += 1
            if seen[prefix] % stride:
                skipped.pop(prefix, None)
                skipped[prefix] = line  # in the order of the file
                continue
            skipped.pop(prefix, None)
        elif line.startswith(b'{"event": "run"'):
            add_skipped()  # how the start before ended
        add(line)
    add_skipped()
    return history


def _sum(one: tuple[float, float, int], other: tuple[float, float, int]) -> tuple[float, float, int]:
    return one[0] + other[0], one[1] + other[1], one[2] + other[2]


def _shares(weights: Any) -> dict[str, float]:
    """Numbers by name as shares of their sum."""
    numbers = {name: number for name, number in _dict(weights).items() if _is_number(number) and number >= 0}
    total = sum(numbers.values())
    return {name: number / total for name, number in numbers.items()} if total else {}


def _brief(event: Event) -> Event:
    """An event without what it nests, its texts cut."""
    return {
        key: value[:MAX_LETTERS] if isinstance(value, str) else value
        for key, value in event.items()
        if not isinstance(value, (dict, list))
    }


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300  # not NaN, and no integer that a float cannot hold
