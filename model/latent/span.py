"""Contrastive prediction of the next span from the state before it (InfoNCE, arXiv 1807.03748).

A span is the tokens at columns s + 1 ... s + L. Its key is the mean over them of the states after the trunk's second
layer, without gradient; its query is g(h_s). Every other span of the micro-batch is a negative, also those of the same
document.

Keys are centred over the rows, column by column. Learned positions are still strong in the second layer, so without
centring the position alone would tell negatives of the same document apart; all rows have their spans at the same
columns, so centred keys no longer hold the position. Where only one row has a valid span at a column, centring over the
rows would leave nothing of its key: it is centred over all spans of the micro-batch.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SpanProjector(nn.Module):
    """g: a 2-layer MLP from the state before a span to the span's key."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.up = nn.Linear(hidden_size, hidden_size)
        self.down = nn.Linear(hidden_size, hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return self.down(F.gelu(self.up(hidden)))


def span_keys(states: Tensor, starts: Tensor, span_length: int, valid: Tensor) -> Tensor:
    """Means of states (B, T, D) over the columns s + 1 ... s + span_length for each start s in starts (S,), centred
    over the rows that are valid (B, S) or, where that is one row, over all valid spans. Returns (B, S, D) in fp32,
    without gradient."""
    columns = starts[:, None] + 1 + torch.arange(span_length, device=starts.device)
    keys = states.detach().float()[:, columns].mean(dim=2)
    counted = valid[..., None].float()
    sums, rows = (keys * counted).sum(dim=0), counted.sum(dim=0)
    centre = sums / rows.clamp_min(1.0)
    centre_of_all = sums.sum(dim=0) / rows.sum().clamp_min(1.0)
    return keys - torch.where(rows > 1, centre, centre_of_all)


def info_nce(queries: Tensor, keys: Tensor, valid: Tensor, temperature: float, l2_normalize: bool) -> Tensor:
    """(N,): for each query of queries (N, D) the NLL, in nats, of its own key among the valid ones of keys (N, D).

    Always in fp32, also under autocast. Similarity is the cosine or, unless l2_normalize, the dot product over sqrt(D).
    0 where valid (N,) is false.
    """
    with torch.autocast(queries.device.type, enabled=False):
        queries, keys = queries.float(), keys.float()
        if l2_normalize:
            queries, keys = F.normalize(queries, dim=-1), F.normalize(keys, dim=-1)
        else:
            queries = queries / math.sqrt(queries.shape[-1])
        similarity = queries @ keys.T / temperature
        own = similarity.diagonal()
        # finite, because a log-sum-exp over -inf alone has a gradient of NaN
        among_valid = similarity.masked_fill(~valid, torch.finfo(similarity.dtype).min).logsumexp(dim=1)
    return torch.where(valid, among_valid - own, 0.0)
