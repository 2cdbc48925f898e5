"""The optimizer and its parameter groups.

Fused AdamW on CPU and CUDA alike: DeepSpeed's own "AdamW" compiles a kernel first, torch's needs no compiler.
"""

import torch
from torch import nn


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Two groups: the matrices of linear layers decay; embeddings, norms and biases do not.

    An embedding row moves only when its token occurs, so decay would pull rare tokens to zero between visits.
    """
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)}
    decayed, kept = [], []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.ndim >= 2 and id(parameter) not in embeddings and "positions" not in name
        (decayed if is_matrix else kept).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]


def adamw(model: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW with betas (0.9, 0.95): a second moment of about 20 steps follows a short run's changing gradients."""
    return torch.optim.AdamW(parameter_groups(model, weight_decay), lr=learning_rate, betas=(0.9, 0.95), fused=True)
