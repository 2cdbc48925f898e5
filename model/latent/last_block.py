"""The trunk's last block and final norm, as the transition reads them: as they stand, and never moved by it.

What the trunk's weights know is not learned a second time, and when they move, every prediction moves along. Weights
are looked up where they are used, one by one, so that ZeRO-3 fetches them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..positions import RotaryPositions, rotate

KeysAndValues = tuple[Tensor, Tensor]


class LastBlock:
    """Makes final states of what reaches the last block; no gradient reaches its weights.

    block: a transformer.Block; final_norm: what follows it; rotary: the trunk's rotations, where it has them.
    """

    def __init__(self, block: nn.Module, final_norm: nn.Module, rotary: RotaryPositions | None):
        self.block, self.final_norm, self.rotary = block, final_norm, rotary

    def remember(self, before: Tensor) -> KeysAndValues:
        """Keys and values (B, H, T, D/H), without gradient, of a text whose states before the block are (B, T, D)."""
        with torch.no_grad():
            _, keys, values = self._project(before, 0)
        return keys, values

    def __call__(
        self, x: Tensor, start: int, text: KeysAndValues, allowed: Tensor, steps: list[KeysAndValues]
    ) -> Tensor:
        """What reaches the block (B, N, D), at positions start, start + 1, ... -> final states (B, N, D).

        text: keys and values of S tokens, of which `allowed`, broadcast to (B, H, N, S), may be looked at; steps: those
        (B, H, >= N, D/H) of the steps that led here, which each column sees in its own column. Its own are appended.
        """
        attention, length = self.block.attention, x.shape[1]
        query, *own = self._project(x, start)
        steps.append(tuple(own))
        keys, values = text
        scale = query.shape[-1] ** -0.5
        scores = [(query @ keys.transpose(-1, -2)).masked_fill(~allowed, -torch.inf)]
        scores += [(query * key[:, :, :length]).sum(-1, keepdim=True) for key, _ in steps]
        weights = (torch.cat(scores, -1).float() * scale).softmax(dim=-1).to(values.dtype)
        mixed = weights[..., : -len(steps)] @ values
        for weight, (_, value) in zip(weights[..., -len(steps) :].unbind(-1), steps, strict=True):
            mixed = mixed + weight[..., None] * value[:, :, :length]
        x = x + _linear(attention.out_proj, mixed.transpose(1, 2).flatten(2))
        mlp = self.block.mlp
        x = x + _linear(mlp.down, mlp.activate(_linear(mlp.up, _norm(self.block.mlp_norm, x))))
        return _norm(self.final_norm, x)

    def _project(self, x: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, H, N, D/H) of what reaches the block (B, N, D)."""
        attention = self.block.attention
        x = _norm(self.block.attention_norm, x)
        qkv = F.linear(x, attention.in_proj_weight.detach(), _detached(attention.in_proj_bias))
        query, key, value = qkv.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        if attention.query_norm is not None:
            query, key = _norm(attention.query_norm, query), _norm(attention.key_norm, key)
        if self.rotary is not None:
            rotations = self.rotary(x.shape[1], start)
            query, key = rotate(query, rotations), rotate(key, rotations)
        return query, key, value


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight.detach(), _detached(layer.bias))


def _detached(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.detach()


def _norm(layer: nn.RMSNorm | nn.LayerNorm, x: Tensor) -> Tensor:
    """In the dtype of x."""
    weight = layer.weight.detach().to(x.dtype)
    if isinstance(layer, nn.RMSNorm):
        return F.rms_norm(x, layer.normalized_shape, weight, layer.eps)
    bias = None if layer.bias is None else layer.bias.detach().to(x.dtype)
    return F.layer_norm(x, layer.normalized_shape, weight, bias, layer.eps)
