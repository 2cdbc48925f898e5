"""Rows of several windows: each is read behind a memory of the one before, where a document goes on.

Everything a window needs is in its row, so a step is a function of its batch: no state is carried from step to step.
A window's states have read the memory before it, so its own memory may hold what lies further back. Gradients flow
through all boundaries of a row, into the states that were summed up.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..loss import IGNORE_INDEX
from ..tensors import Memory, MemoryOutput
from .window_memory import WindowMemory

# The rows of MemoryOutput.memory: NLL of the tokens of groups by their memory tokens; of labels behind a memory.
FIGURES = ("memory_reconstruction", "loss_behind_memory")


class Trunk(Protocol):
    """What is asked of TransformerLM."""

    memory: WindowMemory | None
    vocab_size: int

    @property
    def head_weight(self) -> Tensor: ...

    def hidden_states(
        self, input_ids: Tensor, cache: None = None, segment_ids: Tensor | None = None, memory: Memory | None = None
    ) -> Tensor: ...


class Read(NamedTuple):
    """Rows (B, S * T) that were read."""

    final: Tensor  # (B, S * T, D)
    behind: Tensor  # (B, S * T) booleans: the positions that read a memory
    reconstruction: Tensor | None  # (2,): sum of the NLLs and their number; None where it is off, and without gradients
    weight: float  # of its mean in the loss


def read_windows(trunk: Trunk, input_ids: Tensor, documents: Tensor, segment_ids: Tensor | None) -> Read:
    """Read rows input_ids (B, S * T), one window after the other.

    documents (B, S * T): the segment of each position, -1 for padding. A window goes on with the one before where its
    first position has the segment of the last position there: that segment's states in the window before are summed
    up, and its positions in this one read the memory. segment_ids: `documents`, if attention is to stay inside
    documents, else None.
    """
    memory = trunk.memory
    assert memory is not None, "rows of several windows are for a trunk with memory tokens"
    length, finals, lost = memory.length, [], []
    assert input_ids.shape[1] % length == 0, "a row has whole windows"
    for start in range(0, input_ids.shape[1], length):
        here, before = slice(start, start + length), slice(start - length, start)
        summary = None
        if start:
            first, last = documents[:, start, None], documents[:, start - 1, None]
            goes_on = (first == last) & (first >= 0)
            counted = (documents[:, before] == first) & goes_on
            tokens, present = memory.summarise(finals[-1], counted)
            summary = Memory(tokens, present, documents[:, here] == first)
            if memory.reconstruction is not None and torch.is_grad_enabled():
                targets = input_ids[:, before].masked_fill(~counted, IGNORE_INDEX).unflatten(1, (-1, memory.group))
                lost.append(memory.reconstruction(tokens, targets, trunk.head_weight[: trunk.vocab_size]))
        apart = None if segment_ids is None else segment_ids[:, here]
        finals.append(trunk.hidden_states(input_ids[:, here], segment_ids=apart, memory=summary))
    reconstruction = torch.stack(lost).sum(dim=0) if lost else None
    final, behind = torch.cat(finals, dim=1), behind_memory(documents, length)
    return Read(final, behind, reconstruction, memory.reconstruction_weight)


def memory_output(read: Read, loss_sum: Tensor, token_nll: Tensor, labels: Tensor) -> MemoryOutput:
    """What TransformerLM.forward returns of rows that were read, with labels (B, S * T), their loss and their NLLs."""
    counted = labels != IGNORE_INDEX
    behind, lost = read.behind & counted, read.reconstruction
    after = torch.stack([token_nll.masked_fill(~behind, 0.0).sum(), behind.sum()])
    if lost is None:
        return MemoryOutput(loss_sum, token_nll, torch.stack([torch.zeros_like(after), after]).detach())
    added = read.weight * lost[0] / lost[1].clamp_min(1.0) * counted.sum()
    return MemoryOutput(loss_sum + added, token_nll, torch.stack([lost, after]).detach())


def behind_memory(documents: Tensor, length: int) -> Tensor:
    """documents (B, S * T) -> (B, S * T) booleans: which positions read a memory, in windows of `length`."""
    windows = documents.unflatten(1, (-1, length))
    first, last = windows[:, 1:, :1], windows[:, :-1, -1:]
    behind = (windows[:, 1:] == first) & (first == last) & (first >= 0)
    return torch.cat([torch.zeros_like(windows[:, :1], dtype=torch.bool), behind], dim=1).flatten(1)
