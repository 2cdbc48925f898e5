"""What a micro-batch's training takes from its routers: the loads of experts, and the losses that are on."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..config import AuxiliaryConfig
from ..loss import IGNORE_INDEX
from .balance import balance_loss, z_loss
from .sparse_mlp import SparseMLP


def take_routing(
    layers: Sequence[SparseMLP], auxiliary: AuxiliaryConfig, labels: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Take each layer's routing of the micro-batch with `labels` (B, T), so that none is kept.

    Returns loads (layers, E) int64, and the weighted means of the losses over the layers, times the number of labels;
    None for either where there is none, as in an evaluation.
    """
    routings = [layer.routing for layer in layers if layer.routing is not None]
    for layer in layers:
        layer.routing = None
    if not routings:
        return None, None
    load, added = torch.stack([routing.load for routing in routings]), None
    for weight, loss in ((auxiliary.expert_balance_weight, balance_loss), (auxiliary.router_z_weight, z_loss)):
        if weight:
            mean = weight * torch.stack([loss(routing) for routing in routings]).mean()
            added = mean if added is None else added + mean
    return load, None if added is None else added * (labels != IGNORE_INDEX).sum()
