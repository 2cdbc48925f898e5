"""The memory of one document that is read with a sliding window: what falls out is summed up instead of forgotten.

The window moves on by half. Its older half falls out and becomes the newest M / 2 memory tokens, before which those of
the half before stay: together they stand for the T tokens before the window, as in training. What lies further back is
known by what the states of those tokens had read of it. `score`, text that is written, and prompts are read like this,
so a text has the same probabilities wherever it comes from.
"""

from collections.abc import Iterator
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..tensors import Memory
from .window_memory import WindowMemory


class Rolling:
    """The newest memory tokens (n, D), n up to M, the oldest first."""

    def __init__(self, memory: WindowMemory):
        self._memory = memory
        weight = memory.places.weight
        self.tokens = weight.new_empty(0, weight.shape[1])

    def add(self, hidden: Tensor) -> None:
        """Sum up final states (n, D) that fall out, n a multiple of a group."""
        added, _ = self._memory.summarise(hidden[None])
        self.tokens = torch.cat([self.tokens, added[0].to(self.tokens.dtype)])[-self._memory.size :]

    def before(self) -> Memory:
        """What stands before the window, of one row."""
        return Memory(self.tokens[None], self.tokens.new_ones(1, len(self.tokens), dtype=torch.bool), None)


class Reader(Protocol):
    """What is asked of TransformerLM."""

    memory: WindowMemory | None

    def hidden_states(
        self, input_ids: Tensor, cache: None = None, segment_ids: None = None, memory: Memory | None = None
    ) -> Tensor: ...

    def logits(self, hidden: Tensor) -> Tensor: ...


def document_nll(model: Reader, sequence: Tensor) -> Tensor:
    """sequence (n + 1,), which begins with the end-of-text id -> (n,) fp32: the NLL in nats of each token after it."""
    states, labels = read_document(model, sequence[:-1]), sequence[1:]
    return torch.cat(
        [
            F.cross_entropy(model.logits(hidden), labels[first : first + len(hidden)], reduction="none")
            for first, hidden in states
        ]
    )


def read_document(model: Reader, input_ids: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Read a document input_ids (n,) of any length. Yields, in order, (number of the first, final states (k, D)) of the
    tokens that each window adds."""
    assert model.memory is not None, "without memory tokens a window has no past"
    length, rolling = model.memory.length, Rolling(model.memory)
    start = known = 0
    while True:
        window = input_ids[start : start + length]
        hidden = model.hidden_states(window[None], memory=rolling.before() if start else None)[0]
        yield known, hidden[known - start :]
        known = start + len(window)
        if known == len(input_ids):
            return
        rolling.add(hidden[: length // 2])
        start = known - length // 2
