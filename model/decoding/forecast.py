"""What a model expects at each token of a text, before it reads on: the next tokens, how hard they will be, and what a
drafter would write there.

The steps ahead follow the model's own best guesses, so no expectation uses a later token; what really came is reported
beside it for the reader.
"""

from collections.abc import Container
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..latent import expected_nll
from ..latent.value import value_targets
from ..transformer import TransformerLM
from .decoder import Weights
from .drafts.acceptance import greedily_verified


class Forecast(NamedTuple):
    """Of T tokens. What belongs to a part that the model does not have is empty: D or H is then 0."""

    horizons: tuple[int, ...]  # H numbers of tokens K
    token_nll: Tensor  # (T,): nats of the token that follows each; 0 at the last
    guesses: Tensor  # (T, 1 + D, N) int64: the N likeliest tokens 1 ... 1 + D places on, the likeliest first
    probabilities: Tensor  # (T, 1 + D, N)
    expected: Tensor  # (T, H): the mean nats of the next K tokens that the value expects, for each horizon K
    realised: Tensor  # (T, H): the same mean of the tokens that came
    known: Tensor  # (T, H): whether enough of the text is left for `realised`
    drafts: list[list[int]]  # of T tokens: what the drafter writes after each; empty where it was not asked
    accepted: list[int]  # how many of these, from the first on, greedy writing accepts


@torch.no_grad()
def forecast(
    model: TransformerLM, input_ids: Tensor, depth: int, best: int = 3, draft_after: Container[int] | None = None
) -> Forecast:
    """Read one text, input_ids (T,).

    The LM head guesses the next token, the transition the `depth` tokens after it. The drafter writes after the tokens
    with the numbers draft_after; None: after all. Raises ValueError for a text longer than the model's rows.
    """
    core = model.latent
    states = model.states(input_ids[None])
    hidden = states.final[0]
    token_nll = F.pad(F.cross_entropy(model.logits(hidden[:-1]), input_ids[1:], reduction="none"), (0, 1))
    places = [model.logits(hidden).softmax(-1).topk(best)]
    if core is not None and core.transition is not None:
        rollout, predicted = core.begin_rollout(model, input_ids[None], states), hidden
        for _ in range(depth):
            predicted = rollout.step(predicted[None], model.tokens(places[-1].indices[:, 0])[None])[0]
            places.append(model.logits(predicted).softmax(-1).topk(best))
    empty = token_nll.new_empty(len(input_ids), 0)
    horizons, expected, realised, known = (), empty, empty, empty.bool()
    if core is not None and core.value_head is not None:
        horizons, expected = core.value_head.horizons, expected_nll(core.value(hidden))
        left = torch.arange(len(input_ids) - 1, -1, -1, device=input_ids.device)
        realised, known = (part[0] for part in value_targets(token_nll[None], left[None], horizons))
    guesses = torch.stack([place.indices for place in places], dim=1)
    probabilities = torch.stack([place.values for place in places], dim=1)
    drafts, accepted = _drafts(model, input_ids.tolist(), draft_after)
    return Forecast(horizons, token_nll, guesses, probabilities, expected, realised, known, drafts, accepted)


@torch.inference_mode()
def _drafts(
    model: TransformerLM, tokens: list[int], draft_after: Container[int] | None
) -> tuple[list[list[int]], list[int]]:
    """Forecast.drafts and Forecast.accepted: a draft follows a state and the token after it, so the first token of a
    text has none; nor has one with too little room behind it."""
    drafts, accepted = [[] for _ in tokens], [0] * len(tokens)
    if model.latent is None or model.latent.drafter is None:
        return drafts, accepted
    decoder = Weights(model, "fp32").decoder(1)
    decoder.read(0, tokens)
    hidden = decoder.hidden.clone()
    for at in range(min(len(tokens), decoder.window - decoder.draft_length) - 1, 0, -1):  # later ones are overwritten
        if draft_after is not None and at not in draft_after:
            continue
        decoder.lengths[0] = at
        token = torch.tensor(tokens[at], device=hidden.device)
        decoder.place()
        lines, previous = decoder.draft(0, hidden[at - 1], token), token
        for place in range(decoder.draft_length):
            previous = decoder.condition(lines[place], previous).argmax(-1)
            drafts[at].append(int(previous))
        written = torch.tensor([[tokens[at], *drafts[at]]], device=hidden.device)
        count, _ = greedily_verified(written[:, 1:], decoder.verify(written))
        accepted[at] = int(count)
    return drafts, accepted
