"""model/latent/draft.py: the drafter's losses, its causality, its draws."""

import pytest
import torch
import torch.nn.functional as F

from model import AuxiliaryConfig
from model.latent import LookAheadSampler, Trained
from model.latent.draft import draft_losses, sample_tokens
from model.latent.policy import Head
from model.latent.trunk import LastBlock


@pytest.mark.parametrize("rollouts", [0, 1, 3])
def test_losses_and_gradients_equal_autograds(rollouts):
    torch.manual_seed(0)
    drafted, weight = torch.randn(7, 8, dtype=torch.double, requires_grad=True), torch.randn(20, 8, dtype=torch.double)
    previous = torch.randn(1 + rollouts, 7, 4, dtype=torch.double, requires_grad=True)
    after = torch.randn(20, 4, dtype=torch.double, requires_grad=True)
    labels, teachers = torch.randint(18, (7,)), torch.randn(rollouts, 7, 8, dtype=torch.double)
    valid = torch.tensor([False, True, True, False, True, True, True])
    loss = draft_losses(drafted, Head(weight, 18), previous, after, labels, teachers, valid)

    def log_probabilities(logits):  # two of the rows are padding
        return logits[:, :18].log_softmax(-1)

    expected = F.nll_loss(log_probabilities(drafted @ weight.T + previous[0] @ after.T), labels, reduction="none")
    for number, teacher in enumerate(teachers):
        draft = log_probabilities(drafted @ weight.T + previous[1 + number] @ after.T)
        kl = F.kl_div(draft, log_probabilities(teacher @ weight.T), reduction="none", log_target=True).sum(-1)
        expected = expected + kl / rollouts
    expected = (expected * valid).sum() / (2 if rollouts else 1)
    torch.testing.assert_close(loss, expected)
    inputs = (drafted, previous, after)
    for ours, theirs in zip(
        torch.autograd.grad(3 * loss, inputs), torch.autograd.grad(3 * expected, inputs), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_tokens_are_drawn_from_what_the_head_says():
    torch.manual_seed(0)
    hidden, weight = torch.randn(2, 8), torch.randn(12, 8)
    drawn = sample_tokens(hidden, Head(weight, 10), torch.rand(20_000, 2))
    for row in range(2):
        expected = (weight[:10] @ hidden[row]).softmax(0)
        counts = torch.bincount(drawn[:, row], minlength=10)
        assert len(counts) == 10  # none is padding
        torch.testing.assert_close(counts / 20_000, expected, atol=0.015, rtol=0)


def test_drafts_depend_on_nothing_after_the_token_they_follow(model, token_ids):
    before, after = token_ids[None, :32], token_ids[None, :32].clone()
    after[0, 9:] = (after[0, 9:] + 1) % 500
    drafted = []
    with torch.no_grad():
        for ids in (before, after):
            states = model.states(ids)
            text, allowed = LastBlock(model).keys_and_values(states.before_last), model.causal_mask[:31, :32]
            drafted.append(model.latent.drafter(states.final[:, :-1], model.tokens(ids[:, 1:]), text, allowed, None))
    one, other = drafted
    assert torch.equal(one[:, :, :8], other[:, :, :8])  # from h_t and x_{t+1}, t + 1 < 9
    assert not torch.isclose(one[:, :, 8:], other[:, :, 8:]).flatten(3).all(-1).any()


def test_draws_are_a_function_of_the_step_and_change_no_other(everything):
    segments, off = torch.zeros(16, 64, dtype=torch.int32), everything.model_copy(update={"enable_draft": False})
    one, same, later, without = (
        LookAheadSampler(auxiliary, 64, seed=1).draw(segments, Trained.alike(1.0), step)
        for auxiliary, step in ((everything, 3), (everything, 3), (everything, 4), (off, 3))
    )
    assert all(map(torch.equal, one, same)) and not torch.equal(one.draft_uniforms, later.draft_uniforms)
    assert one.draft_columns.tolist() == sorted(one.draft_columns.tolist()) and len(one.draft_columns) == 1
    assert one.draft_uniforms.shape == (2, 2, len(one.rows))
    assert len(without.draft_columns) == len(without.draft_uniforms) == 0
    for name in ("rows", "columns", "spans"):
        assert torch.equal(getattr(one, name), getattr(without, name))


def test_rollouts_need_a_transition():
    with pytest.raises(ValueError, match="4 rollouts need enable_policy or enable_dynamics"):
        AuxiliaryConfig(enable_draft=True)
    assert AuxiliaryConfig(enable_draft=True, draft_rollouts=0).looks_ahead
