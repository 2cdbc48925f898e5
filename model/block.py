"""One block of the trunk: attention and an MLP, each behind a norm and added to the residual stream. The MLP may be one
of experts (experts/).

Also here: how the weights of the trunk and of the lookahead core are drawn.
"""

import math

from torch import Tensor, nn

from .attention import NORM_EPS, CausalSelfAttention, KeyValueCache
from .config import ModelConfig
from .config.size import expert_size, inner_size, is_sparse
from .experts import SparseMLP, activate
from .products.linear import Linear
from .streams.gates import HeadGate

Norm = nn.LayerNorm | nn.RMSNorm


class MLP(nn.Module):
    """Up-projection, activation, down-projection; or SwiGLU (arXiv 2002.05202), whose three matrices have as many
    weights as the two of the others, rounded up to a multiple of 64 columns."""

    def __init__(self, hidden_size: int, kind: str, bias: bool = True, inner: int | None = None):
        super().__init__()
        self.kind = kind
        inner = inner or inner_size(hidden_size, kind)
        self.up = Linear(hidden_size, 2 * inner if kind == "swiglu" else inner, bias)
        self.down = Linear(inner, hidden_size, bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return self.down(self.activate(self.up(x)))

    def activate(self, x: Tensor) -> Tensor:
        """The output of `up` -> the input of `down`."""
        return activate(x, self.kind)


def make_mlp(config: ModelConfig, layer: int) -> MLP | SparseMLP:
    """The MLP of block `layer`, dense or of experts."""
    if not is_sparse(config, layer):
        return MLP(config.hidden_size, config.mlp, config.bias)
    shared = None
    if config.shared_experts:  # side by side they are one MLP
        shared = MLP(config.hidden_size, config.mlp, bias=False, inner=config.shared_experts * expert_size(config))
    return SparseMLP(config, shared)


class TransformerBlock(nn.Module):
    """Pre-norm: attention and MLP read the normalised residual stream and add to it.

    value_embeddings: whether attention's values get embeddings of the tokens added.
    """

    layer_factor: nn.Parameter | None

    def __init__(self, config: ModelConfig, layer: int, value_embeddings: bool = False):
        super().__init__()
        self.attention_norm = make_norm(config)
        self.attention = CausalSelfAttention(
            config.hidden_size, config.num_heads, config.dropout, layer, config.qk_norm, config.bias
        )
        self.attention.exclusive = config.exclusive_attention
        if config.attention_gates:
            self.attention.output_gate = HeadGate(config.hidden_size, config.num_heads)
        if value_embeddings:
            self.attention.value_gate = HeadGate(config.hidden_size, config.num_heads)
        self.mlp_norm = make_norm(config)
        self.mlp = make_mlp(config, layer)
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        self.register_parameter("layer_factor", None)  # streams/rescaling.py

    def forward(
        self,
        x: Tensor,
        cache: KeyValueCache | None,
        causal_mask: Tensor,
        segment_mask: Tensor | None,
        rotations: Tensor | None,
        values: Tensor | None = None,
    ) -> Tensor:
        """(B, T, D) -> (B, T, D); the other arguments are those of CausalSelfAttention.forward."""
        attended = self.attention(self.attention_norm(x), cache, causal_mask, segment_mask, rotations, values)
        factor = self.layer_factor
        x = x + self.dropout(attended if factor is None else attended * factor.to(attended.dtype))
        added = self.mlp(self.mlp_norm(x))
        return x + self.dropout(added if factor is None else added * factor.to(added.dtype))


def make_norm(config: ModelConfig) -> Norm:
    """LayerNorm, or RMSNorm (arXiv 1910.07467), which neither centres nor shifts, over states (..., D)."""
    if config.norm == "rms":
        return nn.RMSNorm(config.hidden_size, eps=NORM_EPS)
    return nn.LayerNorm(config.hidden_size, bias=config.bias)


def initialise_weights(module: nn.Module, config: ModelConfig) -> None:
    """GPT-2's scheme, drawn from torch's global generator: normal weights, zero biases, and residual projections scaled
    down so that the variance of the residual stream does not grow with depth. Weights of norms stay at one, those of
    gates at zero."""
    std = config.init_std
    residual_std = std / math.sqrt(2 * config.num_layers)
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif name.endswith(("out_proj.weight", "mlp.down.weight", "shared.down.weight", "experts.down")):
            nn.init.normal_(parameter, std=residual_std)
        elif "norm" not in name and "gate" not in name:
            nn.init.normal_(parameter, std=std)
