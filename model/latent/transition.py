"""The transition psi: where the hidden state goes if a given token comes next (MuZero's dynamics; NextLat, arXiv
2511.05963).

h_t is the trunk's final normalised state after x_t, so that logits(h_t) predict x_{t+1}. Then
psi(h_t, e(x_{t+1})) = h^_{t+1}, and logits(h^_{t+1}) predict x_{t+2}, as logits(h_{t+1}) do.

The transition itself predicts what reaches the trunk's last block once x_{t+1} is read. That block, which attends to
the text itself, and the final norm turn it into the state (trunk.py), so what the last block knows is neither learned
again nor chased while it changes. What one state does not hold is recalled by attention: the memory has a slot for
every token of the text, with the state before that token as its key and the state after it as its value.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import attend, attend_is_faster
from ..config.size import transition_width


class Transition(nn.Module):
    """Norms of state and token embedding, a 3-layer MLP over both and over what attention recalls from memory, and a
    residual path from the token's embedding, as in the trunk.

    State and token have a norm each: an embedding is some fifty times smaller than a state, and one norm over both
    would leave it so. Keys and queries share one projection of a state and the token after it, so that similar
    transitions find each other from the start.
    """

    def __init__(self, hidden_size: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.width = transition_width(hidden_size, num_heads)
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

    def memory(self, hidden: Tensor, embeddings: Tensor, continues: Tensor) -> Tensor:
        """Slots (B, T, 2 * width) of a text's states and embeddings (B, T, D): at column t a key of h_{t-1} and x_t,
        and a value of their outcome h_t. At column 0, and where column t begins another segment by `continues`
        (1 or B, T - 1), the learned slot `nothing`."""
        before = F.pad(self.state_norm(hidden[:, :-1]), (0, 0, 1, 0))
        key = self.query(torch.cat([before, self.token_norm(embeddings)], dim=-1))
        slots = torch.cat([key, self.outcome(self.outcome_norm(hidden))], dim=-1)
        return torch.where(F.pad(continues, (1, 0))[..., None], slots, self.nothing.to(slots.dtype))

    def forward(self, hidden: Tensor, embeddings: Tensor, slots: Tensor, allowed: Tensor) -> Tensor:
        """States and the embeddings of the tokens that follow them, both (B, N, D) -> what reaches the last block.

        slots (B, S, 2 * width): see `memory`; allowed, broadcast to (B, H, N, S): the slots each state may attend to,
        in training with N = S none after its own.
        """
        x = torch.cat([self.state_norm(hidden), self.token_norm(embeddings)], dim=-1)
        query, key, value = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in (self.query(x), *slots.chunk(2, -1))
        )
        if query.shape == key.shape and attend_is_faster(value):
            recalled = attend(query, key, value, allowed)
        else:
            recalled = F.scaled_dot_product_attention(query, key, value, allowed)
        recalled = self.recall_norm(recalled.transpose(1, 2).flatten(2))
        x = F.gelu(self.up(x) + self.recall(recalled))
        return embeddings + self.down(F.gelu(self.middle(x))) + self.copy(recalled)


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
