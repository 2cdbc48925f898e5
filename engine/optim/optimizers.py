"""The optimizer and its parameter groups.

Fused AdamW on CPU and CUDA alike: torch's needs no compiler, DeepSpeed's own "AdamW" compiles a kernel first.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from engine.config import TrainConfig
from engine.optim.muon import Fragment, Matrices, MuonAdamW, MuonSettings
from engine.optim.orthogonal import coefficients
from model.streams.rescaling import LAYER_FACTOR

LOGIT_MATRICES = ("lm_head.weight", "value_head.bins.weight", "value_head.gain_bins.weight", "router.weight")


@dataclass(frozen=True)
class Roles:
    """Learning rates of the trunk's parameters that are no hidden matrices, as multiples of the others'; weight decay,
    None: as the parameter has it without."""

    embedding_rate: float = 1.0
    head_rate: float = 1.0
    scalar_rate: float = 1.0
    embedding_decay: float | None = None
    head_decay: float | None = None

    @classmethod
    def of(cls, train: TrainConfig) -> "Roles":
        return cls(
            train.embedding_rate_factor,
            train.head_rate_factor,
            train.scalar_rate_factor,
            train.embedding_weight_decay or None,
            train.head_weight_decay,
        )

    def settings(self, name: str, parameter: nn.Parameter, is_embedding: bool, decay: float) -> tuple[float, float]:
        """The factor of a parameter's learning rate and its weight decay, which is `decay` where no role says more."""
        if is_embedding:
            return self.embedding_rate, decay if self.embedding_decay is None else self.embedding_decay
        if name == "lm_head.weight":
            return self.head_rate, decay if self.head_decay is None else self.head_decay
        return 1.0 if parameter.ndim >= 2 else self.scalar_rate, decay


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Return two groups: the matrices of linear layers decay; embeddings, norms and biases do not.

    An embedding row gets a gradient only when its token occurs, so decay would pull rare tokens to zero.
    """
    embeddings = _embeddings(model)
    decayed, kept = [], []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.ndim >= 2 and parameter not in embeddings and "positions" not in name
        (decayed if is_matrix else kept).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]


def make_optimizer(model: nn.Module, train: TrainConfig, bf16: bool) -> torch.optim.AdamW:
    """Return the optimizer that train.optimizer names; `bf16`: the run computes in bf16."""
    if train.optimizer == "adamw":
        return adamw(model, train.learning_rate, train.weight_decay, Roles.of(train))
    settings = MuonSettings(
        nesterov=train.muon_nesterov,
        cautious=train.cautious_weight_decay,
        normalise_rows=train.muon_normalise_rows,
        soap=train.muon_soap,
        polynomials=coefficients(train.muon_polynomial, train.muon_iterations),
    )
    dtype = torch.bfloat16 if bf16 else torch.float32
    return muon(model, train.learning_rate, train.weight_decay, dtype, Roles.of(train), settings)


def adamw(model: nn.Module, learning_rate: float, weight_decay: float, roles: Roles | None = None) -> torch.optim.AdamW:
    """Return AdamW with betas (0.9, 0.95): a second moment over about 20 steps follows a short run's gradients."""
    groups = _split(parameter_groups(model, weight_decay), model, roles or Roles())
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), fused=True)


def muon(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    dtype: torch.dtype,
    roles: Roles | None = None,
    settings: MuonSettings | None = None,
) -> MuonAdamW:
    """Return Muon for hidden matrices, with AdamW for embeddings, norms, biases and the matrices that make logits."""
    decayed, kept = parameter_groups(model, weight_decay)
    names = {parameter: name for name, parameter in model.named_parameters()}
    hidden = [parameter for parameter in decayed["params"] if not names[parameter].endswith(LOGIT_MATRICES)]
    outputs = [parameter for parameter in decayed["params"] if names[parameter].endswith(LOGIT_MATRICES)]
    groups = [decayed | {"params": hidden, "muon": True}, decayed | {"params": outputs}, kept]
    matrices = {names[parameter]: _matrices_of(model, names[parameter], parameter) for parameter in hidden}
    optimizer = MuonAdamW(_split(groups, model, roles or Roles()), matrices, learning_rate, dtype, settings)
    optimizer.fragments = {p: [Fragment(matrices[names[p]], 0, 0, p.numel(), shared=False)] for p in hidden}
    return optimizer


def _split(groups: list[dict], model: nn.Module, roles: Roles) -> list[dict]:
    """Return the non-empty groups: the lookahead core's parameters and those of a role in their own groups, where their
    learning rate or decay differs. `full_decay` is a group's weight decay before any schedule."""
    latent = getattr(model, "latent", None)
    core = set() if latent is None else set(latent.parameters())
    core_factor = 1.0 if latent is None else latent.auxiliary.learning_rate_factor
    names, embeddings = {parameter: name for name, parameter in model.named_parameters()}, _embeddings(model)
    split = []
    for group in groups:
        alike: dict[tuple[bool, float, float, bool], list[nn.Parameter]] = {}
        for parameter in group["params"]:
            factor, decay = core_factor, group["weight_decay"]
            if parameter not in core:
                factor, decay = roles.settings(names[parameter], parameter, parameter in embeddings, decay)
            is_factor = names[parameter].endswith(LAYER_FACTOR)
            alike.setdefault((parameter in core, factor, decay, is_factor), []).append(parameter)
        for (is_core, factor, decay, are_factors), parameters in sorted(alike.items(), key=lambda item: item[0][0]):
            of_group = {"weight_decay": decay, "full_decay": decay, "core": is_core, "rate_factor": factor}
            layer_factors = {"layer_factors": True} if are_factors else {}
            split.append(group | of_group | layer_factors | {"params": parameters})
    return split


def _embeddings(model: nn.Module) -> set[torch.Tensor]:
    return {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}


def _matrices_of(model: Any, name: str, weight: torch.Tensor) -> Matrices:
    """Return how many matrices a weight fuses, and of what shape."""
    fused = 1
    if name.endswith("in_proj_weight"):
        fused = 3  # queries, keys and values
    elif name.endswith(("mlp.up.weight", "shared.up.weight", "experts.up")) and model.config.mlp == "swiglu":
        fused = 2  # gate and value
    if weight.ndim == 3:  # experts, each of which is a matrix
        return fused * weight.shape[0], weight.shape[1] // fused, weight.shape[2]
    return fused, weight.shape[0] // fused, weight.shape[1]
