"""Made-up Markov chains as a target and its drafter over a vocabulary of 16, and texts of three tokens written by them:
whether an acceptance leaves exactly the target's joint distribution.
"""

import torch
from torch import Tensor

from model.decoding.drafts.acceptance import block_verified
from model.decoding.processing import draw, probabilities
from model.decoding.settings import GenerationSettings

VOCAB, LENGTH = 16, 3


def chains(settings: GenerationSettings) -> tuple[Tensor, Tensor]:
    """The target's and the drafter's shares, each (V, V): of a token after another. They differ, and the settings
    cut off different tokens of each."""
    generator = torch.Generator().manual_seed(5)
    target = torch.randn(VOCAB, VOCAB, generator=generator) * 1.5
    drafts = target + torch.randn(VOCAB, VOCAB, generator=generator)
    return probabilities(target, settings), probabilities(drafts, settings)


def exact_joint(target: Tensor) -> Tensor:
    """(V, V, V): of three tokens after token 0."""
    p = target.double() / target.double().sum(-1, keepdim=True)
    return p[0][:, None, None] * p[:, :, None] * p[None]


def write(verify, target: Tensor, drafter: Tensor, rows: int, seed: int, adaptive: bool) -> Tensor:
    """(rows, 3): texts written round by round. With `adaptive` a round has one or three drafts by how many of the round
    before stood, that is by the text so far."""
    generator = torch.Generator().manual_seed(seed)
    texts = torch.zeros(rows, LENGTH + 8, dtype=torch.int64)
    lengths = torch.zeros(rows, dtype=torch.int64)  # tokens written; token 0 is before the first
    short = torch.zeros(rows, dtype=torch.bool)
    while (open := (lengths < LENGTH).nonzero()[:, 0]).numel():
        for places in (1, 3) if adaptive else (3,):
            some = open[short[open] == (places == 1)] if adaptive else open
            if not len(some):
                continue
            last = torch.where(lengths[some] > 0, texts[some, (lengths[some] - 1).clamp_min(0)], 0)
            drafts, before = [], last
            for _ in range(places):
                before = draw(drafter[before], torch.rand(len(some), generator=generator, dtype=torch.float64))
                drafts.append(before)
            drafts = torch.stack(drafts, dim=1)
            path = torch.cat([last[:, None], drafts], dim=1)
            uniforms = torch.rand(len(some), places, generator=generator, dtype=torch.float64)
            count, left = verify(drafts, drafter[path[:, :-1]], target[path], uniforms)
            following = draw(left, torch.rand(len(some), generator=generator, dtype=torch.float64))
            for place in range(places + 1):
                token = following if place == places else torch.where(count > place, drafts[:, place], following)
                kept = count >= place
                texts[some[kept], lengths[some[kept]] + place] = token[kept]
            lengths[some] += count + 1
            short[some] = count < 2
    return texts[:, :LENGTH]


def p_value(texts: Tensor, expected: Tensor) -> float:
    """Of the chi-square test of texts (N, 3) against the joint (V, V, V); rare triples are one class."""
    indices = (texts[:, 0] * VOCAB + texts[:, 1]) * VOCAB + texts[:, 2]
    observed = torch.bincount(indices, minlength=VOCAB**3).double()
    expected = expected.flatten() * len(texts)
    assert not observed[expected == 0].any(), "a token was written that the target forbids"
    often = expected >= 5
    classes = [torch.cat([x[often], x[~often].sum()[None]]) for x in (observed, expected)]
    statistic = ((classes[0] - classes[1]).square() / classes[1].clamp_min(1e-9)).sum()
    degrees = torch.tensor(float(len(classes[0]) - 1), dtype=torch.float64)
    return torch.special.gammaincc(degrees / 2, statistic / 2).item()


SETTINGS = [{"top_p": 1.0}, {"top_p": 0.8, "temperature": 0.7}, {"top_p": 1.0, "top_k": 5, "temperature": 1.3}]


def too_eager(drafts: Tensor, draft_shares: Tensor, shares: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Block verification as it is easily got wrong: the residual is not scaled by what the block before has used up."""
    count, left = block_verified(drafts, draft_shares, shares, uniforms)
    at = torch.arange(len(count))
    inside, place = count < drafts.shape[1], count.clamp_max(drafts.shape[1] - 1)
    unscaled = (
        shares[at, place].double() / shares[at, place].sum(-1, keepdim=True)
        - draft_shares[at, place].double() / draft_shares[at, place].sum(-1, keepdim=True)
    ).clamp_min(0)
    return count, torch.where(inside[:, None] & (unscaled.sum(-1, keepdim=True) > 0), unscaled, left)
