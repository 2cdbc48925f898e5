"""Fitting a planner: at uncertain places of text that the model was not trained on, the weights with which it writes
most of the text as it came.

At each place the planner chooses a token; what that is worth is 0 where the text has another one, else the number of
tokens that greedy writing then gets right, the chosen one included. So one reading of the text judges all weights.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..decoding.decoder import Decoder, Weights
from ..decoding.drafts.speculation import History
from ..decoding.fitted import Foresight, PlanWeights
from ..decoding.planning.foresight import Forecaster, Foreseen
from ..decoding.planning.planner import entropy
from ..decoding.planning.router import CANDIDATES, ROUTED, candidates_of, read_branches
from ..decoding.settings import GenerationSettings
from ..transformer import TransformerLM

UNCERTAIN_SHARE = 0.2  # of all places are planned at
MOST_GATES, FURTHEST = 2000, 8  # places that are read, and tokens that count at each
NEVER = 1e9  # nats: no entropy is above it
WEIGHTS = {
    "continuation": (0.0, 0.25, 0.5, 1.0, 2.0, 4.0),
    "value": (0.0, 0.05, 0.1, 0.25, 0.5, 1.0),
    "verified": (0.0, 0.25, 0.5, 1.0, 2.0, 4.0),
}


class Gates(NamedTuple):
    """G uncertain places, each with m candidates, the likeliest first."""

    logprobs: Tensor  # (G, m)
    foreseen: dict[Foresight, Foreseen]  # (G, m) each; `tokens` (G, m, K)
    verified: dict[Foresight, Tensor]  # (G, m): the mean log-probability of what the model writes after each
    came: Tensor  # (G,) int64: which of them the text has; -1: none
    right: Tensor  # (G,): the tokens that greedy writing gets right from there on, if it begins with what came


class PlanFit(NamedTuple):
    """Weights, and how much they are worth: tokens right at a gate more than greedy writing has, on the text they were
    fitted to, and the standard error of that."""

    weights: PlanWeights
    gain: float
    standard_error: float
    greedy: float  # tokens right at a gate
    gates: int


@torch.inference_mode()
def fit_plan(model: TransformerLM, rows: Sequence[Tensor]) -> PlanFit:
    """By the text of `rows` (see document_rows). Raises ValueError for a model that foresees nothing."""
    core = model.latent
    ways: list[Foresight] = []
    if core is not None and core.drafter is not None:
        ways.append("drafter")
    if core is not None and core.transition is not None:
        ways.append("rollout")
        if core.value_head is not None:
            ways.append("path")
    if not ways:
        raise ValueError(
            "planning needs a model with a drafter or a transition; train one with auxiliary.enable_draft or "
            "auxiliary.enable_policy, or give this one a drafter with lm.fit_drafter(texts)."
        )
    threshold, read = uncertain_places(model, rows)
    decoder = Weights(model, "fp32").decoder(CANDIDATES)
    return best_weights(gates(model, decoder, read, ways), threshold)


def uncertain_places(model: TransformerLM, rows: Sequence[Tensor]) -> tuple[float, list[tuple[Tensor, list[int]]]]:
    """The entropy that UNCERTAIN_SHARE of all places have more than, and of each row the places, the last first, at
    which the planner is judged."""
    device = model.tokens.weight.device
    entropies = [entropy(model.logits(model.hidden_states(row[None, :-1].to(device))))[0].cpu() for row in rows]
    every = torch.cat(entropies)
    threshold = every.sort().values[int((1 - UNCERTAIN_SHARE) * len(every))].item()
    # a place needs room for what is read after it, and text to be judged by
    found = [(line[: -FURTHEST - 1] > threshold).nonzero()[:, 0].tolist() for line in entropies]
    if not any(found):
        raise ValueError(f"no text has more than {FURTHEST} tokens after an uncertain place; give longer texts.")
    share = MOST_GATES / sum(map(len, found))
    generator = torch.Generator().manual_seed(0)
    kept = [[at for at in some if torch.rand((), generator=generator) < share] for some in found]
    return threshold, [(row, some[::-1]) for row, some in zip(rows, kept, strict=True) if some]


def gates(
    model: TransformerLM, decoder: Decoder, read: Sequence[tuple[Tensor, list[int]]], ways: Sequence[Foresight]
) -> Gates:
    """What the core foresees, and what the model then says, at places of rows, the last place of each row first; the
    decoder has CANDIDATES slots."""
    device = model.tokens.weight.device
    forecaster, found = Forecaster(model, decoder), []
    for row, some in read:
        tokens = row[:-1].tolist()
        decoder.lengths[:] = [0] * len(decoder.lengths)
        forecaster.forget()
        logits = decoder.read(0, tokens, every=True).clone()
        hidden, synced = decoder.hidden.clone(), 0
        forecaster.read(tokens, hidden)
        right = (logits.argmax(-1).cpu() == row[1:]).tolist()
        for at in some:
            # What the slots hold behind this place was read for later ones, and is overwritten.
            decoder.lengths[:] = [at + 1] * len(decoder.lengths)
            candidates, logprobs = candidates_of(logits[at].float())
            foreseen = {way: forecaster.foresee(way, hidden[at], candidates) for way in ways}
            verified = {}
            for way in ways:
                if way == "path":  # has the tokens of a rollout
                    verified[way] = verified["rollout"]
                    continue
                history = History(GenerationSettings(temperature=0), [], FURTHEST, logits[0])
                branches = read_branches(
                    decoder, torch.cat([candidates[:, None], foreseen[way].tokens], 1), history, synced
                )
                verified[way], synced = branches.continuation, at + 1
                decoder.lengths[:] = [at + 1] * len(decoder.lengths)
            came = (candidates == row[at + 1].to(device)).nonzero()[:, 0].tolist()
            run = 1 + sum(itertools.takewhile(bool, right[at + 1 : at + FURTHEST]))
            found.append((logprobs, foreseen, verified, came[0] if came else -1, float(run)))
    logprobs, foreseen, verified, came, run = zip(*found, strict=True)
    return Gates(
        torch.stack(logprobs),
        {way: Foreseen(*map(torch.stack, zip(*(one[way] for one in foreseen), strict=True))) for way in ways},
        {way: torch.stack([one[way] for one in verified]) for way in ways},
        torch.tensor(came, device=device),
        torch.tensor(run, device=device),
    )


def worth(found: Gates, weights: PlanWeights) -> Tensor:
    """(G,): tokens right at each gate, with these weights."""
    foreseen, verified = found.foreseen[weights.foresight], found.verified[weights.foresight]
    harm = weights.value * foreseen.value
    promise = found.logprobs + weights.continuation * foreseen.continuation - harm
    routed = promise.topk(min(ROUTED, promise.shape[1]), dim=1).indices
    final = (found.logprobs + weights.verified * verified - harm).gather(1, routed)
    chosen = routed.gather(1, final.argmax(1, keepdim=True))[:, 0]
    return torch.where(chosen == found.came, found.right, 0.0)


def best_weights(found: Gates, threshold: float) -> PlanFit:
    """Of all WEIGHTS and ways those whose gain less its standard error is largest; of equal ones the smallest. Where it
    is positive for none, all weights are 0 and no place is planned at."""
    greedy = torch.where(found.came == 0, found.right, 0.0)
    best, least, gained = _never(next(iter(found.foreseen))), 0.0, torch.zeros_like(greedy)
    for way in found.foreseen:
        for values in itertools.product(*WEIGHTS.values()):
            weights = PlanWeights(threshold=threshold, foresight=way, **dict(zip(WEIGHTS, values, strict=True)))
            more = worth(found, weights) - greedy
            if (sure := float(more.mean() - _standard_error(more))) > least + 1e-9:
                best, least, gained = weights, sure, more
    return PlanFit(best, float(gained.mean()), _standard_error(gained), float(greedy.mean()), len(gained))


def _never(way: Foresight) -> PlanWeights:
    return PlanWeights(threshold=NEVER, continuation=0.0, value=0.0, verified=0.0, foresight=way)


def _standard_error(values: Tensor) -> float:
    """Of the mean of values (G,)."""
    return float(values.std() / len(values) ** 0.5) if len(values) > 1 else math.inf
