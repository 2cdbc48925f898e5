"""The router: of the candidates for the next token, the model reads those that the core finds most promising, each with
what would follow it, in one forward call; its own probabilities then decide.

A candidate's score is log p(a) + w * C(a) - u * V(a): C is the mean log-probability of the tokens after it, first as
foreseen, then as verified; V is the mean loss that is expected after it, or along a path from it.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..decoder import Decoder
from ..drafts.speculation import History
from ..fitted import PlanWeights
from .choice import Candidate, Choice
from .foresight import Forecaster, Foreseen

CANDIDATES, ROUTED = 8, 3  # tokens that are weighed, and that are read


class Branches(NamedTuple):
    """Candidates that were read. Slot i of the decoder holds candidate i and what was foreseen after it."""

    logits: Tensor  # (B, 1 + K, V): the model's own, after the candidate and after each of K tokens
    hidden: Tensor  # (B, 1 + K, D)
    following: Tensor  # (B, 1 + K) int64: what the model writes at each of these places
    stood: Tensor  # (B,) int64: how many of the K tokens it would have written itself
    continuation: Tensor  # (B,) nats: the mean log-probability of following[: stood + 1]


def weigh(logprobs: Tensor, foreseen: Foreseen, weights: PlanWeights) -> Tensor:
    """Scores (m,) of candidates with log-probabilities (m,), by what is foreseen."""
    return logprobs + weights.continuation * foreseen.continuation - weights.value * foreseen.value


def candidates_of(scores: Tensor, most: int = CANDIDATES, without: int | None = None) -> tuple[Tensor, Tensor]:
    """The likeliest tokens (m,) by scores (V,) and their log-probabilities (m,), the likeliest first. One token may be
    left out; so are forbidden ones."""
    logprobs = scores.log_softmax(-1)
    best = logprobs.topk(min(most + 1, len(logprobs)))
    kept = torch.isfinite(best.values)
    if without is not None:
        kept &= best.indices != without
    return best.indices[kept][:most], best.values[kept][:most]


def read_branches(decoder: Decoder, tokens: Tensor, history: History, synced: int) -> Branches:
    """Let the model read candidates with what was foreseen after them, tokens (B, 1 + K), each row in a slot of its own
    behind the text of slot 0, of which the other slots hold the first `synced` tokens already."""
    count, start = len(tokens), decoder.lengths[0]
    if count > 1:
        decoder.reorder([0] * len(decoder.lengths), synced)
    decoder.place()
    logits = decoder.verify(tokens)
    hidden = decoder.hidden.unflatten(0, (count, -1))
    scores = logits.float()
    if history.penalises:
        after = []
        for row, lines in zip(tokens, logits, strict=True):
            for place, token in enumerate(row):
                history.write(place, token)
            after.append(torch.stack([history.scores(line, place + 1) for place, line in enumerate(lines)]))
        scores = torch.stack(after)
    best = scores.log_softmax(-1).max(-1)
    stood = (best.indices[:, :-1] == tokens[:, 1:]).long().cumprod(1).sum(1)
    verified = torch.arange(tokens.shape[1], device=tokens.device) <= stood[:, None]
    continuation = (best.values * verified).sum(1) / verified.sum(1)
    assert decoder.lengths[0] == start + tokens.shape[1]
    return Branches(logits, hidden, best.indices, stood, continuation)


def route(
    decoder: Decoder,
    forecaster: Forecaster,
    hidden: Tensor,
    candidates: tuple[Tensor, Tensor],
    weights: PlanWeights,
    history: History,
    synced: int,
) -> tuple[Choice, Branches, int]:
    """Choose among candidates, tokens (m,) and log-probabilities (m,), for the place after the decoder's slot 0, whose
    last state is hidden (D,). Returns the choice, what was read, and the row of the chosen one in it."""
    tokens, logprobs = candidates
    foreseen = forecaster.foresee(weights.foresight, hidden, tokens)
    promise = weigh(logprobs, foreseen, weights)
    routed = promise.topk(min(ROUTED, len(tokens), len(decoder.lengths))).indices
    branches = read_branches(
        decoder, torch.cat([tokens[routed, None], foreseen.tokens[routed]], dim=1), history, synced
    )
    final = logprobs[routed] + weights.verified * branches.continuation - weights.value * foreseen.value[routed]
    row = int(final.argmax())
    read = dict(zip(routed.tolist(), range(len(routed)), strict=True))
    verified = final.tolist()
    following = [
        tuple(line[: count + 1])
        for line, count in zip(branches.following.tolist(), branches.stood.tolist(), strict=True)
    ]
    shown = tuple(
        Candidate(token, logprob, score, *((verified[read[at]], following[read[at]]) if at in read else (None, ())))
        for at, (token, logprob, score) in enumerate(
            zip(tokens.tolist(), logprobs.tolist(), promise.tolist(), strict=True)
        )
    )
    return Choice(shown, int(routed[row])), branches, row
