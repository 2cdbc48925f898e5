"""model/decoding/acceptance.py: texts have exactly the same joint distribution with drafts as without.

The target and the drafts are made-up Markov chains over a vocabulary of 16; a text is three tokens.
"""

import pytest
import torch
from torch import Tensor

from model.decoding.acceptance import block_verified, greedily_verified, typically_verified
from model.decoding.processing import draw, probabilities
from model.decoding.settings import GenerationSettings

VOCAB, LENGTH, ROWS = 16, 3, 100_000


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


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("settings", SETTINGS)
def test_joints_are_exact(settings, adaptive, rows=ROWS):
    target, drafter = chains(GenerationSettings(**settings))
    assert p_value(write(block_verified, target, drafter, rows, 1, adaptive), exact_joint(target)) > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("settings", SETTINGS)
def test_joints_are_exact_over_a_million_draws(settings, adaptive):
    test_joints_are_exact(settings, adaptive, rows=1_000_000)


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


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_wrong_acceptance_is_found(settings):
    target, drafter = chains(GenerationSettings(**settings))
    assert p_value(write(too_eager, target, drafter, ROWS, 1, False), exact_joint(target)) < 1e-6


def test_block_verification_keeps_at_least_as_many_drafts_as_one_by_one():
    target, drafter = chains(GenerationSettings(top_p=1.0))
    generator = torch.Generator().manual_seed(0)
    before, drafts = torch.zeros(ROWS, dtype=torch.int64), []
    for _ in range(3):
        before = draw(drafter[before], torch.rand(ROWS, generator=generator, dtype=torch.float64))
        drafts.append(before)
    drafts = torch.stack(drafts, 1)
    path = torch.cat([torch.zeros(ROWS, 1, dtype=torch.int64), drafts], 1)
    uniforms = torch.rand(ROWS, 3, generator=generator, dtype=torch.float64)
    count, _ = block_verified(drafts, drafter[path[:, :-1]], target[path], uniforms)
    p, q = (x / x.sum(-1, keepdim=True) for x in (target, drafter))
    ratios = (p[path[:, :-1], drafts] / q[path[:, :-1], drafts]).clamp_max(1)
    assert count.double().mean() > ratios.double().cumprod(1).sum(1).mean() + 0.01


def test_drafts_from_the_target_itself_all_stand():
    target, _ = chains(GenerationSettings(top_p=1.0))
    drafts = torch.tensor([[3, 4, 5]])
    path = torch.tensor([[0, 3, 4, 5]])
    for uniform in (0.0, 0.5, 0.999999):
        uniforms = torch.full((1, 3), uniform, dtype=torch.float64)
        count, left = block_verified(drafts, target[path[:, :-1]], target[path], uniforms)
        assert count == 3
        torch.testing.assert_close(left[0], target[5].double() / target[5].double().sum())


def test_greedy_verification_is_block_verification_of_certain_distributions():
    torch.manual_seed(0)
    scores, drafts = torch.randn(500, 4, 5), torch.randint(5, (500, 3))
    drafts[::2] = scores[::2, :3].argmax(-1)
    one_hot = torch.nn.functional.one_hot
    count, token = greedily_verified(drafts, scores)
    uniforms = torch.rand(500, 3, dtype=torch.float64)
    same, left = block_verified(drafts, one_hot(drafts, 5), one_hot(scores.argmax(-1), 5), uniforms)
    assert torch.equal(count, same) and torch.equal(left.argmax(-1), token) and set(count.tolist()) == {0, 1, 2, 3}


def test_typical_acceptance_keeps_likely_drafts_and_corrects_others():
    scores = torch.log(torch.tensor([[[0.6, 0.3, 0.1], [0.98, 0.019, 0.001], [0.5, 0.4, 0.1]]]))
    greedy = torch.nn.functional.one_hot(scores.argmax(-1), 3)
    uniforms = torch.full((1, 2), 0.5)
    for drafts, stand, following in (([1, 0], 2, 0), ([1, 1], 1, 0), ([0, 2], 1, 0)):
        drafts = torch.tensor([drafts])
        shares = torch.nn.functional.one_hot(drafts, 3)
        count, left = typically_verified(drafts, shares, greedy, scores, uniforms)
        assert count == stand and left[0].argmax() == following
    # 0.3 * exp(-H) is 0.12 at the first place: what is above 0.09 stands; at the second about 0.27, so 0.09 counts
    assert (
        block_verified(
            torch.tensor([[1, 0]]), torch.nn.functional.one_hot(torch.tensor([[1, 0]]), 3), greedy, uniforms
        )[0]
        == 0
    )
