"""psi: where the hidden state goes if a given token comes next (MuZero's dynamics; NextLat, arXiv 2511.05963).

h_t is the trunk's final normalised state after x_t, so that logits(h_t) predict x_{t+1}. Then
psi(h_t, e(x_{t+1})) = h^_{t+1}, and logits(h^_{t+1}) predict x_{t+2}, as logits(h_{t+1}) do.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STATE_GRADIENT = 0.5  # of what each step passes back into the state it starts from (EfficientZero, arXiv 2111.00210)


class Transition(nn.Module):
    """Norms of the state and of the token, a 3-layer MLP on both, a residual, and RMSNorm, without which the scale
    drifts from step to step.

    Each has a norm of its own: an embedding is some fifty times smaller than a state, and one norm over both would
    leave it so.
    """

    def __init__(self, hidden_size: int):
        super().__init__()
        self.state_norm = nn.LayerNorm(hidden_size)
        self.token_norm = nn.LayerNorm(hidden_size)
        self.up = nn.Linear(2 * hidden_size, 2 * hidden_size)
        self.middle = nn.Linear(2 * hidden_size, 2 * hidden_size)
        self.down = nn.Linear(2 * hidden_size, hidden_size)
        self.out_norm = nn.RMSNorm(hidden_size, eps=1e-6)

    def forward(self, hidden: Tensor, embeddings: Tensor) -> Tensor:
        """States and the embeddings of the tokens that follow them, both (..., D) -> the next states (..., D)."""
        x = torch.cat([self.state_norm(hidden), self.token_norm(embeddings)], dim=-1)
        x = F.gelu(self.middle(F.gelu(self.up(x))))
        return self.out_norm(hidden + self.down(x))


def rollout(transition: Transition, hidden: Tensor, embeddings: Tensor, depth: int) -> list[Tensor]:
    """Chain `depth` steps along the tokens that really come.

    hidden (B, T, D): h_0 ... h_{T-1}; embeddings (B, T, D): those of x_0 ... x_{T-1}. Item i - 1 of the result is
    (B, T - i, D): at column t what i steps make of h_t and x_{t+1} ... x_{t+i}, to be compared with h_{t+i}. It does
    not know where documents end: see `remaining` in look_ahead.py.
    """
    states = []
    for _ in range(depth):
        hidden, embeddings = hidden[:, :-1], embeddings[:, 1:]
        hidden = transition(_scale_gradient(hidden, STATE_GRADIENT), embeddings)
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
