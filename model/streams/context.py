"""The tokens just before, in a token's embedding: e_t + sum_k C_k e_{t-k}, with a learned matrix C_k for each distance.

With a tied head this is the log-bilinear language model (Mnih and Hinton, "Three new graphical models for statistical
language modelling", ICML 2007), to which the blocks add what it does not know.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .bigrams import NO_TOKEN


class EmbeddingContext(nn.Module):
    """A matrix (D, D) for each of `count` tokens before, the nearest first; zero at first."""

    def __init__(self, count: int, hidden_size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(count, hidden_size, hidden_size))

    def forward(self, earlier: list[Tensor]) -> Tensor:
        """The embeddings of the `count` tokens before each token, each (B, T, D), zeros where there is none -> their
        sum through the matrices (B, T, D)."""
        total, *others = (F.linear(*pair) for pair in zip(earlier, self.weight, strict=True))
        for other in others:
            total = total + other
        return total


def earlier_embeddings(embedding: Tensor, segment_ids: Tensor | None, count: int) -> list[Tensor]:
    """Embeddings (B, T, D) of rows -> those of the tokens 1 ... count before, zeros where the row or the segment has
    none."""
    earlier = []
    for distance in range(1, count + 1):
        shifted = F.pad(embedding, (0, 0, distance, 0))[:, : embedding.shape[1]]
        if segment_ids is not None:
            same = F.pad(segment_ids, (distance, 0), value=NO_TOKEN - 1)[:, : embedding.shape[1]] == segment_ids
            shifted = shifted * same[..., None]
        earlier.append(shifted)
    return earlier


def tokens_before(tokens: Tensor, positions: Tensor, count: int) -> Tensor:
    """tokens (B, L), positions (B or 1, T) -> the ids (B, T, count) at 1 ... count positions before, NO_TOKEN where
    there are none."""
    at = positions[..., None] - torch.arange(1, count + 1, device=positions.device)
    at = at.expand(len(tokens), -1, -1)
    return tokens.gather(1, at.clamp_min(0).flatten(1)).view(at.shape).masked_fill(at < 0, NO_TOKEN)
