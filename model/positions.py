"""Positions of tokens: learned absolute ones, or rotations of queries and keys; and how both are extended.

A learned table has nothing beyond its last row. Random new rows would be directions that no layer has seen, so new rows
are copied from the second half of the learned ones, in order and as often as needed (copying learned rows: Longformer,
arXiv 2004.05150). Neighbouring copies keep the offsets that attention has learned. The first half is not copied: its
rows also mark the beginning of a text, which no new position is.

Rotations (RoPE, arXiv 2104.09864) encode nothing but the distance of two tokens: segments need no count of their own,
nothing is learned, and extending only computes a longer table.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LearnedPositions(nn.Embedding):
    """A table (seq_length, D) of learned positions, looked up by the ids of `ids_at`."""

    ids: Tensor

    def __init__(self, seq_length: int, hidden_size: int):
        super().__init__(seq_length, hidden_size)
        self.register_buffer("ids", torch.arange(seq_length), persistent=False)

    def ids_at(self, length: int, start: int = 0, segment_ids: Tensor | None = None) -> Tensor:
        """The ids (length,) of positions start, start + 1, ...

        With segment_ids (B, length) and start 0: (B, length), counted from the first position of each segment.
        """
        ids = self.ids[start : start + length]
        return ids if segment_ids is None else ids - segment_starts(segment_ids, ids)

    @torch.no_grad()
    def extend(self, new_length: int) -> None:
        """Grow the table to `new_length` rows; the learned rows keep every bit."""
        rows = extended_rows(self.weight, new_length)
        self.weight = nn.Parameter(rows, requires_grad=self.weight.requires_grad)
        self.ids = torch.arange(new_length, device=rows.device)
        self.num_embeddings = new_length


class RotaryPositions(nn.Module):
    """A table (2, seq_length, head_size / 2) of cosines and sines, in fp32."""

    BASE = 10_000.0  # the slowest pair turns once in about 2 pi * BASE tokens
    table: Tensor

    def __init__(self, seq_length: int, head_size: int):
        super().__init__()
        self.head_size = head_size
        self.register_buffer("table", self._make(seq_length), persistent=False)

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
            self.extend(self.table.shape[1])
        return self

    def extend(self, new_length: int) -> None:
        """Grow the table to `new_length` positions."""
        self.table = self._make(new_length).to(self.table.device)

    def _make(self, length: int) -> Tensor:
        if torch.get_default_device().type == "meta":  # for which torch would import its compiler
            return torch.empty(2, length, self.head_size // 2)
        pairs = torch.arange(0, self.head_size, 2, dtype=torch.float64) / self.head_size
        angles = torch.arange(length, dtype=torch.float64)[:, None] * self.BASE**-pairs
        return torch.stack([angles.cos(), angles.sin()]).float()


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


def extended_rows(rows: Tensor, new_length: int) -> Tensor:
    """`rows` (T, D) followed by copies of their second half, in order, up to (new_length, D)."""
    length = len(rows)
    assert new_length >= length
    half = length // 2
    source = half + torch.arange(new_length - length, device=rows.device) % (length - half)
    return torch.cat([rows.detach(), rows.detach()[source]])
