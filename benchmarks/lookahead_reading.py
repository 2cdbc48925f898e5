"""What a model makes of the held-out documents of benchmarks.lookahead."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.lookahead_text import Documents
from model import TransformerLM
from model.loss import linear_cross_entropy
from model.tensors import States

ROWS = 32  # read at a time

Rolls = Callable[[TransformerLM, Tensor, States, int], list[Tensor]]  # of texts, their states and a depth


class Reading:
    """What a model makes of documents: its states, and the loss of every token."""

    @torch.no_grad()
    def __init__(self, model: TransformerLM, documents: Documents):
        self.model, self.documents = model, documents
        self.hidden = torch.cat([model.hidden_states(ids) for ids in documents.input_ids.split(ROWS)])
        self.remaining = documents.remaining
        self.token_nll = self.nll(self.hidden.flatten(0, 1), documents.labels.flatten()).view_as(documents.labels)

    @torch.no_grad()
    def nll(self, states: Tensor, labels: Tensor) -> Tensor:
        """(N,): the loss of labels (N,) as the LM head reads states (N, D)."""
        return linear_cross_entropy(states, self.model.head_weight, self.model.output_bias, labels)[1]

    def places(self, depth: int, least: int = 0) -> tuple[Tensor, Tensor]:
        """Rows and columns of h_t from which x_{t+1} ... x_{t+depth+1} all come, and `least` of them."""
        return (self.remaining > max(depth, least - 1)).nonzero(as_tuple=True)

    @torch.no_grad()
    def rolled_out(self, rollout: Rolls, depth: int) -> list[Tensor]:
        """Of every number of steps up to `depth` (N, T, D): at each column the prediction of its state, made so many
        steps before; zeros in the first."""
        parts: list[list[Tensor]] = [[] for _ in range(depth)]
        for ids in self.documents.input_ids.split(ROWS):
            for steps, states in enumerate(rollout(self.model, ids, self.model.states(ids), depth), 1):
                parts[steps - 1].append(F.pad(states, (0, 0, steps, 0)))
        return [torch.cat(part) for part in parts if part]
