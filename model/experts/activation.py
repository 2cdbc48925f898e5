"""The activation of MLPs, dense ones and experts."""

import torch.nn.functional as F
from torch import Tensor


def activate(x: Tensor, kind: str) -> Tensor:
    """The output of an MLP's `up` (..., 2 W with SwiGLU, else W) -> the input of its `down` (..., W)."""
    if kind == "gelu":
        return F.gelu(x)
    if kind == "squared_relu":  # Primer, arXiv 2109.08668
        return F.relu(x).square()
    gate, value = x.chunk(2, dim=-1)
    return F.silu(gate) * value
