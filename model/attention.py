"""Causal self-attention: nn.MultiheadAttention's parameters, the speed of SDPA, a key-value cache for decoding.

Notable here
- CausalSelfAttention is an nn.MultiheadAttention, so its parameters have the well-known names (in_proj_weight (3D, D),
  in_proj_bias, out_proj) and checkpoints of either load into the other; only forward differs. One fused projection is
  also one large parameter, which suits ZeRO's per-parameter hooks.
- Options of the `model` section: rotary positions (positions.py), and queries and keys normalised head by head, before
  they are rotated (QK-norm, arXiv 2010.04245), which keeps the scores from growing.
- Training builds no mask unless documents are kept apart: is_causal lets scaled_dot_product_attention (SDPA) skip the
  upper triangle.
- In training on a CPU, short rows in bf16 have attention written out as two batched products, some queries at a time:
  SDPA's kernel runs at a quarter of their speed (benchmarks/LOG.md). That keeps every weight for the backward pass, so
  long rows have SDPA.
- KeyValueCache is allocated once for a whole window; setting its `length` back forgets the tokens after it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .positions import rotate

NORM_EPS = 1e-6
SHORT, QUERIES = 512, 128  # tokens of a row that counts as short; those whose attention is written out at a time


class KeyValueCache:
    """Keys and values (L, B, H, seq_length, D/H) of the tokens seen so far; `length` says how many are valid."""

    def __init__(self, num_layers: int, batch_size: int, num_heads: int, seq_length: int, head_size: int, like: Tensor):
        shape = (num_layers, batch_size, num_heads, seq_length, head_size)
        self.keys = like.new_zeros(shape)
        self.values = like.new_zeros(shape)
        self.length = 0

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values (B, H, T, D/H) of new tokens behind `length`; return those of all tokens.

        `length` itself moves once per forward pass, after the last layer: see TransformerLM.hidden_states.
        """
        end = self.length + keys.shape[2]
        self.keys[layer, :, :, self.length : end] = keys
        self.values[layer, :, :, self.length : end] = values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]


class HeadNorm(nn.RMSNorm):
    """RMSNorm in the dtype of what it is given: weights of another one keep torch from its fused kernel."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class CausalSelfAttention(nn.MultiheadAttention):
    def __init__(
        self, hidden_size: int, num_heads: int, dropout: float, layer: int, qk_norm: bool = False, bias: bool = True
    ):
        super().__init__(hidden_size, num_heads, dropout=dropout, bias=bias, batch_first=True)
        self.layer = layer
        self.query_norm = HeadNorm(self.head_dim, eps=NORM_EPS) if qk_norm else None
        self.key_norm = HeadNorm(self.head_dim, eps=NORM_EPS) if qk_norm else None

    def forward(
        self,
        x: Tensor,
        cache: KeyValueCache | None = None,
        causal_mask: Tensor | None = None,
        segment_mask: Tensor | None = None,
        rotations: Tensor | None = None,
    ) -> Tensor:
        """(B, T, D) -> (B, T, D); position t sees the positions up to t and whatever the cache holds before them.

        causal_mask (seq_length, seq_length), True where attention is allowed, is read when several tokens follow a
        cache that is not empty, and where attention is written out; else all is plainly causal or sees all keys.
        segment_mask (B, 1, T, T), the same inside segments, replaces it where there is no cache. rotations
        (2, T, D/H/2): those of the T positions.
        """
        batch_size, length, hidden_size = x.shape
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        qkv = qkv.view(batch_size, length, 3, self.num_heads, self.head_dim)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, H, T, D/H)
        if self.query_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        if rotations is not None:
            query, key = rotate(query, rotations), rotate(key, rotations)

        mask, is_causal = segment_mask, segment_mask is None
        if cache is not None:
            start = cache.length
            key, value = cache.append(self.layer, key, value)
            if start > 0:
                is_causal = False  # is_causal would align the triangle with the first key, not with the last
                if length > 1:
                    mask = causal_mask[start : start + length, : start + length]

        dropout = self.dropout if self.training else 0.0
        training = torch.is_grad_enabled() and cache is None and causal_mask is not None and dropout == 0
        if training and pays_written_out(value):
            mixed = attend(query, key, value, causal_mask[:length, :length] if mask is None else mask)
        else:
            mixed = F.scaled_dot_product_attention(query, key, value, mask, dropout, is_causal)
        return self.out_proj(mixed.transpose(1, 2).reshape(batch_size, length, hidden_size))


def pays_written_out(value: Tensor) -> bool:
    """Whether training on values (B, H, T, d) is faster by `attend` than by SDPA."""
    return value.shape[2] <= SHORT and value.dtype == torch.bfloat16 and value.device.type == "cpu"


def attend(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor) -> Tensor:
    """Softmax attention of (B, H, T, d) where `allowed` (broadcast to (B, H, T, T)) is true, the softmax in fp32, of
    scores in the dtype of the queries. What comes after a query is never allowed: most of it is left out."""
    scale, mixed = query.shape[-1] ** -0.5, []
    for start in range(0, query.shape[2], QUERIES):
        end = start + QUERIES
        seen = allowed[..., start:end, :end]
        hidden = torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, -torch.inf)
        scores = torch.add(hidden, query[:, :, start:end] @ key[:, :, :end].transpose(-1, -2), alpha=scale)
        mixed.append(scores.softmax(dim=-1).to(value.dtype) @ value[:, :, :end])
    return torch.cat(mixed, dim=2)


def causal_mask(seq_length: int, device: torch.device | None = None) -> Tensor:
    """(seq_length, seq_length) booleans, True on and below the diagonal."""
    return torch.ones(seq_length, seq_length, dtype=torch.bool, device=device).tril()


def segment_mask(segment_ids: Tensor, causal_mask: Tensor) -> Tensor:
    """segment_ids (B, T), causal_mask (T, T) -> (B, 1, T, T), True at earlier or equal positions of one segment.

    Every position sees at least itself, padding too, so that no softmax is over nothing.
    """
    return (segment_ids[:, None, :, None] == segment_ids[:, None, None, :]) & causal_mask
