"""psi: where the hidden state goes if a given token comes next (MuZero's dynamics; NextLat, arXiv 2511.05963).

h_t is the trunk's final normalised state after x_t, so that logits(h_t) predict x_{t+1}. Then
psi(h_t, e(x_{t+1})) = h^_{t+1}, and logits(h^_{t+1}) predict x_{t+2}, as logits(h_{t+1}) do. Beside h_t it has what was
read up to x_t, as pairs of a state and the token after it: the trunk's own attention fetches more than one state holds.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STATE_GRADIENT = 0.5  # of what each step passes back into the state it starts from (EfficientZero, arXiv 2111.00210)


class Transition(nn.Module):
    """Norms of the state and of the token, a 3-layer MLP on both and on what attention recalls, a residual, and
    RMSNorm, without which the scale drifts from step to step.

    State and token have a norm each: an embedding is some fifty times smaller than a state, and one norm over both
    would leave it so. What one state cannot hold is recalled: for every token read so far a slot remembers the state
    before it and the token, and a step attends to the slots of the text up to where its rollout began.
    """

    def __init__(self, hidden_size: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.width = num_heads * max(1, hidden_size // num_heads // 2)  # half of the trunk's: it is there to be cheap
        self.state_norm = nn.LayerNorm(hidden_size)
        self.token_norm = nn.LayerNorm(hidden_size)
        self.memory = nn.Linear(2 * hidden_size, 2 * self.width)
        self.nothing = nn.Parameter(torch.zeros(2 * self.width))
        self.query = nn.Linear(2 * hidden_size, self.width)
        self.recall_norm = nn.LayerNorm(self.width)
        self.recall = nn.Linear(self.width, 2 * hidden_size, bias=False)
        self.up = nn.Linear(2 * hidden_size, 2 * hidden_size)
        self.middle = nn.Linear(2 * hidden_size, 2 * hidden_size)
        self.down = nn.Linear(2 * hidden_size, hidden_size)
        self.out_norm = nn.RMSNorm(hidden_size, eps=1e-6)

    def remember(self, hidden: Tensor, embeddings: Tensor, segment_ids: Tensor | None = None) -> Tensor:
        """Slots (B, T, 2 * width): at column t what is kept of h_{t-1} and x_t, and where a row or, by segment_ids
        (B, T), one of its segments begins, a slot that stands for nothing.

        hidden (B, T, D): h_0 ... h_{T-1}; embeddings (B, T, D): those of x_0 ... x_{T-1}.
        """
        before = F.pad(self.state_norm(hidden[:, :-1]), (0, 0, 1, 0))
        slots = self.memory(torch.cat([before, self.token_norm(embeddings)], dim=-1))
        first = torch.ones_like(slots[..., 0], dtype=torch.bool)
        first[:, 1:] = False if segment_ids is None else segment_ids[:, 1:] != segment_ids[:, :-1]
        return torch.where(first[..., None], self.nothing.to(slots.dtype), slots)

    def forward(self, hidden: Tensor, embeddings: Tensor, slots: Tensor, allowed: Tensor | None = None) -> Tensor:
        """States and the embeddings of the tokens that follow them, both (B, N, D) -> the next states (B, N, D).

        slots (B, S, 2 * width): see `remember`; allowed (B or 1, N, S): which of them a state may look at, None where
        S is N and column t, whatever step of a rollout from h_t it has come to, may look at the slots up to t.
        """
        x = torch.cat([self.state_norm(hidden), self.token_norm(embeddings)], dim=-1)
        query, key, value = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in (self.query(x), *slots.chunk(2, -1))
        )
        mask = None if allowed is None else allowed[:, None]
        recalled = F.scaled_dot_product_attention(query, key, value, mask, is_causal=mask is None)
        recalled = self.recall_norm(recalled.transpose(1, 2).flatten(2))
        x = F.gelu(self.up(x) + self.recall(recalled))
        return self.out_norm(hidden + self.down(F.gelu(self.middle(x))))


def rollout(
    transition: Transition, hidden: Tensor, embeddings: Tensor, depth: int, segment_ids: Tensor | None = None
) -> list[Tensor]:
    """Chain `depth` steps along the tokens that really come.

    hidden (B, T, D): h_0 ... h_{T-1}; embeddings (B, T, D): those of x_0 ... x_{T-1}; segment_ids (B, T): of each row's
    segments, where a row has several. Item i - 1 of the result is (B, T - i, D): at column t what i steps make of h_t
    and x_{t+1} ... x_{t+i}, to be compared with h_{t+i}. Nothing is recalled from another segment, but a rollout does
    not know where its own ends: see `remaining` in look_ahead.py.
    """
    slots, allowed = transition.remember(hidden, embeddings, segment_ids), None
    if segment_ids is not None:
        allowed = (segment_ids[:, :, None] == segment_ids[:, None, :]).tril()
    states = []
    for _ in range(depth):
        hidden, embeddings, slots = hidden[:, :-1], embeddings[:, 1:], slots[:, :-1]
        allowed = None if allowed is None else allowed[:, :-1, :-1]
        hidden = transition(_scale_gradient(hidden, STATE_GRADIENT), embeddings, slots, allowed)
        states.append(hidden)
    return states


def dynamics_losses(predicted: Tensor, hidden: Tensor) -> Tensor:
    """(...,): SmoothL1 in fp32 between predicted states (..., D) and true ones, which get no gradient; mean over D."""
    return F.smooth_l1_loss(predicted.float(), hidden.detach().float(), reduction="none").mean(dim=-1)


def variance_ratio(predicted: Tensor, hidden: Tensor, valid: Tensor) -> Tensor:
    """A scalar: the variance of predicted states (..., D) over the positions where `valid` (...,) is true, divided by
    that of the true states there. Near 0 the predictions have collapsed to one point; 0 where nothing is valid."""
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
