"""psi: where the hidden state goes if a given token comes next (MuZero's dynamics; NextLat, arXiv 2511.05963).

h_t is the trunk's final normalised state after x_t, so that logits(h_t) predict x_{t+1}. Then
psi(h_t, e(x_{t+1})) = h^_{t+1}, and logits(h^_{t+1}) predict x_{t+2}, as logits(h_{t+1}) do.

The transition foretells what reaches the trunk's last block once x_{t+1} is read; that block, which looks back at the
text itself, and the final norm make the state of it (last_block.py). So what the last block knows is neither learned
again nor followed while it changes. What one state does not hold is recalled: for every token of the text a slot
remembers what state met it and what came of that.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import attend, pays_written_out
from .last_block import KeysAndValues, LastBlock

STATE_GRADIENT = 0.5  # of what each step passes back into the state it starts from (EfficientZero, arXiv 2111.00210)


class Transition(nn.Module):
    """Norms of the state and of the token, a 3-layer MLP on both and on what attention recalls, and the token's
    embedding beside it, as in the trunk.

    State and token have a norm each: an embedding is some fifty times smaller than a state, and one norm over both
    would leave it so. Keys and queries are one projection of a state and the token after it, so that like transitions
    find one another from the beginning.
    """

    def __init__(self, hidden_size: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.width = num_heads * max(1, hidden_size // num_heads // 2)  # half of the trunk's: it is there to be cheap
        self.state_norm = nn.LayerNorm(hidden_size)
        self.token_norm = nn.LayerNorm(hidden_size)
        self.query = nn.Linear(2 * hidden_size, self.width)
        self.outcome_norm = nn.LayerNorm(hidden_size)
        self.outcome = nn.Linear(hidden_size, self.width)
        self.nothing = nn.Parameter(torch.zeros(2 * self.width))
        self.recall_norm = nn.LayerNorm(self.width)
        self.recall = nn.Linear(self.width, 2 * hidden_size, bias=False)
        self.copy = nn.Linear(self.width, hidden_size, bias=False)
        self.up = nn.Linear(2 * hidden_size, 2 * hidden_size)
        self.middle = nn.Linear(2 * hidden_size, 2 * hidden_size)
        self.down = nn.Linear(2 * hidden_size, hidden_size)

    def remember(self, hidden: Tensor, embeddings: Tensor, continues: Tensor) -> Tensor:
        """Slots (B, T, 2 * width): at column t a key of h_{t-1} and x_t and a value of what came of them, h_t; where a
        text does not continue at t by `continues` (1 or B, T - 1), and at 0, what stands for nothing."""
        before = F.pad(self.state_norm(hidden[:, :-1]), (0, 0, 1, 0))
        key = self.query(torch.cat([before, self.token_norm(embeddings)], dim=-1))
        slots = torch.cat([key, self.outcome(self.outcome_norm(hidden))], dim=-1)
        return torch.where(F.pad(continues, (1, 0))[..., None], slots, self.nothing.to(slots.dtype))

    def forward(self, hidden: Tensor, embeddings: Tensor, slots: Tensor, allowed: Tensor) -> Tensor:
        """States and the embeddings of the tokens that follow them, both (B, N, D) -> what reaches the last block.

        slots (B, S, 2 * width): see `remember`; allowed, broadcast to (B, H, N, S): which of them a state may look at.
        """
        x = torch.cat([self.state_norm(hidden), self.token_norm(embeddings)], dim=-1)
        query, key, value = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in (self.query(x), *slots.chunk(2, -1))
        )
        if torch.is_grad_enabled() and query.shape == key.shape and pays_written_out(value):
            recalled = attend(query, key, value, allowed)
        else:
            recalled = F.scaled_dot_product_attention(query, key, value, allowed)
        recalled = self.recall_norm(recalled.transpose(1, 2).flatten(2))
        x = F.gelu(self.up(x) + self.recall(recalled))
        return embeddings + self.down(F.gelu(self.middle(x))) + self.copy(recalled)


class Text(NamedTuple):
    """What was read before a rollout. It is given detached: what is remembered sends the trunk no gradient."""

    hidden: Tensor  # (B, S, D): its final states
    before_last: Tensor  # (B, S, D): its states before the trunk's last block
    embeddings: Tensor  # (B, S, D)
    allowed: Tensor  # (1 or B, 1, S, S): what each token may look at, as in the trunk


class Rollout:
    """Steps from the states of a text, of one column or of many side by side; `start` is the first one's column."""

    def __init__(self, transition: Transition, last_block: LastBlock, text: Text, start: int = 0):
        self.transition, self.last_block, self.allowed, self.start = transition, last_block, text.allowed, start
        continues = text.allowed.diagonal(-1, dim1=-2, dim2=-1)[:, 0]
        self.slots = transition.remember(text.hidden, text.embeddings, continues)
        self.keys, self.values = last_block.remember(text.before_last)
        self.steps: list[KeysAndValues] = []

    def step(self, hidden: Tensor, embeddings: Tensor) -> Tensor:
        """States (B, N, D), one for each column from `start` on, as they are or as the last step left them, and the
        embeddings of the tokens that follow them -> the next states. N must not grow from step to step."""
        end = self.start + hidden.shape[1]
        allowed = self.allowed[..., self.start : end, :end]
        x = self.transition(hidden, embeddings, self.slots[:, :end], allowed)
        text = self.keys[:, :, :end], self.values[:, :, :end]
        return self.last_block(x, self.start + len(self.steps) + 1, text, allowed, self.steps)


def roll_out(rollout: Rollout, hidden: Tensor, embeddings: Tensor, depth: int) -> list[Tensor]:
    """Chain `depth` steps along the tokens that really come.

    hidden (B, T, D): h_0 ... h_{T-1}; embeddings (B, T, D): those of x_0 ... x_{T-1}. Item i - 1 of the result is
    (B, T - i, D): at column t what i steps make of h_t and x_{t+1} ... x_{t+i}, to be compared with h_{t+i}. A rollout
    does not know where its document ends: see `remaining` in look_ahead.py.
    """
    states = []
    for _ in range(depth):
        hidden, embeddings = hidden[:, :-1], embeddings[:, 1:]
        hidden = rollout.step(_scale_gradient(hidden, STATE_GRADIENT), embeddings)
        states.append(hidden)
    return states


def dynamics_losses(predicted: Tensor, hidden: Tensor) -> Tensor:
    """(...,): SmoothL1 in fp32 between predicted states (..., D) and true ones, which get no gradient; mean over D."""
    return F.smooth_l1_loss(predicted.float(), hidden.detach().float(), reduction="none").mean(dim=-1)


def variance_ratio(predicted: Tensor, hidden: Tensor, valid: Tensor) -> Tensor:
    """A scalar: the variance of predicted states (..., D) over the positions where `valid` (...,) is true, divided by
    that of the true states there. Near 0 the predictions have collapsed to one point; 0 where fewer than two positions
    are valid."""
    counted = valid.flatten()[:, None].float()
    count = counted.sum().clamp_min(1.0)

    def variance(states: Tensor) -> Tensor:
        states = states.detach().flatten(0, -2).float()
        mean = (states * counted).sum(dim=0) / count
        return ((states - mean).square() * counted).sum() / count

    return variance(predicted) / variance(hidden).clamp_min(torch.finfo(torch.float32).tiny)


def _scale_gradient(x: Tensor, factor: float) -> Tensor:
    """x itself, whose gradient is multiplied by `factor`."""
    return x * factor + x.detach() * (1.0 - factor)
