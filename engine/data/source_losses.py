"""Losses summed by source in whole numbers: the sum is the same in any order, over any ranks, and across a restart."""

import math

import torch

from engine.device.ranks import Ranks
from model.loss import IGNORE_INDEX

UNIT = 2.0**-20  # nats
LIMIT = 2.0**28  # nats of a row; a larger loss counts as infinite, so that the sums fit into int64


class SourceLosses:
    """One step's sums by source, on the device until the step is judged."""

    def __init__(self, num_sources: int, device: torch.device):
        # (3, sources) int64: NLL in UNIT nats, labels, rows that are not finite
        self.sums = torch.zeros(3, num_sources, dtype=torch.int64, device=device)

    def add(self, token_nll: torch.Tensor, labels: torch.Tensor, source_ids: torch.Tensor) -> None:
        """Add one micro-batch: token_nll and labels (B, T), source_ids (B,), on the device."""
        nll = token_nll.sum(1, dtype=torch.float64)
        finite = nll.abs() < LIMIT  # NaN is not
        units = torch.where(finite, nll / UNIT, 0.0).round().long()
        counts = torch.stack([units, (labels != IGNORE_INDEX).sum(1), (~finite).long()])
        self.sums.index_add_(1, source_ids, counts)


def sum_over_ranks(sums: torch.Tensor, ranks: Ranks) -> tuple[float, torch.Tensor]:
    """Return the mean loss (nats) over all ranks' labels, and the summed NLL and labels by source, (2, sources) int64.

    `sums` is this rank's SourceLosses.sums on the CPU. The mean is NaN where any row's loss is not finite.
    """
    sums = ranks.sum_tensor(sums)
    nll, labels, not_finite = sums.sum(1).tolist()
    return math.nan if not_finite or not labels else nll * UNIT / labels, sums[:2]


def mean_losses(loss_sums: torch.Tensor) -> tuple[float, list[float | None]]:
    """Return the mean NLL (nats) of (2, sources) sums over all labels, and by source (None: no labels)."""
    nll, labels = loss_sums.double()
    by_source = [(nll[i] * UNIT / labels[i]).item() if labels[i] else None for i in range(len(labels))]
    return (nll.sum() * UNIT / labels.sum()).item(), by_source
