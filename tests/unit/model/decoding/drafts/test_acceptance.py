"""model/decoding/drafts/acceptance.py: texts have exactly the same joint distribution with drafts as without."""

import pytest
import torch

from model.decoding.drafts.acceptance import block_verified, greedily_verified, typically_verified
from model.decoding.processing import draw
from model.decoding.settings import GenerationSettings
from tests.helpers.chains import SETTINGS, chains, exact_joint, p_value, too_eager, write

ROWS = 100_000


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


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_wrong_acceptance_is_found(settings):
    target, drafter = chains(GenerationSettings(**settings))
    assert p_value(write(too_eager, target, drafter, ROWS, 1, False), exact_joint(target)) < 1e-6


def test_blocks_keep_more_drafts_than_single_tokens():
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


def test_greedy_verification_is_a_case_of_block_verification():
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
