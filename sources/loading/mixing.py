"""Which source gives the next row of a lane: round_robin, sequential or weighted, by tokens rather than rows.

Weighted: every source is owed its share of each row's labels; the one that is owed most gives the next row and is
charged for it. So the shares hold at every moment to within a row. A source that is lost takes nothing along: the
shares of the others grow in proportion. One that comes back is owed nothing for its absence.
"""

from collections.abc import Callable, Sequence
from itertools import cycle

from sources.loading.state import MixerState


class WeightedMixer:
    """Picks by tokens owed; "round_robin" is "weighted" with equal weights."""

    def __init__(self, weights: dict[str, float], row_tokens: int, phase: int = 0):
        """`phase` starts the pattern that many picks later, so that neighbouring lanes differ."""
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

    def state(self) -> MixerState:
        return {"owed": dict(self.owed)}

    def load(self, state: MixerState) -> None:
        self.owed |= {name: owed for name, owed in state.get("owed", {}).items() if name in self.owed}


class SequentialMixer:
    """One source's whole epoch, then the next source's, and after the last source the first one's again.

    Where all lanes share a source, an epoch may hold no row for this one, which then skips its turn.
    """

    def __init__(self, names: Sequence[str], epoch_of: Callable[[str], int]):
        """`epoch_of(name)` is the epoch that the source's next row belongs to."""
        self.names = list(names)
        self.epoch_of = epoch_of
        self.current: str | None = None
        self.until = 0  # the current source's turn ends when it reaches this epoch
        self.turns = dict.fromkeys(names, 0)  # the epoch that a source's next turn is for

    def pick(self, live: Sequence[str]) -> str:
        after = 0
        if self.current is not None:
            if self.current in live and self.epoch_of(self.current) < self.until:
                return self.current
            after = self.names.index(self.current) + 1
        for name in cycle(self.names[after:] + self.names[:after]):
            if name in live and self._has_row(name):
                self.current, self.until = name, self.turns[name]
                return name
        raise AssertionError("no source is live")

    def charge(self, chosen: str, live: Sequence[str], tokens: int) -> None:
        """Nothing is owed here."""

    def state(self) -> MixerState:
        return {"current": self.current, "until": self.until, "turns": dict(self.turns)}

    def load(self, state: MixerState) -> None:
        self.turns = {name: epoch for name, epoch in state.get("turns", {}).items() if name in self.names}
        if (current := state.get("current")) in self.names:
            self.current, self.until = current, state.get("until", 0)

    def _has_row(self, name: str) -> bool:
        """Begin a source's turn; returns whether this lane has a row in it."""
        epoch = self.epoch_of(name)
        turn = self.turns.get(name, epoch)  # the state of an older version has none
        self.turns[name] = min(turn, epoch) + 1  # one that starts again has a lower epoch
        return epoch <= turn
