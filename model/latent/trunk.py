"""The trunk as the lookahead core reads it: which of its parts, and its last block without gradient.

Predictions go through the trunk's own last block and final norm, so what these know is not learned a second time, and
when they change, every prediction follows. Their weights are looked up where they are used, one by one, so that ZeRO-3
fetches them.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import KeyValueCache, split_heads, without_own
from ..block import Norm, TransformerBlock
from ..experts import SparseMLP
from ..positions import RotaryPositions, rotate
from ..streams.gates import gate
from ..tensors import States

KeysAndValues = tuple[Tensor, Tensor]


class Trunk(Protocol):
    """What the core reads of a TransformerLM."""

    vocab_size: int
    tokens: nn.Embedding
    blocks: nn.ModuleList
    final_norm: Norm
    rotary: RotaryPositions | None
    causal_mask: Tensor

    @property
    def head_weight(self) -> Tensor: ...

    def states(
        self, input_ids: Tensor, cache: KeyValueCache | None = None, segment_ids: Tensor | None = None
    ) -> States: ...


class LastBlock:
    """Turns what reaches the trunk's last block into final states; no gradient reaches its weights."""

    def __init__(self, trunk: Trunk):
        block = trunk.blocks[-1]
        assert isinstance(block, TransformerBlock)
        self.block, self.final_norm, self.rotary = block, trunk.final_norm, trunk.rotary

    def keys_and_values(self, before_last: Tensor) -> KeysAndValues:
        """Keys and values (B, H, T, D/H), without gradient, of a text whose states before the block are (B, T, D)."""
        with torch.no_grad():
            rotations = None if self.rotary is None else self.rotary(before_last.shape[1])
            _, keys, values, _ = self._project(before_last, rotations)
        return keys, values

    def __call__(
        self,
        x: Tensor,
        rotations: Tensor | None,
        text: KeysAndValues,
        allowed: Tensor,
        steps: list[KeysAndValues],
    ) -> Tensor:
        """What reaches the block (B, N, D) -> final states (B, N, D).

        rotations (2, N, D/H/2): those of its positions, None where the trunk has none;
        text: keys and values of S tokens, of which `allowed`, broadcast to (B, H, N, S), may be attended to; steps:
        those (B, H, >= N, D/H) of the earlier steps, which each column attends to in its own column only. The keys and
        values of this step are appended.
        """
        attention, length = self.block.attention, x.shape[1]
        query, key, own, gates = self._project(x, rotations)
        steps.append((key, own))
        keys, values = text
        scale = query.shape[-1] ** -0.5
        scores = [(query @ keys.transpose(-1, -2)).masked_fill(~allowed, -torch.inf)]
        scores += [(query * key[:, :, :length]).sum(-1, keepdim=True) for key, _ in steps]
        weights = (torch.cat(scores, -1).float() * scale).softmax(dim=-1).to(values.dtype)
        mixed = weights[..., : -len(steps)] @ values
        for weight, (_, value) in zip(weights[..., -len(steps) :].unbind(-1), steps, strict=True):
            mixed = mixed + weight[..., None] * value[:, :, :length]
        if attention.exclusive:
            mixed = without_own(mixed, own)
        mixed = mixed if gates is None else mixed * gates.to(mixed.dtype)
        factor = _detached(self.block.layer_factor)
        attended = _linear(attention.out_proj, mixed.transpose(1, 2).flatten(2))
        x = x + (attended if factor is None else attended * factor.to(attended.dtype))
        mlp, normalised = self.block.mlp, _normalise(self.block.mlp_norm, x)
        if isinstance(mlp, SparseMLP):
            added = mlp.frozen(normalised)
        else:
            added = _linear(mlp.down, mlp.activate(_linear(mlp.up, normalised)))
        x = x + (added if factor is None else added * factor.to(added.dtype))
        return _normalise(self.final_norm, x)

    def _project(self, x: Tensor, rotations: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Queries, keys and values (B, H, N, D/H) of what reaches the block (B, N, D), and the factors of its heads
        (B, H, N, 1), None where it has no gates."""
        attention = self.block.attention
        x = _normalise(self.block.attention_norm, x)
        qkv = F.linear(x, attention.in_proj_weight.detach(), _detached(attention.in_proj_bias))
        query, key, value = split_heads(qkv, attention.num_heads)
        if attention.query_norm is not None and attention.key_norm is not None:
            query, key = _normalise(attention.query_norm, query), _normalise(attention.key_norm, key)
        if (factor := _detached(attention.layer_factor)) is not None:
            query = query * factor.to(query.dtype)
        if rotations is not None:
            query, key = rotate(query, rotations), rotate(key, rotations)
        output_gate = attention.output_gate
        return query, key, value, None if output_gate is None else gate(x, output_gate.weight.detach())


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight.detach(), _detached(layer.bias))


def _detached(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.detach()


def _normalise(layer: Norm, x: Tensor) -> Tensor:
    """In the dtype of x."""
    weight = layer.weight.detach().to(x.dtype)
    if isinstance(layer, nn.RMSNorm):
        return F.rms_norm(x, layer.normalized_shape, weight, layer.eps)
    bias = None if layer.bias is None else layer.bias.detach().to(x.dtype)
    return F.layer_norm(x, layer.normalized_shape, weight, bias, layer.eps)
