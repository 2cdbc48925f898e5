"""What one pass looks ahead at: drawn outside the model, from random streams of its own, and handed in as tensors.

The shapes are the same in every pass, also while rollouts are still to grow: a compiled model is compiled once. A draw
is a function of (seed, step, rank, pass): a run that resumes draws what the uninterrupted one would have drawn, and
nothing else that is random is disturbed.
"""

import math
import random
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import AuxiliaryConfig
from ..loss import IGNORE_INDEX

# In the order of LookAhead.weights and of the rows of LookAheadOutput.auxiliary.
OBJECTIVES = ("policy", "value", "rolled_out_value", "dynamics", "span_contrastive")


class LookAhead(NamedTuple):
    """One pass's draws; R rows are rolled out, P of their columns are read by the heads, S spans are predicted."""

    segment_ids: Tensor  # (B, T): the pieces of each row, -1 for padding; also where attention does not heed them
    rows: Tensor  # (R,) int64: those that are rolled out
    columns: Tensor  # (P,) int64: where predicted states are read, the same in each of those rows
    spans: Tensor  # (S,) int64: the columns before each span, the same in all rows
    weights: Tensor  # (len(OBJECTIVES),) fp32: what each objective counts beside the cross-entropy
    depth: Tensor  # () int64: how many steps of a rollout count

    def to(self, device: torch.device) -> "LookAhead":
        """The same on `device`."""
        return LookAhead(*(tensor.to(device, non_blocking=True) for tensor in self))


class Trained(NamedTuple):
    """How far each part of the core is, as the share of a run that it has been trained for."""

    transition: float
    value_head: float
    span_projector: float

    @classmethod
    def alike(cls, share: float) -> "Trained":
        """All parts began together."""
        return cls(share, share, share)


class LookAheadSampler:
    """Draws a LookAhead for each pass over rows of seq_length tokens.

    Raises ValueError where no rollout or no span fits a row.
    """

    def __init__(self, auxiliary: AuxiliaryConfig, seq_length: int, seed: int):
        require_room(auxiliary, seq_length)
        self.auxiliary, self.seq_length, self.seed = auxiliary, seq_length, seed

    def draw(self, segment_ids: Tensor, trained: Trained, step: int, rank: int = 0, pass_index: int = 0) -> LookAhead:
        """For the rows of segment_ids (B, T), by the parts' weights and depth when they are so far."""
        auxiliary, length = self.auxiliary, self.seq_length
        stream = random.Random(f"{self.seed} {step} {rank} {pass_index}")
        num_rows = _share(len(segment_ids), auxiliary.rollout_row_fraction)
        share = auxiliary.policy_position_fraction / auxiliary.rollout_row_fraction
        later = range(auxiliary.rollout_depth, length)  # none where rows are too short for a rollout that is off
        columns = stream.sample(later, min(_share(length, share), len(later)))
        return LookAhead(
            segment_ids,
            torch.tensor(sorted(stream.sample(range(len(segment_ids)), num_rows))),
            torch.tensor(sorted(columns), dtype=torch.int64),
            torch.tensor(_span_starts(auxiliary, length, stream), dtype=torch.int64),
            weights_at(auxiliary, trained),
            torch.tensor(depth_at(auxiliary, trained.transition)),
        )


def rows_to_look_ahead(auxiliary: AuxiliaryConfig) -> int:
    """Rows of a pass from which on rollout_row_fraction of them is one at least; 1 where nothing is rolled out."""
    return math.ceil(1.0 / auxiliary.rollout_row_fraction) if auxiliary.rolls_out else 1


def _share(whole: int, fraction: float) -> int:
    return max(1, round(fraction * whole))


def num_spans(auxiliary: AuxiliaryConfig, length: int) -> int:
    """Spans in a row of `length` tokens: span_mask_fraction of it, as far as they fit."""
    fitting = length // (auxiliary.span_length + 1)
    return min(_share(length, auxiliary.span_mask_fraction / auxiliary.span_length), fitting)


def _span_starts(auxiliary: AuxiliaryConfig, length: int, stream: random.Random) -> list[int]:
    """One span at a random place of each of as many equal parts of the row: no two overlap."""
    count = num_spans(auxiliary, length)
    part = length // max(1, count)
    return [part * number + stream.randrange(part - auxiliary.span_length) for number in range(count)]


