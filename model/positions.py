"""Learned absolute positions, and how they grow when the sequence is extended.

A learned table knows nothing beyond its last row, so new rows must come from somewhere. Drawn at random they would be
directions no layer has seen; they are copied from the second half of the learned rows instead, in order and as often as
needed. Next to each other the copies keep the offsets that attention has learned, and the first half is left out
because its rows also say "a text begins here", which is untrue at any new position.
(Copying learned rows to extend a model: Longformer, arXiv 2004.05150.)
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LearnedPositions(nn.Embedding):
    """A table (seq_length, D) of learned positions, read from `start` onwards."""

    def __init__(self, seq_length: int, hidden_size: int):
        super().__init__(seq_length, hidden_size)
        self.register_buffer("ids", torch.arange(seq_length), persistent=False)

    def forward(self, length: int, start: int = 0, segment_ids: Tensor | None = None) -> Tensor:
        """The rows (length, D) of positions start, start + 1, ...

        With segment_ids (B, length) and start 0: (B, length, D), counted from each segment's first position.
        """
        ids = self.ids[start : start + length]
        if segment_ids is not None:
            ids = ids - segment_starts(segment_ids, ids)
        return super().forward(ids)

    @torch.no_grad()
    def extend(self, new_length: int) -> None:
        """Grow the table to `new_length` rows; the learned rows keep every bit."""
        rows = extended_rows(self.weight, new_length)
        self.weight = nn.Parameter(rows, requires_grad=self.weight.requires_grad)
        self.ids = torch.arange(new_length, device=rows.device)
        self.num_embeddings = new_length


def segment_starts(segment_ids: Tensor, ids: Tensor) -> Tensor:
    """segment_ids (B, T), ids (T,) = 0, 1, ... -> (B, T): the first position of the segment that each one is in."""
    begins = F.pad(segment_ids[:, 1:] != segment_ids[:, :-1], (1, 0))
    return torch.where(begins, ids, 0).cummax(dim=1).values


def extended_rows(rows: Tensor, new_length: int) -> Tensor:
    """`rows` (T, D) followed by copies of their second half, in order, up to (new_length, D)."""
    length = len(rows)
    assert new_length >= length
    half = length // 2
    source = half + torch.arange(new_length - length, device=rows.device) % (length - half)
    return torch.cat([rows.detach(), rows.detach()[source]])
