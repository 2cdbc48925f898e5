"""Named tuples of tensors: what a forward pass takes beside the batch, passes to the lookahead core, and returns.

Shapes: B rows of T tokens, hidden size D.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class States(NamedTuple):
    """What the trunk computes of token ids (B, T); each (B, T, D)."""

    final: Tensor  # after the final norm: what the LM head reads
    second_layer: Tensor  # after the second block, before any norm; after the only block where there is one
    before_last: Tensor  # what the last block reads, before any norm


class Memory(NamedTuple):
    """The memory tokens before a window, n of them, the oldest first."""

    tokens: Tensor  # (B, n, D), as they were projected
    present: Tensor  # (B, n) booleans: those that there are
    readers: Tensor | None  # (B, T) booleans: the positions of the window that read them; None: all


class LookAhead(NamedTuple):
    """What one micro-batch draws for the objectives of the lookahead core: R rows are rolled out, their predicted
    states are read at P columns, S spans are predicted. LookAheadSampler draws it."""

    segment_ids: Tensor  # (B, T): the segments of each row, -1 for padding; also where attention does not heed them
    rows: Tensor  # (R,) int64: the rows that are rolled out
    columns: Tensor  # (P,) int64: where predicted states are read, the same columns in each of those rows
    spans: Tensor  # (S,) int64: the column before each span, the same columns in all rows
    weights: Tensor  # (len(OBJECTIVES),) fp32: the weight of each objective beside the cross-entropy
    depth: Tensor  # () int64: how many steps of a rollout count
    draft_columns: Tensor  # (C,) int64: where the drafter starts, in each of those rows; empty without one
    draft_uniforms: Tensor  # (places - 1, J, R * C) in [0, 1): what draws the tokens of J rollouts at each of these

    def to(self, device: torch.device) -> "LookAhead":
        """The same on `device`."""
        return LookAhead(*(tensor.to(device, non_blocking=True) for tensor in self))


class TrainingOutput(NamedTuple):
    """The output of TransformerLM.forward without a LookAhead."""

    loss_sum: Tensor  # scalar fp32: (weighted) sum of the NLLs (nats) over labels that are not -100; differentiable
    token_nll: Tensor  # (B, T) fp32, detached, never weighted; 0 where the label is -100


class LookAheadOutput(NamedTuple):
    """The output of TransformerLM.forward with a LookAhead."""

    loss_sum: Tensor  # as above, plus the weighted means of the auxiliary objectives, each times the number of labels
    token_nll: Tensor  # as above
    auxiliary: Tensor  # (len(FIGURES), 2) fp32, detached: sums and counts; their quotients are the means


class MemoryOutput(NamedTuple):
    """The output of TransformerLM.forward for rows of several windows."""

    loss_sum: Tensor  # as above, plus the weighted mean of the reconstruction, times the number of labels
    token_nll: Tensor  # as above
    memory: Tensor  # (len(memory.FIGURES), 2) fp32, detached: sums and counts


class ExpertOutput(NamedTuple):
    """The output of TransformerLM.forward in training, without a LookAhead, where blocks have experts."""

    loss_sum: Tensor  # as above, plus the weighted means of the losses of routers, each times the number of labels
    token_nll: Tensor  # as above
    load: Tensor  # (blocks with experts, E) int64: the tokens that each expert reads


class ExpertLookAheadOutput(NamedTuple):
    """The output of TransformerLM.forward in training, with a LookAhead, where blocks have experts."""

    loss_sum: Tensor
    token_nll: Tensor
    auxiliary: Tensor  # as LookAheadOutput's
    load: Tensor  # as above
