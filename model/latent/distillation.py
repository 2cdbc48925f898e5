"""How the drafter is taught (latent consistency distillation): by the tokens that came, by what the trunk says along
them, and by rollouts of the transition along tokens that the trunk would write. None of it reaches the trunk or the
transition.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..tensors import LookAhead
from .draft import Drafter, draft_losses, sample_tokens
from .policy import Head
from .rollout import Rollout, RolloutContext
from .transition import Transition
from .trunk import LastBlock, Trunk


class DraftedText(NamedTuple):
    """A micro-batch as the drafter is taught by it."""

    context: RolloutContext  # of the R rows look_ahead.rows
    look_ahead: LookAhead
    labels: Tensor  # (B, T) of all rows
    remaining: Tensor  # (B, T): how many labels follow, see core.remaining_labels


class Lessons(NamedTuple):
    """What teaches the drafts of one place, at N positions."""

    before: Tensor  # (J, N) int64: the token before the place, in the text and in each rollout
    states: Tensor  # (J, N, D): the state before it, whose logits are to be learned


def draft_figure(drafter: Drafter, transition: Transition | None, trunk: Trunk, text: DraftedText) -> Tensor:
    """(2,) fp32: the sum of the losses, differentiable with respect to the drafter, and how many there are: drafts from
    h_t and x_{t+1} for t in look_ahead.draft_columns."""
    (context, look_ahead, labels, remaining), columns = text, text.look_ahead.draft_columns
    rows = look_ahead.rows
    rotations = None if trunk.rotary is None else trunk.rotary.at(columns + 1, labels.shape[1])
    drafted = drafter(
        context.hidden[:, columns],
        context.embeddings[:, columns + 1],
        LastBlock(trunk).keys_and_values(context.before_last),
        context.allowed[..., columns, :],
        rotations,
    ).flatten(1, 2)
    # x_{t+1}, x_{t+2}, ...: what stands before each place, and in it
    tokens = torch.stack([labels[rows][:, columns + k].flatten() for k in range(drafter.length + 1)]).clamp_min(0)
    all_lessons = lessons_of(drafter, transition, trunk, text, tokens)
    # Both tables are read by one call of their modules each: ZeRO-3 fetches and frees weights by such calls.
    before = [torch.cat([tokens[k : k + 1], lessons.before]) for k, lessons in enumerate(all_lessons)]
    embedded = drafter.before(torch.cat(before)).split([len(part) for part in before])
    after = drafter.after(torch.arange(drafter.after.num_embeddings, device=tokens.device))
    figure = drafted.new_zeros(2, dtype=torch.float32)
    for k, (lessons, previous) in enumerate(zip(all_lessons, embedded, strict=True)):
        valid = (remaining[rows][:, columns] > k + 1).flatten()
        loss_sum = draft_losses(drafted[k], _head(trunk), previous, after, tokens[k + 1], lessons.states, valid)
        figure = figure + torch.stack([loss_sum, valid.sum().float()])
    return figure


@torch.no_grad()
def lessons_of(
    drafter: Drafter, transition: Transition | None, trunk: Trunk, text: DraftedText, tokens: Tensor
) -> list[Lessons]:
    """For each place k after x_{t+1}, tokens (places + 1, N) being x_{t+1} ...: the true state h_{t+k}, which has read
    the text so far, and after the first place the states of rollouts, as many as look_ahead.draft_uniforms has."""
    context, uniforms = text.context, text.look_ahead.draft_uniforms
    rollouts, rows, columns = uniforms.shape[1], len(context.hidden), text.look_ahead.draft_columns + 1
    lessons = [
        Lessons(tokens[place, None], context.hidden[:, columns + place].flatten(0, 1)[None])
        for place in range(drafter.length)
    ]
    if not rollouts or transition is None:
        return lessons
    true = lessons[0].states[0]
    rollout = Rollout(transition, trunk, context, columns=columns.repeat(rollouts))
    before, states = sample_tokens(true, _head(trunk), uniforms[0]), true.expand(rollouts, *true.shape)
    for place in range(1, drafter.length):
        if place > 1:
            before = sample_tokens(states.flatten(0, 1), _head(trunk), uniforms[place - 1].reshape(1, -1)).view(
                rollouts, -1
            )
        predicted = rollout.step(_by_row(states, rows), F.embedding(_by_row(before, rows), trunk.tokens.weight))
        states = predicted.unflatten(1, (rollouts, -1)).transpose(0, 1).flatten(1, 2)
        lessons[place] = Lessons(torch.cat([lessons[place].before, before]), torch.cat([lessons[place].states, states]))
    return lessons


def _head(trunk: Trunk) -> Head:
    """Looked up for each use: ZeRO-3 takes weights away when a module that owns them has run."""
    return Head(trunk.head_weight, trunk.vocab_size)


def _by_row(x: Tensor, rows: int) -> Tensor:
    """(J, R * C, ...) -> (R, J * C, ...)."""
    return x.unflatten(1, (rows, -1)).transpose(0, 1).flatten(1, 2)
