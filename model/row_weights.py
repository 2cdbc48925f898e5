"""Weights of the loss: of rows by difficulty (the curriculum), of tokens by what reading them is expected to tell.

The easiest fifth of the rows counts less, the hardest fiftieth is capped.

A model learns little from what it already predicts well, and what it predicts worst is often noise. A row's loss is
ranked among those of recent rows (thresholds: their quantiles at QUANTILES). With p the share of rows that are easier,
f = min(p / 0.2, 1) and the weight is exp((f - 1) / temperature) (LinUpper). Above the last quantile the weight is
divided by the ratio of the loss to that quantile, so that the row's weighted loss is that of a row at the quantile.

Weights are divided by their mean over all p, which needs no other row and keeps the scale of the gradient.
"""

import math

import torch
from torch import Tensor

from .loss import IGNORE_INDEX

# Equal steps up to the share of easy rows, which row_weights relies on; then where the cap begins.
QUANTILES = (0.0, 0.05, 0.10, 0.15, 0.20, 0.98)
_EASY_SHARE = QUANTILES[-2]


def row_losses(token_nll: Tensor, labels: Tensor) -> Tensor:
    """(B,): the mean NLL over the labels of each row of token_nll and labels (B, T); 0 where there is none."""
    return token_nll.sum(dim=1) / (labels != IGNORE_INDEX).sum(dim=1).clamp_min(1)


def row_weights(row_loss: Tensor, thresholds: Tensor, temperature: float) -> Tensor:
    """(B,): the weights of rows with mean NLLs row_loss (B,), by thresholds (K,), the losses at QUANTILES, ascending.

    A lower temperature reduces the weight of easy rows more: the easiest has exp(-1 / temperature) of a usual one's.
    """
    easy, hardest = thresholds[:-1], thresholds[-1]
    widths = easy.diff().clamp_min(torch.finfo(easy.dtype).tiny)  # equal quantiles are a step, not a division by zero
    ease = ((row_loss[:, None] - easy[:-1]) / widths).clamp(0.0, 1.0).mean(dim=1)
    mean = 1.0 - _EASY_SHARE * (1.0 + temperature * math.expm1(-1.0 / temperature))
    return torch.exp((ease - 1.0) / temperature) / mean * (hardest / row_loss).clamp(max=1.0)


def gain_weights(gain: Tensor, labels: Tensor, strength: float) -> Tensor:
    """(B, T): the weights of tokens exp(strength * gain), whose mean over the labels (B, T) of each row is 1; gain
    (B, T) in nats is what reading each label is expected to tell about the next one."""
    known = labels != IGNORE_INDEX
    logits = (strength * gain.float()).masked_fill(~known, -torch.inf)
    return logits.softmax(dim=1).nan_to_num() * known.sum(dim=1, keepdim=True)  # a row without labels has no softmax
