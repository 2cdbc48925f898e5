"""The curriculum: thresholds by which the model weighs easy and hard rows (model/row_weights.py).

Row losses are counted in a histogram on the device, without synchronization. After each interval of tokens the counts
are summed over the ranks, their quantiles become the thresholds DELAY_STEPS later, and counting restarts. Counts are
integers: neither a restart nor another number of ranks changes a bit.
"""

import contextlib
from collections.abc import Iterator
from typing import TypedDict

import torch
from torch import Tensor

from engine.device.ranks import Ranks
from model.config import AuxiliaryConfig
from model.loss import IGNORE_INDEX
from model.row_weights import QUANTILES, row_losses

BIN_NATS, BINS = 0.02, 800  # 0 to 16 nats; larger losses count in the last bin
DELAY_STEPS = 4  # fixed, so that summing asynchronously would not change a run


class CurriculumState(TypedDict):
    step: int
    tokens: int  # since the curriculum was switched on, over all runs
    tokens_counted: int  # in `counts`
    counts: list[int]  # (BINS,), summed over ranks
    coming: list[tuple[int, list[float]]]
    quantiles: list[float] | None


class Curriculum:
    """`thresholds` and `temperature` are TransformerLM.forward's arguments for weighing rows.

    Tokens, and with them the burn-in, count over all runs from the step at which the curriculum was switched on.
    """

    def __init__(self, config: AuxiliaryConfig, ranks: Ranks):
        self.temperature = config.curriculum_temperature
        self._burn_in_tokens = config.curriculum_burn_in_tokens
        self._interval_tokens = config.curriculum_interval_tokens
        self._ranks = ranks
        self._counts = torch.zeros(BINS, dtype=torch.int64, device=ranks.device)
        self._counts_of_step = torch.zeros_like(self._counts)
        self._step = self._tokens = self._tokens_counted = 0
        self._coming: list[tuple[int, list[float]]] = []  # (step after which they apply, quantiles), oldest first
        self._use(None)

    @property
    def thresholds(self) -> Tensor | None:
        """(K,) fp32 on the device, for the next step; None until the burn-in and one interval are over."""
        return self._thresholds

    def add(self, token_nll: Tensor, labels: Tensor) -> None:
        """Count a micro-batch's rows, token_nll and labels (B, T) on the device; rows without labels are ignored."""
        bins = (row_losses(token_nll, labels) / BIN_NATS).long().clamp(0, BINS - 1)
        self._counts_of_step.index_add_(0, bins, (labels != IGNORE_INDEX).any(dim=1).long())

    @contextlib.contextmanager
    def as_after_burn_in(self) -> Iterator[None]:
        """Weigh rows in the block, with zero thresholds where there are none yet."""
        thresholds = self._thresholds
        if thresholds is None:
            self._thresholds = torch.zeros(len(QUANTILES), device=self._ranks.device)
        yield
        self._thresholds = thresholds

    def forget_step(self) -> None:
        """Drop the counts of a skipped step."""
        self._counts_of_step.zero_()

    def after_step(self, tokens_in_step: int) -> None:
        """Call once per step, with its tokens over all ranks, on all ranks: they sum counts at an interval's end."""
        self._counts += self._counts_of_step
        self._counts_of_step.zero_()
        self._step += 1
        self._tokens += tokens_in_step
        self._tokens_counted += tokens_in_step
        if self._tokens_counted >= self._interval_tokens:
            if self._tokens >= self._burn_in_tokens:
                self._coming.append((self._step + DELAY_STEPS, quantiles(self._summed_counts())))
            self._counts.zero_()
            self._tokens_counted = 0
        if self._coming and self._coming[0][0] == self._step:
            self._use(self._coming.pop(0)[1])

    def state(self) -> CurriculumState:
        """Return what a restart needs, the same on all ranks; all must call it."""
        return {
            "step": self._step,
            "tokens": self._tokens,
            "tokens_counted": self._tokens_counted,
            "counts": self._summed_counts().tolist(),
            "coming": list(self._coming),
            "quantiles": self._quantiles,
        }

    def load(self, state: CurriculumState) -> None:
        """Continue `state`, which another number of ranks may have saved."""
        self._step, self._tokens, self._tokens_counted = state["step"], state["tokens"], state["tokens_counted"]
        self._counts.zero_()
        if self._ranks.is_main:  # the saved counts are the sum over ranks; the others start at zero
            self._counts += torch.tensor(state["counts"], device=self._counts.device)
        self._coming = [(step, losses) for step, losses in state["coming"]]
        self._use(state["quantiles"])

    def _use(self, losses: list[float] | None) -> None:
        self._quantiles = losses
        self._thresholds = None
        if losses is not None:
            self._thresholds = torch.tensor(losses, dtype=torch.float32, device=self._ranks.device)

    def _summed_counts(self) -> Tensor:
        """Return the histogram over all ranks, (BINS,) int64 on the CPU."""
        return self._ranks.sum_tensor(self._counts.to("cpu", copy=True))


def quantiles(counts: Tensor) -> list[float]:
    """Return the losses (nats) at QUANTILES of a non-empty histogram (BINS,) int64, interpolated within bins."""
    up_to = counts.cumsum(0).double()
    rank = up_to[-1] * torch.tensor(QUANTILES, dtype=torch.float64)
    bins = torch.searchsorted(up_to, rank, right=True)
    within = (rank - (up_to[bins] - counts[bins])) / counts[bins]
    return ((bins + within) * BIN_NATS).tolist()
