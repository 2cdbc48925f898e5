"""Source weights that follow the training loss: sources with a higher loss are read more.

Every interval of tokens each source's loss is compared with the mean over the sources. The moving average of that
ratio, clamped, multiplies the weight that the preset gives. New weights take effect a fixed number of steps later,
behind all rows that are prepared ahead, so neither prefetching nor a restart changes a run. Only numbers that all ranks
know go in, so all compute the same weights without communication.

(Similar to the online mixing methods compared in Aioli, arXiv 2411.05735, none of which beat fixed weights
consistently: hence off by default.)
"""

from collections.abc import Collection
from typing import TypedDict


class AdaptiveState(TypedDict):
    """What a restart needs, as JSON."""

    tokens: int  # since the last update
    losses: dict[str, float]  # each source's latest, nats per token
    average: dict[str, float]  # of each source's loss over the mean
    schedule: list[tuple[int, dict[str, float]]]  # first step, multipliers of the weights from it on; ascending


class AdaptiveWeights:
    """Weights by step, counted as the lineage's batches are.

    `base_weights` are the preset's, by source. `delay` is in steps: after step s, the weights up to step s + delay - 1
    are decided, so at most that far may be read ahead. `smoothing` is the share of the old average that is kept.
    """

    def __init__(
        self,
        base_weights: dict[str, float],
        *,
        interval_tokens: int,
        min_weight: float,
        max_weight: float,
        smoothing: float,
        delay: int,
    ):
        assert delay >= 1, "the weights of a step that is over cannot change"
        self.base_weights = dict(base_weights)
        self.interval_tokens, self.delay, self.smoothing = interval_tokens, delay, smoothing
        self.min_weight, self.max_weight = min_weight, max_weight
        self.average: dict[str, float] = {}  # of the relative losses
        self._losses: dict[str, float] = {}  # each source's latest
        self._tokens = 0  # since the last update
        # First step, multipliers from it on; ascending, the first is in use. Replaced, never changed: a loader's thread
        # reads it meanwhile.
        self._schedule: tuple[tuple[int, dict[str, float]], ...] = ((0, {}),)

    def after_step(self, step: int, tokens: int) -> bool:
        """Count a step's tokens over all ranks; returns whether an update is due."""
        self._tokens += tokens
        while len(self._schedule) > 1 and self._schedule[1][0] <= step:
            self._schedule = self._schedule[1:]
        return self._tokens >= self.interval_tokens

    def update(
        self, step: int, losses: dict[str, float], dropped: Collection[str] = ()
    ) -> tuple[int, dict[str, float]]:
        """Take in the mean losses since the last update, after `step`; returns (first step, weights from it on).

        `losses` are nats per token over all ranks, of the sources that had tokens. Another source keeps its latest loss
        and its weight; `dropped` sources are left out of the mean.
        """
        self._tokens = 0
        self._losses |= losses
        compared = [self._losses[name] for name in self.base_weights if name in self._losses and name not in dropped]
        mean = sum(compared) / len(compared) if compared else 0.0
        for name in self.base_weights:
            if mean > 0 and name in losses and name not in dropped:
                ratio, before = losses[name] / mean, self.average.get(name)
                if before is not None:
                    ratio = self.smoothing * before + (1 - self.smoothing) * ratio
                self.average[name] = ratio
        multipliers = {name: min(max(value, self.min_weight), self.max_weight) for name, value in self.average.items()}
        effective_step = step + self.delay
        self._schedule = (*self._schedule, (effective_step, multipliers))
        return effective_step, self.weights_at(effective_step)

    def weights_at(self, step: int) -> dict[str, float]:
        """Return the weights for a step that is not over yet; may be called from another thread."""
        in_use, *coming = self._schedule
        multipliers = [in_use[1], *(multipliers for start, multipliers in coming if start <= step)][-1]
        return {name: weight * multipliers.get(name, 1.0) for name, weight in self.base_weights.items()}

    def state(self) -> AdaptiveState:
        return {
            "tokens": self._tokens,
            "losses": dict(self._losses),
            "average": dict(self.average),
            "schedule": [(start, dict(multipliers)) for start, multipliers in self._schedule],
        }

    def load(self, state: AdaptiveState) -> None:
        """Continue `state`; sources that are gone are forgotten, new ones start at their base weight."""
        self._tokens = state["tokens"]
        self._losses = self._known(state["losses"])
        self.average = self._known(state["average"])
        self._schedule = tuple((start, self._known(multipliers)) for start, multipliers in state["schedule"])

    def _known(self, by_source: dict[str, float]) -> dict[str, float]:
        return {name: value for name, value in by_source.items() if name in self.base_weights}