def require_room(auxiliary: AuxiliaryConfig, seq_length: int) -> None:
    """Raises ValueError where what a part that is on looks at is longer than a row."""
    needed: list[tuple[str, int, int]] = []  # the key, what it says, and the tokens of a row that takes
    if auxiliary.rolls_out:
        needed.append(("rollout_depth", auxiliary.rollout_depth, auxiliary.rollout_depth + 1))
    if auxiliary.enable_span_contrastive:
        needed.append(("span_length", auxiliary.span_length, auxiliary.span_length + 1))
    if auxiliary.enable_value:
        needed += [("value_horizons", horizon, math.ceil(horizon / 2)) for horizon in auxiliary.value_horizons]
    for key, asked, least in needed:
        if seq_length < least:
            raise ValueError(
                f"auxiliary.{key}: {asked} needs rows of {least} tokens, and model.seq_length is {seq_length}; "
                "lower the one or raise the other."
            )


def weights_at(auxiliary: AuxiliaryConfig, trained: Trained) -> Tensor:
    """(len(OBJECTIVES),) fp32: the weights when the parts are so far, growing from 0 over auxiliary_warmup_fraction.

    Objectives that are off have weight 0. Predicted states are valued with value_weight, as true ones are, once both
    the value and the transition are on their way.
    """
    warmup = auxiliary.auxiliary_warmup_fraction
    transition, value, span = (min(1.0, share / warmup) if warmup else 1.0 for share in trained)
    weights = (
        auxiliary.policy_kl_weight * auxiliary.enable_policy * transition,
        auxiliary.value_weight * auxiliary.enable_value * value,
        auxiliary.value_weight * (auxiliary.enable_value and auxiliary.rolls_out) * min(value, transition),
        auxiliary.dynamics_weight * auxiliary.enable_dynamics * transition,
        auxiliary.span_contrastive_weight * auxiliary.enable_span_contrastive * span,
    )
    return torch.tensor(weights, dtype=torch.float32)


def depth_at(auxiliary: AuxiliaryConfig, share: float) -> int:
    """Steps of a rollout that count after so much of a run: one more after each auxiliary_warmup_fraction."""
    warmup = auxiliary.auxiliary_warmup_fraction
    return min(auxiliary.rollout_depth, 1 + int(share / warmup)) if warmup else auxiliary.rollout_depth


def remaining(segment_ids: Tensor, labels: Tensor) -> Tensor:
    """(B, T): how many labels the piece at each column still has, itself counted; 0 in padding.

    segment_ids and labels (B, T). What i steps make of h_t is known to be comparable where remaining[:, t] > i.
    """
    pieces = torch.where(labels == IGNORE_INDEX, -1, segment_ids)
    length = pieces.shape[1]
    columns = torch.arange(length, device=pieces.device)
    last = F.pad(pieces[:, 1:] != pieces[:, :-1], (0, 1), value=True)
    ends = torch.where(last, columns + 1, length).flip(1).cummin(dim=1).values.flip(1)
    return torch.where(pieces >= 0, ends - columns, 0)


class LookAheadSchedule:
    def __init__(self, core, seq_length, seed, tokens_per_run, tokens_total, saved):
        self._sampler = None if core is None else LookAheadSampler(core.auxiliary, seq_length, seed)
        self._tokens_of_run = tokens_per_run
        known, now = (saved, tokens_total) if saved is not None else ({}, 0)
        parts = [] if core is None else [part for part in Trained._fields if getattr(core, part) is not None]
        self._begin = {part: min(known.get(part, now), tokens_total) for part in parts}

    def sample(self, segment_ids, batch_number, tokens_total, rank):
        if self._sampler is None:
            return None
        shares = {part: (tokens_total - begin) / self._tokens_of_run for part, begin in self._begin.items()}
        trained = Trained.alike(1.0)._replace(**shares)
        return [self._sampler.draw(ids, trained, batch_number, rank, n) for n, ids in enumerate(segment_ids)]

    def state(self):
        return self._begin
