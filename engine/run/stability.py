"""Judges every step by its loss over all ranks, before any weight changes, and counts skipped steps.

A loss is a spike when it exceeds the median of the last WINDOW losses that were trained on by more than SIGMAS robust
standard deviations. Median and median absolute deviation (MAD) are insensitive to the outliers they are to detect.
"""

import math
import statistics
from collections import deque
from collections.abc import Iterable
from enum import StrEnum
from typing import TypedDict

import torch

WINDOW = 128  # losses that a new one is compared with
MIN_LOSSES = 32  # fewer say nothing about their spread
SIGMAS = 6.0
SIGMA_PER_MAD = 1.4826  # of normally distributed values
MIN_SIGMA = 0.02  # nats per token; on a plateau small fluctuations are no spikes


class Verdict(StrEnum):
    """What is wrong with a step, as `skip` events name it."""

    OK = "ok"
    SPIKE = "spike"
    LOSS = "non-finite loss"
    GRADIENT = "non-finite gradient"


class StabilityState(TypedDict):
    losses: list[float]  # nats per token
    skipped_in_a_row: int


class StabilityGuard:
    """Every rank has one, sees the same losses, and so decides the same. `on_spike` and `max_skipped_steps` are the
    preset's; losses are in nats per token."""

    def __init__(self, on_spike: str, max_skipped_steps: int):
        self._skip_spikes, self._max_skipped_steps = on_spike == "skip", max_skipped_steps
        self._losses: deque[float] = deque(maxlen=WINDOW)  # of the latest steps, without skipped ones
        self.skipped_in_a_row = 0

    @property
    def exhausted(self) -> bool:
        """Whether max_skipped_steps in a row were skipped."""
        return self.skipped_in_a_row >= self._max_skipped_steps

    def judge(self, loss: float) -> Verdict:
        """Judge a step's loss over all ranks; the gradient is judged later (deepspeed_engine.step)."""
        if not math.isfinite(loss):
            return Verdict.LOSS
        return Verdict.SPIKE if loss > self.threshold() else Verdict.OK

    def refuses(self, verdict: Verdict) -> bool:
        """Whether a step with this verdict is skipped."""
        return verdict in (Verdict.LOSS, Verdict.GRADIENT) or (verdict is Verdict.SPIKE and self._skip_spikes)

    def threshold(self) -> float:
        """Return the loss above which a step is a spike; infinity until there are MIN_LOSSES."""
        if len(self._losses) < MIN_LOSSES:
            return math.inf
        median = statistics.median(self._losses)
        mad = statistics.median(abs(loss - median) for loss in self._losses)
        return median + SIGMAS * max(SIGMA_PER_MAD * mad, MIN_SIGMA)

    def after_step(self, loss: float, skipped: bool) -> None:
        """Record a step. A skipped step's loss is dropped: it says nothing about the unchanged weights."""
        if skipped:
            self.skipped_in_a_row += 1
        else:
            self.skipped_in_a_row = 0
            self._losses.append(loss)

    def state(self) -> StabilityState:
        """Return what a restart needs; JSON keeps every bit of a float."""
        return {"losses": list(self._losses), "skipped_in_a_row": self.skipped_in_a_row}

    def load(self, state: StabilityState) -> None:
        self._losses.clear()
        self._losses.extend(state["losses"])
        self.skipped_in_a_row = state["skipped_in_a_row"]


def all_finite(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether no tensor holds NaN or infinity."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)
