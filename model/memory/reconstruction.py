"""What keeps a memory token from forgetting: by it alone, the tokens of its group are to be named, in any order."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..attention import NORM_EPS
from ..config import ModelConfig
from ..loss import IGNORE_INDEX, chunk_tokens, even_chunk


class Reconstruction(nn.Module):
    """A matrix, a norm and the trunk's own head, which is not trained by it."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.read = nn.Linear(config.hidden_size, config.embedding_size or config.hidden_size, bias=False)

    def forward(self, tokens: Tensor, targets: Tensor, head: Tensor) -> Tensor:
        """tokens (B, M, D), the ids of their groups (B, M, g), -100 = ignored, and the head (V, D) -> (2,): the sum of
        the NLLs (nats) of all ids, differentiable, and their number.

        A token has one distribution for its whole group: its best is the group's bag of words.
        """
        states = self.read(tokens).flatten(0, 1)
        states = F.rms_norm(states, states.shape[-1:], eps=NORM_EPS)
        chunk = even_chunk(len(states), chunk_tokens(head))
        parts = list(zip(states.split(chunk), targets.flatten(0, 1).split(chunk), strict=True))
        return torch.stack([self._chunk(parts, number, head.detach()) for number in range(len(parts))]).sum(dim=0)

    def _chunk(self, parts: Sequence[tuple[Tensor, Tensor]], number: int, head: Tensor) -> Tensor:
        if len(parts) == 1 or not torch.is_grad_enabled():
            return _nll(*parts[number], head)
        return checkpoint(_nll, *parts[number], head, use_reentrant=False, preserve_rng_state=False)


def _nll(states: Tensor, targets: Tensor, head: Tensor) -> Tensor:
    """states (N, D), targets (N, g) -> (2,) fp32."""
    logits = F.linear(states, head.to(states.dtype)).float()
    counted = targets != IGNORE_INDEX
    nll = logits.logsumexp(dim=1, keepdim=True) - logits.gather(1, targets.masked_fill(~counted, 0))
    return torch.stack([nll.masked_fill(~counted, 0.0).sum(), counted.sum()])
