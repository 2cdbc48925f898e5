"""How even the loads of experts are: two losses of a router, both optional, and the figure that is logged."""

import torch
from torch import Tensor

from .routing import Routing


def balance_loss(routing: Routing) -> Tensor:
    """E * sum_e f_e p_e, a scalar, 1 where loads are even: f_e is the share of the load of expert e, p_e its mean share
    of the scores (Switch Transformer, arXiv 2101.03961, with DeepSeek-V3's scores)."""
    scores = routing.logits.sigmoid()
    shares = (scores / scores.sum(dim=-1, keepdim=True)).mean(dim=0)
    return len(shares) * (routing.load / routing.load.sum() * shares).sum()


def z_loss(routing: Routing) -> Tensor:
    """The mean squared log-sum-exp of a token's logits, a scalar (ST-MoE, arXiv 2202.08906)."""
    return routing.logits.logsumexp(dim=-1).square().mean()


def max_violation(load: Tensor) -> Tensor:
    """Loads (..., E) -> (...): by how much the largest exceeds the mean, as a share of the mean; 0 where all are even
    (MaxVio, arXiv 2408.15664)."""
    mean = load.double().mean(dim=-1).clamp_min(torch.finfo(torch.float64).tiny)
    return load.amax(dim=-1) / mean - 1
