"""The router: which experts read a token, and with what weights (DeepSeek-V3, arXiv 2412.19437, section 2.1).

Scores are sigmoids of fp32 logits, also under autocast. A bias that no gradient reaches is added where experts are
chosen, not where they are weighed: whoever trains the model moves it towards even loads.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Routing(NamedTuple):
    """What a router decides for N tokens with K of E experts each."""

    indices: Tensor  # (N, K) int64: the experts of each token
    weights: Tensor  # (N, K) fp32: they sum to K
    logits: Tensor  # (N, E) fp32
    load: Tensor  # (E,) int64: how many tokens each expert reads


class Router(nn.Module):
    """Scores of `num_experts` experts for states of `hidden_size`."""

    expert_bias: Tensor

    def __init__(self, hidden_size: int, num_experts: int, experts_per_token: int):
        super().__init__()
        self.experts_per_token = experts_per_token
        self.weight = nn.Parameter(torch.empty(num_experts, hidden_size))
        self.register_buffer("expert_bias", torch.zeros(num_experts))

    def forward(self, x: Tensor, read: Callable[[Tensor], Tensor] = lambda weight: weight) -> Routing:
        """States (N, D) -> the routing of N tokens; `read` is applied to the weight."""
        with torch.autocast(x.device.type, enabled=False):
            logits = F.linear(x.float(), read(self.weight).float())
            scores = logits.sigmoid()
            indices = (scores.detach() + self.expert_bias).topk(self.experts_per_token, dim=-1).indices
            chosen = scores.gather(1, indices)
            weights = chosen / (chosen.sum(dim=-1, keepdim=True) + 1e-20) * self.experts_per_token
        experts = torch.arange(len(self.weight), device=x.device)
        load = (indices.flatten()[:, None] == experts).sum(dim=0)
        return Routing(indices, weights, logits, load)
