"""What reading a token tells about the one after it: the information gain, a further target of the value head.

    IG_t = log p(x_{t+2} | h_{t+1}) - log p^(x_{t+2} | h_t),    p^(y | h_t) = sum over a of p(a | h_t) q(y | h_t, a)

q is what the drafter says about the place after a. The sum takes the LIKELIEST tokens a alone, whose probabilities are
made to add up to 1. The gain itself is detached: the value head learns to expect it at h_t, and without
value_detach_trunk the trunk learns to make it foreseeable, but nothing is trained to raise it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ...config.size import GAIN_BINS as NUM_BINS
from ...config.size import GAIN_TOKENS as LIKELIEST
from ...loss import even_chunk
from ..distillation import DraftedText
from ..draft import Drafter
from ..rollout import RolloutContext
from ..trunk import LastBlock, Trunk
from ..value import ValueHead

LEAST_GAIN, MOST_GAIN = -4.0, 12.0  # nats
POSITIONS_AT_A_TIME = 128


def gain_figure(
    value_head: ValueHead, drafter: Drafter, trunk: Trunk, text: DraftedText, token_nll: Tensor, hidden: Tensor
) -> Tensor:
    """(2,) fp32: the sum of the losses, differentiable with respect to the value head and to hidden (R, T, D), which it
    reads, and how many there are, at the places that teach the drafter; token_nll (B, T) by the trunk."""
    (context, look_ahead, labels, remaining), columns = text, text.look_ahead.draft_columns
    rows = look_ahead.rows
    after, known = (part[rows][:, columns + 1] for part in (labels.clamp_min(0), token_nll.detach()))
    gain = information_gains(drafter, trunk, context, columns, after, known)
    losses = gain_losses(value_head.gain(hidden[:, columns]), gain)
    counted = remaining[rows][:, columns] > 1
    return torch.stack([losses.masked_fill(~counted, 0.0).sum(), counted.sum().float()])


@torch.no_grad()
def information_gains(
    drafter: Drafter, trunk: Trunk, context: RolloutContext, columns: Tensor, labels: Tensor, known: Tensor
) -> Tensor:
    """(R, C), fp32, in nats, of R rows at columns (C,); labels (R, C): x_{t+2}, known (R, C): their NLLs by the trunk,
    read from h_{t+1}."""
    gains = []
    text = LastBlock(trunk).keys_and_values(context.before_last)
    chunk = even_chunk(len(columns), max(1, POSITIONS_AT_A_TIME // len(labels)))
    for start in range(0, len(columns), chunk):
        some = slice(start, start + chunk)
        unknown = _marginal(drafter, trunk, context, text, columns[some], labels[:, some])
        gains.append(-known[:, some].float() - unknown)
    return torch.cat(gains, dim=1)


def _marginal(
    drafter: Drafter,
    trunk: Trunk,
    context: RolloutContext,
    text: tuple[Tensor, Tensor],
    columns: Tensor,
    labels: Tensor,
) -> Tensor:
    """(R, C): log p^ of labels (R, C)."""
    hidden, (rows, count) = context.hidden[:, columns], labels.shape
    weight = trunk.head_weight.detach()[: trunk.vocab_size]
    likeliest = F.linear(hidden, weight.to(hidden.dtype)).float().log_softmax(-1).topk(LIKELIEST, dim=-1)
    # each column once for each token a, tokens of one column side by side
    repeated, tokens = columns.repeat_interleave(LIKELIEST), likeliest.indices.flatten(1)
    rotations = None if trunk.rotary is None else trunk.rotary.at(repeated + 1, context.hidden.shape[1] + 1)
    drafted = drafter(
        hidden.repeat_interleave(LIKELIEST, dim=1),
        F.embedding(tokens, trunk.tokens.weight),
        text,
        context.allowed[..., repeated, :],
        rotations,
    )[0]
    after = drafter.after(torch.arange(trunk.vocab_size, device=labels.device))
    logits = F.linear(drafted, weight.to(drafted.dtype)) + F.linear(drafter.before(tokens), after).to(drafted.dtype)
    chosen = labels.repeat_interleave(LIKELIEST, dim=1)[..., None]
    log_q = logits.float().log_softmax(-1).gather(-1, chosen).view(rows, count, LIKELIEST)
    return torch.logsumexp(log_q + likeliest.values.log_softmax(-1), dim=-1)


def two_hot_gain(gain: Tensor) -> Tensor:
    """(...,) nats -> (..., NUM_BINS): probabilities of at most two neighbouring bins, whose mean is the gain, clamped
    to [LEAST_GAIN, MOST_GAIN]."""
    place = (gain.clamp(LEAST_GAIN, MOST_GAIN) - LEAST_GAIN) * ((NUM_BINS - 1) / (MOST_GAIN - LEAST_GAIN))
    bins = torch.arange(NUM_BINS, dtype=gain.dtype, device=gain.device)
    return (1.0 - (place[..., None] - bins).abs()).clamp_min(0.0)


def gain_losses(logits: Tensor, gain: Tensor) -> Tensor:
    """(...,): cross-entropy in fp32 of logits (..., NUM_BINS) against the two-hot gains (...,)."""
    return -(two_hot_gain(gain) * logits.float().log_softmax(dim=-1)).sum(dim=-1)


def expected_gain(logits: Tensor) -> Tensor:
    """(..., NUM_BINS) logits -> (...,) nats: the mean of the distribution."""
    centres = torch.linspace(LEAST_GAIN, MOST_GAIN, NUM_BINS, dtype=logits.dtype, device=logits.device)
    return logits.softmax(dim=-1) @ centres
