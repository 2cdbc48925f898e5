"""How long a run still takes, once that can be told.

The steps of the first event wait for the first batches and for memory, and may take a hundred times as long as those
after them; so they never count. An estimate is given after WARM_STEPS further steps that took WARM_SECONDS in all, and
is made of the latest WINDOW events: of their clock time, evaluations and checkpoints included.
"""

from collections import deque
from typing import NamedTuple

from engine.screen.text import Event

WARM_STEPS, WARM_SECONDS = 10, 20.0
WINDOW = 60  # events: ten minutes, with ten seconds from one to the next


class _Mark(NamedTuple):
    time: float  # seconds since 1970
    step: int
    tokens: int  # of this run


class Remaining:
    """Adds step events; `seconds` is what is left of the run, or None while that is unknown."""

    def __init__(self, token_budget: int):
        self.token_budget = token_budget
        self._marks: deque[_Mark] = deque(maxlen=WINDOW + 1)
        self._warm_at: _Mark | None = None  # the first event

    def add(self, event: Event) -> None:
        mark = _Mark(event["time"], event["step"], event["tokens"])
        if self._marks and (mark.tokens < self._marks[-1].tokens or mark.time < self._marks[-1].time):
            self.restart()  # a rollback, or a clock that was set back
        self._warm_at = self._warm_at or mark
        self._marks.append(mark)

    def restart(self) -> None:
        """Forget everything: another start of the run begins."""
        self._marks.clear()
        self._warm_at = None

    def seconds(self) -> float | None:
        """Seconds from the latest event to the last token."""
        if self._warm_at is None:
            return None
        first, last = self._marks[0], self._marks[-1]
        steps, took = last.step - self._warm_at.step, last.time - self._warm_at.time
        if steps < WARM_STEPS or took < WARM_SECONDS or last.tokens == first.tokens or last.time == first.time:
            return None
        return max(0, self.token_budget - last.tokens) * (last.time - first.time) / (last.tokens - first.tokens)
