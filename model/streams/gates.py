"""Gates of attention heads."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class HeadGate(nn.Module):
    """One factor between 0 and 2 for each head and position, 1 at first: 2 * sigmoid(weight @ x)."""

    def __init__(self, hidden_size: int, num_heads: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_heads, hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        """What attention reads (B, T, D) -> factors (B, H, T, 1)."""
        return gate(x, self.weight)


def gate(x: Tensor, weight: Tensor) -> Tensor:
    """x (B, T, D), weight (H, D) -> (B, H, T, 1)."""
    return 2 * F.linear(x, weight).sigmoid().transpose(1, 2)[..., None]
