"""What one micro-batch draws for the objectives of the lookahead core: rows, columns and spans, and the weights.

Draws are made outside the model, from random streams of their own, and handed in as tensors. Their shapes never change,
also while rollouts still grow, so a compiled model is compiled once. A draw is a function of (seed, step, rank,
micro-batch): a resumed run draws what the uninterrupted one would have drawn, and no other random number changes.
"""

import math
import random
from typing import NamedTuple

import torch
from torch import Tensor

from ..config import AuxiliaryConfig, require_room
from ..config.size import num_spans, share_of
from ..tensors import LookAhead

# In the order of LookAhead.weights and of the rows of LookAheadOutput.auxiliary.
OBJECTIVES = ("policy", "value", "rolled_out_value", "dynamics", "span_contrastive", "draft", "information_gain")


class Trained(NamedTuple):
    """How long each part of the core has been trained, as a share of a run; LookaheadCore has the same attributes."""

    transition: float
    value_head: float
    span_projector: float
    drafter: float

    @classmethod
    def alike(cls, share: float) -> "Trained":
        """The same share for all parts."""
        return cls(share, share, share, share)


class LookAheadSampler:
    """Draws a LookAhead for each micro-batch of rows of seq_length tokens.

    Raises ValueError where no rollout or no span fits a row.
    """

    def __init__(self, auxiliary: AuxiliaryConfig, seq_length: int, seed: int):
        require_room(auxiliary, seq_length)
        self.auxiliary, self.seq_length, self.seed = auxiliary, seq_length, seed

    def draw(self, segment_ids: Tensor, trained: Trained, step: int, rank: int = 0, micro_batch: int = 0) -> LookAhead:
        """For the rows of segment_ids (B, T), with the weights and the depth of parts that are `trained` so far."""
        auxiliary, length = self.auxiliary, self.seq_length
        stream = random.Random(f"{self.seed} {step} {rank} {micro_batch}")
        num_rows = share_of(len(segment_ids), auxiliary.rollout_row_fraction)
        share = auxiliary.policy_position_fraction / auxiliary.rollout_row_fraction
        later = range(auxiliary.rollout_depth, length)  # empty where rows are too short for a rollout that is off
        columns = stream.sample(later, min(share_of(length, share), len(later)))
        return LookAhead(
            segment_ids,
            torch.tensor(sorted(stream.sample(range(len(segment_ids)), num_rows))),
            torch.tensor(sorted(columns), dtype=torch.int64),
            torch.tensor(_span_starts(auxiliary, length, stream), dtype=torch.int64),
            weights_at(auxiliary, trained),
            torch.tensor(depth_at(auxiliary, trained.transition)),
            *_draft_draws(auxiliary, length, num_rows, stream),
        )


def rows_to_look_ahead(auxiliary: AuxiliaryConfig) -> int:
    """The least rows of a micro-batch of which rollout_row_fraction is at least one row; 1 where no
    row is rolled out or drafted from."""
    some_rows = auxiliary.rolls_out or auxiliary.enable_draft
    return math.ceil(1.0 / auxiliary.rollout_row_fraction) if some_rows else 1


def _span_starts(auxiliary: AuxiliaryConfig, length: int, stream: random.Random) -> list[int]:
    """One span at a random place in each of as many equal parts of the row, so that no two overlap."""
    count = num_spans(auxiliary, length)
    part = length // max(1, count)
    return [part * number + stream.randrange(part - auxiliary.span_length) for number in range(count)]


def _draft_draws(
    auxiliary: AuxiliaryConfig, length: int, num_rows: int, stream: random.Random
) -> tuple[Tensor, Tensor]:
    """LookAhead.draft_columns and draft_uniforms."""
    if not auxiliary.enable_draft:
        return torch.empty(0, dtype=torch.int64), torch.empty(0)
    starts = range(length - auxiliary.draft_length)
    count = min(share_of(length, auxiliary.draft_position_fraction / auxiliary.rollout_row_fraction), len(starts))
    columns = torch.tensor(sorted(stream.sample(starts, count)))
    generator = torch.Generator().manual_seed(stream.getrandbits(63))
    shape = (auxiliary.draft_length - 1, auxiliary.draft_rollouts, num_rows * count)
    return columns, torch.rand(shape, generator=generator)


def weights_at(auxiliary: AuxiliaryConfig, trained: Trained) -> Tensor:
    """(len(OBJECTIVES),) fp32: the weights of the objectives, growing from 0 over auxiliary_warmup_fraction.

    Objectives that are off have weight 0. The value of predicted states has value_weight, as that of true ones. It
    warms up with the later of value and transition, and so does the drafter where rollouts teach it.
    """
    warmup = auxiliary.auxiliary_warmup_fraction
    transition, value, span, draft = (min(1.0, share / warmup) if warmup else 1.0 for share in trained)
    weights = (
        auxiliary.policy_kl_weight * auxiliary.enable_policy * transition,
        auxiliary.value_weight * auxiliary.enable_value * value,
        auxiliary.value_weight * (auxiliary.enable_value and auxiliary.rolls_out) * min(value, transition),
        auxiliary.dynamics_weight * auxiliary.enable_dynamics * transition,
        auxiliary.span_contrastive_weight * auxiliary.enable_span_contrastive * span,
        auxiliary.draft_weight
        * auxiliary.enable_draft
        * (min(draft, transition) if auxiliary.draft_rollouts else draft),
        auxiliary.information_gain_weight * min(value, draft),
    )
    return torch.tensor(weights, dtype=torch.float32)


def depth_at(auxiliary: AuxiliaryConfig, share: float) -> int:
    """Steps of a rollout that count when the transition has been trained for `share` of a run: one more after each
    auxiliary_warmup_fraction."""
    warmup = auxiliary.auxiliary_warmup_fraction
    return min(auxiliary.rollout_depth, 1 + int(share / warmup)) if warmup else auxiliary.rollout_depth
