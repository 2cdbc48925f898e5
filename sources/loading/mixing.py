"""Which source gives the next row: round_robin, sequential or weighted; counts tokens, not rows.

Every source is owed its share of each row's labels; the one that is owed most gives the next row and is charged for it.
So the shares hold at every moment to within a row, a source that leaves takes nothing along (the shares of the others
grow in proportion), and one that comes back later is owed nothing for its absence.
"""

from collections.abc import Callable, Sequence

from sources.source import JSON


class Mixer:
    """Picks by tokens owed ("round_robin" is "weighted" with equal weights)."""

    def __init__(self, weights: dict[str, float], row_tokens: int, phase: int = 0):
        """`phase` starts the pattern that many picks later, so that lanes beside each other differ."""
        self.weights = weights  # may be replaced between two picks
        self.row_tokens = row_tokens
        self.owed = dict.fromkeys(weights, 0.0)
        for _ in range(phase):
            self.charge(self.pick(list(weights)), list(weights), row_tokens)

    def pick(self, live: Sequence[str]) -> str:
        """Return the source among `live` (in configuration order) that is owed most after this row is shared out."""
        if len(live) == 1:
            return live[0]
        total = sum(self.weights[name] for name in live)
        return max(live, key=lambda name: self.owed[name] + self.row_tokens * self.weights[name] / total)

    def charge(self, chosen: str, live: Sequence[str], tokens: int) -> None:
        """Share a row's `tokens` labels out among `live` and charge `chosen`, which gave it."""
        if len(live) == 1:
            return
        total = sum(self.weights[name] for name in live)
        for name in live:
            self.owed[name] += tokens * self.weights[name] / total
        self.owed[chosen] -= tokens

    def state(self) -> JSON:
        return {"owed": dict(self.owed)}

    def load(self, state: JSON) -> None:
        self.owed |= {name: owed for name, owed in state.get("owed", {}).items() if name in self.owed}


class SequentialMixer:
    """One source's whole pass, then the next source's, and after the last one again the first's."""

    def __init__(self, names: Sequence[str], pass_of: Callable[[str], int]):
        """`pass_of(name)` tells which pass the source's next token belongs to."""
        self.names = list(names)
        self.pass_of = pass_of
        self.current: str | None = None
        self.until = 0  # the current source's turn ends when its pass reaches this

    def pick(self, live: Sequence[str]) -> str:
        if self.current in live and self.pass_of(self.current) >= self.until:
            self._start(self._following(live))
        elif self.current not in live:
            self._start(live[0] if self.current is None else self._following(live))
        return self.current

    def charge(self, chosen: str, live: Sequence[str], tokens: int) -> None:
        """Nothing is owed here."""

    def state(self) -> JSON:
        return {"current": self.current, "until": self.until}

    def load(self, state: JSON) -> None:
        if state.get("current") in self.names:
            self.current, self.until = state["current"], state["until"]

    def _start(self, name: str) -> None:
        self.current, self.until = name, self.pass_of(name) + 1

    def _following(self, live: Sequence[str]) -> str:
        place = self.names.index(self.current) + 1
        return next(name for name in self.names[place:] + self.names[:place] if name in live)
