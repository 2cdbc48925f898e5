"""The value: how hard the next K tokens will be, read from one state (MuZero's value, learned as a categorical
distribution).

The target at t is the mean of the NLLs of x_{t+1} ... x_{t+K}, in nats, for each horizon K. It is learned as a
distribution over NUM_BINS centres from 0 to MAX_NLL: a target between two centres is shared between them so that their
mean is the target ("two-hot"). That keeps the spread, which a regression would lose.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config.size import VALUE_BINS as NUM_BINS

MAX_NLL = 12.0  # nats
UNIT = 2.0**-40  # nats: the unit of running sums, which may reach 8 million nats


class ValueHead(nn.Module):
    """A 2-layer MLP from a state to NUM_BINS logits for each horizon."""

    def __init__(self, hidden_size: int, horizons: tuple[int, ...], gain_bins: int = 0):
        super().__init__()
        self.horizons = horizons
        self.up = nn.Linear(hidden_size, hidden_size)
        self.bins = nn.Linear(hidden_size, len(horizons) * NUM_BINS)
        self.gain_bins = nn.Linear(hidden_size, gain_bins) if gain_bins else None

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., H, NUM_BINS) logits in fp32."""
        return self.bins(F.gelu(self.up(hidden))).float().unflatten(-1, (len(self.horizons), NUM_BINS))

    def gain(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., gain_bins) logits in fp32, over what the next token will tell (information_gain.py)."""
        assert self.gain_bins is not None, "the value head was not made for it"
        return self.gain_bins(F.gelu(self.up(hidden))).float()


def bin_centres(like: Tensor) -> Tensor:
    """(NUM_BINS,): the NLLs at the centres of the bins, in nats; dtype and device as `like`."""
    return torch.linspace(0.0, MAX_NLL, NUM_BINS, dtype=like.dtype, device=like.device)


def expected_nll(logits: Tensor) -> Tensor:
    """(..., NUM_BINS) logits -> (...,): the mean of the distribution, in nats a token."""
    return logits.softmax(dim=-1) @ bin_centres(logits)


def two_hot(nll: Tensor) -> Tensor:
    """(...,) nats -> (..., NUM_BINS): probabilities of at most two neighbouring bins, whose mean is the NLL, clamped
    to [0, MAX_NLL]."""
    place = nll.clamp(0.0, MAX_NLL) * ((NUM_BINS - 1) / MAX_NLL)
    bins = torch.arange(NUM_BINS, dtype=nll.dtype, device=nll.device)
    return (1.0 - (place[..., None] - bins).abs()).clamp_min(0.0)


def value_targets(token_nll: Tensor, remaining: Tensor, horizons: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The targets of the value of h_t, and where they are known.

    token_nll (B, T): at column t the NLL of x_{t+1}; remaining (B, T): how many such tokens the segment still has from
    t on. Returns the mean NLL of the next min(K, remaining) tokens (B, T, H), fp32 without gradient, and
    whether those are at least half of K (B, T, H).
    """
    length = token_nll.shape[1]
    # Differences of running sums, in whole units: the sum of a row is far larger than a difference, and torch has no
    # deterministic floating-point cumsum on a GPU.
    units = (token_nll.detach().double() / UNIT).round().long()
    sums = F.pad(units.cumsum(dim=1), (1, 0))
    columns = torch.arange(length, device=token_nll.device)
    targets, known = [], []
    for horizon in horizons:
        count = remaining.clamp(max=horizon)
        total = sums.gather(1, columns + count) - sums[:, :-1]
        targets.append((total * UNIT / count.clamp_min(1)).float())
        known.append((count > 0) & (2 * count >= horizon))
    return torch.stack(targets, dim=-1), torch.stack(known, dim=-1)


def value_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """(...,): cross-entropy in fp32 of logits (..., NUM_BINS) against the two-hot targets (...,)."""
    return -(two_hot(targets) * logits.log_softmax(dim=-1)).sum(dim=-1)
