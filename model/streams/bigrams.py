"""A hashed embedding of pairs of tokens, which is added to the embedding of the second one.

A table of all pairs would have V^2 rows. Pairs share the rows that a hash gives them; frequent pairs decide what a row
means.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NO_TOKEN = -1  # before the first token of a row or a segment
_PREVIOUS, _CURRENT, _SHIFT = 0x9E3779B1, 0x85EBCA6B, 15  # odd factors near 2^32, as of Knuth's multiplicative hash


class BigramEmbedding(nn.Module):
    """A table of `rows` vectors (D,), zero at first."""

    def __init__(self, rows: int, hidden_size: int):
        super().__init__()
        self.table = nn.Embedding(rows, hidden_size, _weight=torch.zeros(rows, hidden_size))

    def forward(self, previous: Tensor, input_ids: Tensor) -> Tensor:
        """Ids (B, T) and those before them, NO_TOKEN where there is none -> (B, T, D)."""
        return self.table(hashed(previous, input_ids, self.table.num_embeddings))


def hashed(previous: Tensor, current: Tensor, rows: int) -> Tensor:
    """Pairs of ids (...) int64 -> rows (...) int64."""
    mixed = ((previous + 1) * _PREVIOUS) ^ ((current + 1) * _CURRENT)
    return (mixed ^ (mixed >> _SHIFT)) % rows


def previous_tokens(input_ids: Tensor, segment_ids: Tensor | None) -> Tensor:
    """input_ids (B, T) -> the ids before them in the same row and segment, NO_TOKEN where there is none."""
    previous = F.pad(input_ids[:, :-1], (1, 0), value=NO_TOKEN)
    if segment_ids is None:
        return previous
    begins = F.pad(segment_ids[:, 1:] != segment_ids[:, :-1], (1, 0), value=True)
    return previous.masked_fill(begins, NO_TOKEN)
