"""Causal self-attention: the parameters of nn.MultiheadAttention, the speed of SDPA, a key-value cache for decoding.

Notable here
- Parameters have the names and shapes of nn.MultiheadAttention (in_proj_weight (3D, D), in_proj_bias, out_proj), so
  state dicts of either load into the other. One fused projection is also one large parameter, which suits ZeRO's
  per-parameter hooks.
- Options of the `model` section: rotary positions (positions.py), and queries and keys normalised head by head, before
  they are rotated (QK-norm, arXiv 2010.04245), which keeps the scores from growing.
- Training builds no mask unless documents are kept apart: is_causal lets scaled_dot_product_attention (SDPA) skip the
  upper triangle.
- Training on a CPU computes attention of short rows in bf16 by two batched products (`attend`): SDPA's kernel runs at a
  quarter to two thirds of their speed (benchmarks/LOG.md). That keeps every attention weight for the backward pass, so
  long rows use SDPA.
- A KeyValueCache is allocated once for a whole window; setting its `length` back forgets the tokens after it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .positions import rotate
from .products.linear import Linear, linear
from .streams.context import tokens_before
from .streams.gates import HeadGate

NORM_EPS = 1e-6
SMALLEST_SQUARE = 1e-12  # of a value, so that one of zeros has no direction
Attended = tuple[Tensor, Tensor, Tensor | None]  # keys, values, mask
SHORT_ROW, QUERIES_AT_A_TIME = 1024, 128  # tokens: see `attend`


class KeyValueCache:
    """Keys and values (L, B, H, seq_length, D/H) of the tokens read so far; `length` says how many are valid.

    tokens (B, seq_length) int64: their ids, for a trunk that reads those before a token; else None. For a trunk with
    memory tokens there are more columns, before those of the tokens: see memory.MemoryCache.
    """

    def __init__(self, keys: Tensor, values: Tensor, length: int = 0, tokens: Tensor | None = None):
        self.keys, self.values, self.length, self.tokens = keys, values, length, tokens

    @property
    def positions(self) -> Tensor | None:
        """Of the next token, (B,); None where it is `length` for all rows."""
        return None

    def previous(self, input_ids: Tensor, count: int) -> Tensor:
        """Store the ids (B, T) of new tokens; return those of the `count` tokens before each (B, T, count), the nearest
        first, NO_TOKEN where there is none."""
        assert self.tokens is not None, "only a trunk that reads the tokens before one asks for it"
        end = self.length + input_ids.shape[1]
        self.tokens[:, self.length : end] = input_ids
        return tokens_before(self.tokens, torch.arange(self.length, end, device=input_ids.device)[None], count)

    def append(self, layer: int, keys: Tensor, values: Tensor, causal_mask: Tensor | None) -> Attended:
        """Store keys and values (B, H, T, D/H) of new tokens behind `length`.

        Returns those of all tokens, and the mask of attention: None where the new tokens see all, or are the first.
        `length` itself moves once per forward pass, after the last layer: see TransformerLM.states.
        """
        start, end = self.length, self.length + keys.shape[2]
        self.keys[layer, :, :, start:end] = keys
        self.values[layer, :, :, start:end] = values
        mask = None
        if start > 0 and end > start + 1:
            assert causal_mask is not None, "several tokens that continue a cache need the causal mask"
            mask = causal_mask[start:end, :end]
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end], mask


class RowCache(KeyValueCache):
    """A cache of rows of different lengths, to which as many tokens of each row are appended at a time."""

    def __init__(self, cache: KeyValueCache):
        super().__init__(cache.keys, cache.values, tokens=cache.tokens)
        self.window = cache.keys.shape[3]  # columns that are attended to; may be set to fewer
        self._columns = torch.arange(self.window, device=cache.keys.device)
        self._rows = torch.arange(cache.keys.shape[1], device=cache.keys.device)
        self._positions = torch.zeros_like(self._rows)

    @property
    def positions(self) -> Tensor:
        """Of the first new token of each row, (B,): fill it before each forward pass."""
        return self._positions

    def row(self, number: int, length: int) -> KeyValueCache:
        """One row by itself, of which `length` tokens are valid."""
        rows = slice(number, number + 1)
        tokens = None if self.tokens is None else self.tokens[rows]
        return KeyValueCache(self.keys[:, rows], self.values[:, rows], length, tokens)

    def reorder(self, rows: list[int], start: int = 0) -> None:
        """Let row i hold what rows[i] holds; up to `start` it does already."""
        for part in (self.keys, self.values):
            changed = part[..., start:, :]
            changed.copy_(changed[:, rows])
        if self.tokens is not None:
            self.tokens.copy_(self.tokens[rows])

    def previous(self, input_ids: Tensor, count: int) -> Tensor:
        assert self.tokens is not None, "only a trunk that reads the tokens before one asks for it"
        positions = self._positions[:, None] + self._columns[: input_ids.shape[1]]
        self.tokens[self._rows[:, None], positions] = input_ids
        return tokens_before(self.tokens, positions, count)

    def append(self, layer: int, keys: Tensor, values: Tensor, causal_mask: Tensor | None) -> Attended:
        positions = self._positions[:, None] + self._columns[: keys.shape[2]]
        self.keys[layer, self._rows[:, None], :, positions] = keys.transpose(1, 2)
        self.values[layer, self._rows[:, None], :, positions] = values.transpose(1, 2)
        mask = (self._columns[: self.window] <= positions[..., None])[:, None]
        return self.keys[layer, :, :, : self.window], self.values[layer, :, :, : self.window], mask


class HeadNorm(nn.RMSNorm):
    """RMSNorm in the dtype of its input: weights of another dtype would keep torch from its fused kernel."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class CausalSelfAttention(nn.Module):
    """Multi-head self-attention in which no position sees a later one; parameters as in nn.MultiheadAttention."""

    in_proj_bias: nn.Parameter | None
    layer_factor: nn.Parameter | None

    def __init__(
        self, hidden_size: int, num_heads: int, dropout: float, layer: int, qk_norm: bool = False, bias: bool = True
    ):
        super().__init__()
        self.num_heads, self.head_dim = num_heads, hidden_size // num_heads
        self.dropout, self.layer = dropout, layer
        self.in_proj_weight = nn.Parameter(torch.empty(3 * hidden_size, hidden_size))
        self.register_parameter("in_proj_bias", nn.Parameter(torch.zeros(3 * hidden_size)) if bias else None)
        self.out_proj = Linear(hidden_size, hidden_size, bias)
        # Initialised, and drawn in the order, of nn.MultiheadAttention: a seed keeps the weights that it has had.
        nn.init.xavier_uniform_(self.in_proj_weight)
        if self.out_proj.bias is not None:
            nn.init.zeros_(self.out_proj.bias)
        self.query_norm = HeadNorm(self.head_dim, eps=NORM_EPS) if qk_norm else None
        self.key_norm = HeadNorm(self.head_dim, eps=NORM_EPS) if qk_norm else None
        self.output_gate: HeadGate | None = None  # all three are set by the block that has them
        self.value_gate: HeadGate | None = None
        self.exclusive = False
        self.register_parameter("layer_factor", None)  # streams/rescaling.py

    def forward(
        self,
        x: Tensor,
        cache: KeyValueCache | None = None,
        causal_mask: Tensor | None = None,
        segment_mask: Tensor | None = None,
        rotations: Tensor | None = None,
        values: Tensor | None = None,
    ) -> Tensor:
        """(B, T, D) -> (B, T, D); position t sees the positions up to t and whatever the cache holds before them.

        causal_mask (seq_length, seq_length), True where attention is allowed, is needed when several tokens follow a
        cache that is not empty, and lets training on a CPU use `attend`. segment_mask (B, 1, T, T), the same inside
        segments, takes its place where there is no cache. rotations (2, T, D/H/2): those of the T positions. values
        (B, T, D) are added to the attention's own, with the value gate's factors.
        """
        batch_size, length, hidden_size = x.shape
        query, key, value = split_heads(linear(x, self.in_proj_weight, self.in_proj_bias), self.num_heads)
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        if self.layer_factor is not None:
            query = query * self.layer_factor.to(query.dtype)
        if rotations is not None:
            query, key = rotate(query, rotations), rotate(key, rotations)

        if values is not None and self.value_gate is not None:
            added = values.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            value = value + (self.value_gate(x) * added).to(value.dtype)

        own, mask, is_causal = value, segment_mask, segment_mask is None
        if cache is not None:
            # is_causal would align the triangle with the first key, not with the last
            is_causal = cache.length == 0 and cache.positions is None
            key, value, mask = cache.append(self.layer, key, value, causal_mask)

        dropout = self.dropout if self.training else 0.0
        if causal_mask is not None and cache is None and dropout == 0 and attend_is_faster(value):
            mixed = attend(query, key, value, causal_mask[:length, :length] if mask is None else mask)
        else:
            mixed = F.scaled_dot_product_attention(query, key, value, mask, dropout, is_causal)
        if self.exclusive:
            mixed = without_own(mixed, own)
        if self.output_gate is not None:
            mixed = mixed * self.output_gate(x).to(mixed.dtype)
        return self.out_proj(mixed.transpose(1, 2).reshape(batch_size, length, hidden_size))


