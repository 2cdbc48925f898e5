"""Judges every step by its loss over all ranks, before any weight moves, and counts the steps that were skipped.

A loss is a spike when it lies more than SIGMAS robust standard deviations above the median of the last WINDOW losses
that were trained on. Median and median absolute deviation (MAD) are not moved by the few losses that they are to find.
"""

import math
import statistics
from collections import deque
from collections.abc import Iterable
from enum import StrEnum
from typing import Any

import torch

WINDOW = 128  # losses that a new one is compared with
ENOUGH = 32  # fewer than this tell nothing about their spread
SIGMAS = 6.0
SIGMA_PER_MAD = 1.4826  # of normally distributed values
MIN_SIGMA = 0.02  # nats per token; a loss that is flat for a while makes no spike of every ripple


class Verdict(StrEnum):
    """What is wrong with a step, in the words of the metrics."""

    OK = "ok"
    SPIKE = "spike"
    LOSS = "non-finite loss"
    GRADIENT = "non-finite gradient"


class Guard:
    """Every rank has one, is told the same losses and so decides alike. `on_spike` and `max_skipped_steps` are the
    preset's; all losses are nats per token."""

    def __init__(self, on_spike: str, max_skipped_steps: int):
        self._skip_spikes, self._max_skipped_steps = on_spike == "skip", max_skipped_steps
        self._losses: deque[float] = deque(maxlen=WINDOW)  # of the latest steps that were not skipped
        self.skipped_in_a_row = 0

    @property
    def exhausted(self) -> bool:
        """Whether as many steps in a row were skipped as may be."""
        return self.skipped_in_a_row >= self._max_skipped_steps

    def judge(self, loss: float) -> Verdict:
        """What a step's loss over all ranks says; the gradient is judged after it (zero.step)."""
        if not math.isfinite(loss):
            return Verdict.LOSS
        return Verdict.SPIKE if loss > self.threshold() else Verdict.OK

    def refuses(self, verdict: Verdict) -> bool:
        """Whether a step with this verdict must not move the weights."""
        return verdict in (Verdict.LOSS, Verdict.GRADIENT) or (verdict is Verdict.SPIKE and self._skip_spikes)

    def threshold(self) -> float:
        """The loss above which a step is a spike; infinite until there are enough losses to compare with."""
        if len(self._losses) < ENOUGH:
            return math.inf
        median = statistics.median(self._losses)
        mad = statistics.median(abs(loss - median) for loss in self._losses)
        return median + SIGMAS * max(SIGMA_PER_MAD * mad, MIN_SIGMA)

    def after_step(self, loss: float, skipped: bool) -> None:
        """Counts a step. A skipped one's loss is forgotten: it says nothing about the weights that stayed."""
        if skipped:
            self.skipped_in_a_row += 1
        else:
            self.skipped_in_a_row = 0
            self._losses.append(loss)

    def state(self) -> dict[str, Any]:
        """Everything a restart needs, as JSON, which keeps every bit of a float."""
        return {"losses": list(self._losses), "skipped_in_a_row": self.skipped_in_a_row}

    def load(self, state: dict[str, Any]) -> None:
        self._losses.clear()
        self._losses.extend(state["losses"])
        self.skipped_in_a_row = state["skipped_in_a_row"]


def all_finite(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether no tensor holds NaN or infinity."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)
