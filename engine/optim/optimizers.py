"""The optimizer and its parameter groups.

Fused AdamW on CPU and CUDA alike: torch's needs no compiler, DeepSpeed's own "AdamW" compiles a kernel first.
"""

from typing import Any

import torch
from torch import nn

from engine.config import TrainConfig
from engine.optim.muon import Fragment, Matrices, MuonAdamW

LOGIT_MATRICES = ("lm_head.weight", "value_head.bins.weight")


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Return two groups: the matrices of linear layers decay; embeddings, norms and biases do not.

    An embedding row gets a gradient only when its token occurs, so decay would pull rare tokens to zero.
    """
    embeddings = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    decayed, kept = [], []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.ndim >= 2 and parameter not in embeddings and "positions" not in name
        (decayed if is_matrix else kept).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]


def make_optimizer(model: nn.Module, train: TrainConfig, bf16: bool) -> torch.optim.AdamW:
    """Return the optimizer that train.optimizer names; `bf16`: the run computes in bf16."""
    if train.optimizer == "adamw":
        return adamw(model, train.learning_rate, train.weight_decay)
    return muon(model, train.learning_rate, train.weight_decay, torch.bfloat16 if bf16 else torch.float32)


def adamw(model: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """Return AdamW with betas (0.9, 0.95): a second moment over about 20 steps follows a short run's gradients."""
    groups = _split_core(parameter_groups(model, weight_decay), model)
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), fused=True)


def muon(model: nn.Module, learning_rate: float, weight_decay: float, dtype: torch.dtype) -> MuonAdamW:
    """Return Muon for hidden matrices, with AdamW for embeddings, norms, biases and the matrices that make logits."""
    decayed, kept = parameter_groups(model, weight_decay)
    names = {parameter: name for name, parameter in model.named_parameters()}
    hidden = [parameter for parameter in decayed["params"] if not names[parameter].endswith(LOGIT_MATRICES)]
    outputs = [parameter for parameter in decayed["params"] if names[parameter].endswith(LOGIT_MATRICES)]
    groups = [decayed | {"params": hidden, "muon": True}, decayed | {"params": outputs}, kept]
    matrices = {names[parameter]: _matrices_of(model, names[parameter], parameter) for parameter in hidden}
    optimizer = MuonAdamW(_split_core(groups, model), matrices, learning_rate, dtype)
    optimizer.fragments = {p: [Fragment(matrices[names[p]], 0, 0, p.numel(), shared=False)] for p in hidden}
    return optimizer


def _split_core(groups: list[dict], model: nn.Module) -> list[dict]:
    """Return the non-empty groups, the lookahead core's parameters in their own groups: its learning rate differs."""
    latent = getattr(model, "latent", None)
    core = set() if latent is None else set(latent.parameters())
    core_factor = 1.0 if latent is None else latent.auxiliary.learning_rate_factor
    split = []
    for group in groups:
        for is_core, factor in ((False, 1.0), (True, core_factor)):
            parameters = [parameter for parameter in group["params"] if (parameter in core) == is_core]
            if parameters:
                split.append(group | {"params": parameters, "core": is_core, "rate_factor": factor})
    return split


def _matrices_of(model: Any, name: str, weight: torch.Tensor) -> Matrices:
    """Return how many matrices a weight fuses, and of what shape."""
    fused = 1
    if name.endswith("in_proj_weight"):
        fused = 3  # queries, keys and values
    elif name.endswith("mlp.up.weight") and model.config.mlp == "swiglu":
        fused = 2  # gate and value
    return fused, weight.shape[0] // fused, weight.shape[1]