def split_heads(qkv: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """(B, T, 3D), queries, keys and values side by side -> the three, each (B, H, T, D/H)."""
    query, key, value = qkv.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    return query, key, value


def without_own(mixed: Tensor, own: Tensor) -> Tensor:
    """What attention returned and the value of each position itself, both (B, H, T, d) -> what is returned less its
    part along that value: exclusive self-attention (arXiv 2603.09078). The residual stream has that part already."""
    along = (mixed * own).sum(-1, keepdim=True) / own.square().sum(-1, keepdim=True).clamp_min(SMALLEST_SQUARE)
    return mixed - along * own


def attend_is_faster(value: Tensor) -> bool:
    """Whether `attend` is faster than SDPA for values (B, H, T, d): in training on short rows in bf16 on a CPU."""
    short = value.shape[2] <= SHORT_ROW and value.dtype == torch.bfloat16 and value.device.type == "cpu"
    return short and torch.is_grad_enabled()


def attend(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor) -> Tensor:
    """Softmax attention of (B, H, T, d) where `allowed` (broadcast to (B, H, T, T)) is true, as two batched products
    for some queries at a time. The softmax is in fp32, of scores in the dtype of the queries. No key after its query
    may be allowed: most of these are not even multiplied."""
    scale, mixed = query.shape[-1] ** -0.5, []
    for start in range(0, query.shape[2], QUERIES_AT_A_TIME):
        end = start + QUERIES_AT_A_TIME
        visible = allowed[..., start:end, :end]
        bias = torch.zeros(visible.shape, device=visible.device).masked_fill(~visible, -torch.inf)
        scores = torch.add(bias, query[:, :, start:end] @ key[:, :, :end].transpose(-1, -2), alpha=scale)
        mixed.append(scores.softmax(dim=-1).to(value.dtype) @ value[:, :, :end])
    return torch.cat(mixed, dim=2)


def causal_mask(seq_length: int, device: torch.device | None = None) -> Tensor:
    """(seq_length, seq_length) booleans, True on and below the diagonal."""
    return torch.ones(seq_length, seq_length, dtype=torch.bool, device=device).tril()


def attention_mask(causal_mask: Tensor, segment_ids: Tensor | None) -> Tensor:
    """causal_mask (T, T), segment_ids (B, T) or None -> (B or 1, 1, T, T), True where attention is allowed."""
    return causal_mask[None, None] if segment_ids is None else segment_mask(segment_ids, causal_mask)


def segment_mask(segment_ids: Tensor, causal_mask: Tensor) -> Tensor:
    """segment_ids (B, T), causal_mask (T, T) -> (B, 1, T, T), True at earlier or equal positions of the same segment.

    Every position sees at least itself, padding too, so that no softmax is empty.
    """
    return (segment_ids[:, None, :, None] == segment_ids[:, None, None, :]) & causal_mask
