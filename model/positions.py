"""Positions of tokens: learned absolute ones, or rotations of queries and keys; and how both are extended.

A learned table has nothing beyond its last row. Random new rows would be directions that no layer has seen, so new rows
are copied from the second half of the learned ones, in order and as often as needed (copying learned rows: Longformer,
arXiv 2004.05150). Neighbouring copies keep the offsets that attention has learned. The first half is not copied: its
rows also mark the beginning of a text, which no new position is.

Resampling interpolates the learned rows instead, so that the longest distance that was seen is the longest one again.

Rotations (RoPE, arXiv 2104.09864) encode nothing but the distance of two tokens: segments need no count of their own,
nothing is learned, and extending only computes a longer table. Rows that are s times longer than those before can be
brought into the range of angles that the layers have seen (`frequencies`): by dividing positions by s (linear, arXiv
2306.15595), by a larger base, which slows fast pairs less (ntk), or pair by pair (yarn, arXiv 2309.00071).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import ModelConfig

BASE = 10_000.0
YARN_FAST, YARN_SLOW = 32, 1  # turns within a row of the original length: faster pairs stay, slower ones are divided


class LearnedPositions(nn.Embedding):
    """A table (seq_length, D) of learned positions, looked up by the ids of `ids_at`."""

    ids: Tensor

    def __init__(self, seq_length: int, hidden_size: int, extension: str = "copy"):
        super().__init__(seq_length, hidden_size)
        self.extension = extension
        self.register_buffer("ids", torch.arange(seq_length), persistent=False)

    def ids_at(self, length: int, start: int = 0, segment_ids: Tensor | None = None) -> Tensor:
        """The ids (length,) of positions start, start + 1, ...

        With segment_ids (B, length) and start 0: (B, length), counted from the first position of each segment.
        """
        ids = self.ids[start : start + length]
        return ids if segment_ids is None else ids - segment_starts(segment_ids, ids)

    @torch.no_grad()
    def extend(self, new_length: int) -> None:
        """Grow the table to `new_length` rows."""
        rows = extended_rows(self.weight, new_length, self.extension)
        self.weight = nn.Parameter(rows, requires_grad=self.weight.requires_grad)
        self.ids = torch.arange(new_length, device=rows.device)
        self.num_embeddings = new_length


class RotaryPositions(nn.Module):
    """A table (2, seq_length, head_size / 2) of cosines and sines, in fp32."""

    table: Tensor

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config  # as of the last extension
        self.head_size = config.hidden_size // config.num_heads
        self.register_buffer("table", self._make(config.seq_length), persistent=False)

    def forward(self, length: int, start: int = 0) -> Tensor:
        """The rotations (2, length, head_size / 2) of positions start, start + 1, ..., which may lie beyond seq_length:
        a rollout from the last tokens of a full row goes there."""
        end = start + length
        table = self.table if end <= self.table.shape[1] else self._make(end).to(self.table.device)
        return table[:, start:end]

    def at(self, positions: Tensor, most: int) -> Tensor:
        """The rotations (2, N, head_size / 2) of positions (N,), each below `most`, which may exceed seq_length."""
        table = self.table if most <= self.table.shape[1] else self._make(most).to(self.table.device)
        return table[:, positions]

    def of_rows(self, positions: Tensor) -> Tensor:
        """The rotations (2, B, 1, T, head_size / 2) of positions (B, T)."""
        return self.table[:, positions, :].unsqueeze(2)

    def _apply(self, fn, recurse=True):
        """Move with the model, and stay in fp32 where the model goes to another dtype."""
        super()._apply(fn, recurse)
        if self.table.dtype != torch.float32:
            self.extend(self.config)
        return self

    def extend(self, config: ModelConfig) -> None:
        """Make the table of a configuration with longer rows."""
        self.config = config
        self.table = self._make(config.seq_length).to(self.table.device)

    def _make(self, length: int) -> Tensor:
        if torch.get_default_device().type == "meta":  # for which torch would import its compiler
            return torch.empty(2, length, self.head_size // 2)
        return self.at_places(torch.arange(length, dtype=torch.float64))

    def at_places(self, places: Tensor) -> Tensor:
        """The rotations (2, N, head_size / 2) of places (N,) fp64, which may lie before position 0 or between two."""
        angles = places[:, None] * frequencies(self.config, places.device)
        table = torch.stack([angles.cos(), angles.sin()])
        factor = attention_factor(self.config)
        return (table if factor == 1 else table * factor).float()


def rope_base(config: ModelConfig) -> float:
    """The slowest pair turns once in about 2 pi times so many tokens."""
    size, factor = config.hidden_size // config.num_heads, config.rope_factor
    if config.rope_scaling != "ntk" or size <= 2 or factor == 1:
        return BASE
    return BASE * factor ** (size / (size - 2))


def frequencies(config: ModelConfig, device: torch.device | None = None) -> Tensor:
    """(head_size / 2,) fp64: by how much each pair turns from one token to the next."""
    size = config.hidden_size // config.num_heads
    pairs = torch.arange(0, size, 2, dtype=torch.float64, device=device) / size
    turning = rope_base(config) ** -pairs
    if config.rope_factor == 1 or config.rope_scaling == "ntk":
        return turning
    slowed = turning / config.rope_factor
    if config.rope_scaling == "linear":
        return slowed
    original = config.rope_original_length
    assert original is not None, "or nothing is scaled"

    def pair_that_turns(times: float) -> float:
        """The number of the pair that turns so often within a row of the original length."""
        return size * math.log(original / (times * 2 * math.pi)) / (2 * math.log(BASE))

    first, last = math.floor(pair_that_turns(YARN_FAST)), math.ceil(pair_that_turns(YARN_SLOW))
    first, last = max(first, 0), min(last, size - 1)
    share = (torch.arange(size // 2, dtype=torch.float64, device=device) - first) / max(0.001, last - first)
    share = share.clamp(0, 1)
    return turning * (1 - share) + slowed * share


def attention_factor(config: ModelConfig) -> float:
    """By what yarn multiplies queries and keys: attention over longer rows must be as sharp."""
    return 0.1 * math.log(config.rope_factor) + 1 if config.rope_scaling == "yarn" else 1.0


def rotate(x: Tensor, rotations: Tensor) -> Tensor:
    """Rotate the pairs (i, i + d / 2) of queries or keys x (B, H, T, d) by rotations (2, T, d / 2), or those
    of each row (2, B, 1, T, d / 2), in fp32; the result has the dtype of x."""
    cosine, sine = rotations
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1).to(x.dtype)


def segment_starts(segment_ids: Tensor, ids: Tensor) -> Tensor:
    """segment_ids (B, T), ids (T,) = 0, 1, ... -> (B, T): for each position the first one of its segment."""
    begins = F.pad(segment_ids[:, 1:] != segment_ids[:, :-1], (1, 0))
    return torch.where(begins, ids, 0).cummax(dim=1).values


def extended_rows(rows: Tensor, new_length: int, how: str = "copy") -> Tensor:
    """`rows` (T, D) as (new_length, D): followed by copies of their second half, in order, which keeps every bit of
    them; or, with "resample", interpolated at the positions t * T / new_length."""
    length, rows = len(rows), rows.detach()
    assert new_length >= length
    if how == "resample" and new_length > length:
        places = torch.arange(new_length, device=rows.device) * (length / new_length)
        before = places.long()
        share = (places - before)[:, None].to(rows.dtype)
        return rows[before].lerp(rows[(before + 1).clamp_max(length - 1)], share)
    half = length // 2
    source = half + torch.arange(new_length - length, device=rows.device) % (length - half)
    return torch.cat([rows, rows[source]])
