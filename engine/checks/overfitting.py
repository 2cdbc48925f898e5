"""Watches the validation loss for the turn after which a model memorises its text."""

import math
from dataclasses import dataclass, field
from statistics import median
from typing import NamedTuple, TypedDict

IN_A_ROW = 3  # evaluations above the lowest level
LEAST_RISE = 0.01  # nats; below it nothing is said, however quiet the curve is
DEVIATIONS = 5  # of the curve's noise that a rise is more than; a flat curve is called a turn in 2 of 100 runs
RECENT = 32  # evaluations by which the noise is judged


class OverfittingState(TypedDict):
    """What survives a restart."""

    tokens: int  # of the validation set
    losses: list[float]  # sum and number of the training losses since the last evaluation
    best: list[float]  # as a point of `curve`, or empty; so is `level`
    level: list[float]
    curve: list[list[float]]  # of recent evaluations: step, loss, mean training loss since the evaluation before
    is_said: bool


class Point(NamedTuple):
    """An evaluation."""

    step: int
    loss: float
    trained: float  # the mean training loss since the evaluation before


@dataclass
class OverfittingWatch:
    """Says once when the validation loss has risen over its lowest level by more than noise, at IN_A_ROW evaluations in
    a row, while the training loss was below what it was there. The same on every rank.

    A level is the median of three evaluations, since the best of many is mostly a lucky one.
    """

    tokens: int = 0
    losses: tuple[float, int] = (0.0, 0)
    best: Point | None = None
    level: Point | None = None
    curve: list[Point] = field(default_factory=list)
    is_said: bool = False

    def after_step(self, loss: float) -> None:
        """Count a step that was applied; `loss` in nats per token."""
        self.losses = (self.losses[0] + loss, self.losses[1] + 1)

    def after_evaluation(self, step: int, loss: float, tokens: int) -> str | None:
        """Return what to say, if anything, after a validation `loss` over `tokens` at `step`."""
        if tokens != self.tokens:  # another validation set
            self.tokens, self.best, self.level, self.curve, self.is_said = tokens, None, None, [], False
        total, number = self.losses
        if not number:  # a second evaluation at one step
            return None
        now, self.losses = Point(step, loss, total / number), (0.0, 0)
        self.curve = [*self.curve, now][-RECENT:]
        if self.best is None or loss < self.best.loss:
            self.best = now
        level = now._replace(loss=median(point.loss for point in self.curve[-3:]))
        if self.level is None or level.loss < self.level.loss:
            self.level = level
        if self.is_said or not self._has_turned(self.level):
            return None
        self.is_said = True
        return (
            f"The validation loss has risen from {self.best.loss:.3f} at step {self.best.step:,}, its best, to "
            f"{loss:.3f}, while the training loss falls: the model memorises its text. Stop the run, add text, or "
            "train a smaller model or one with model.dropout."
        )

    def _has_turned(self, level: Point) -> bool:
        last = self.curve[-IN_A_ROW:]
        if len(last) < IN_A_ROW or last[0].step <= level.step:
            return False
        return all(point.loss - level.loss > self._noise() and point.trained < level.trained for point in last)

    def _noise(self) -> float:
        """Return the rise that noise alone may make. It is judged by third differences, in which a smooth curve nearly
        vanishes: of independent noise they have sqrt(20) times the standard deviation, of which the median of their
        absolute values is a robust measure."""
        losses = [point.loss for point in self.curve]
        fours = zip(losses, losses[1:], losses[2:], losses[3:], strict=False)
        differences = [abs(a - 3 * b + 3 * c - d) for a, b, c, d in fours]
        deviation = 1.4826 * median(differences) / math.sqrt(20) if differences else 0.0
        return max(LEAST_RISE, DEVIATIONS * deviation)

    def state(self) -> OverfittingState:
        return OverfittingState(
            tokens=self.tokens,
            losses=list(self.losses),
            best=list(self.best or ()),
            level=list(self.level or ()),
            curve=[list(point) for point in self.curve],
            is_said=self.is_said,
        )

    @classmethod
    def from_state(cls, state: OverfittingState | None) -> "OverfittingWatch":
        """Return the watch of a checkpoint, or a new one."""
        if state is None:
            return cls()
        total, number = state["losses"]
        best, level = _point(state["best"]), _point(state["level"])
        curve = [point for saved in state["curve"] if (point := _point(saved))]
        return cls(state["tokens"], (total, int(number)), best, level, curve, state["is_said"])


def _point(saved: list[float]) -> Point | None:
    if not saved:
        return None
    step, loss, trained = saved
    return Point(int(step), loss, trained)
