"""model/latent/span.py: keys, negatives, spans that do not count."""

import pytest
import torch
import torch.nn.functional as F

from model.latent.span import info_nce, span_keys

STARTS = torch.tensor([1, 9])


def test_a_key_is_the_mean_over_the_span_after_its_start():
    states = torch.randn(3, 16, 8, requires_grad=True)
    keys = span_keys(states, STARTS, 4, torch.ones(3, 2, dtype=torch.bool))
    assert keys.shape == (3, 2, 8) and not keys.requires_grad
    means = torch.stack([states[:, 2:6].mean(1), states[:, 10:14].mean(1)], dim=1)
    torch.testing.assert_close(keys, means - means.mean(0))
    changed = states.detach().clone()
    changed[:, [0, 1, 6, 7, 8, 9, 14, 15]] += 5.0
    assert torch.equal(span_keys(changed, STARTS, 4, torch.ones(3, 2, dtype=torch.bool)), keys)


def test_a_key_does_not_hold_its_position():
    """Keys hold nothing that depends on the column alone, as learned positions do."""
    states, positions = torch.randn(3, 16, 8), 10.0 * torch.randn(16, 8)
    valid = torch.tensor([[True, True], [True, False], [True, True]])
    keys, moved = (span_keys(each, STARTS, 4, valid) for each in (states, states + positions))
    torch.testing.assert_close(keys[valid], moved[valid], atol=1e-5, rtol=1e-5)


def test_a_span_alone_at_its_column_is_centred_over_all():
    states = torch.randn(2, 16, 8)
    means = torch.stack([states[:, 2:6].mean(1), states[:, 10:14].mean(1)], dim=1)
    one_row = span_keys(states[:1], STARTS, 4, torch.ones(1, 2, dtype=torch.bool))
    torch.testing.assert_close(one_row, means[:1] - means[:1].mean(1, keepdim=True))
    keys = span_keys(states, STARTS, 4, torch.tensor([[True, True], [True, False]]))
    torch.testing.assert_close(keys[:, 0], means[:, 0] - means[:, 0].mean(0))
    of_all = (means[0, 0] + means[1, 0] + means[0, 1]) / 3
    torch.testing.assert_close(keys[0, 1], means[0, 1] - of_all)


@pytest.mark.parametrize("l2_normalize", [True, False])
def test_all_other_valid_spans_are_negatives(l2_normalize):
    torch.manual_seed(0)
    queries, keys = torch.randn(2, 12, 8)
    valid = torch.ones(12, dtype=torch.bool)
    valid[[3, 7]] = False
    losses = info_nce(queries, keys, valid, 0.1, l2_normalize)
    if l2_normalize:
        similarity = F.cosine_similarity(queries[valid][:, None].double(), keys[valid][None].double(), dim=-1)
    else:
        similarity = queries[valid].double() @ keys[valid].double().T / 8**0.5
    expected = F.cross_entropy(similarity / 0.1, torch.arange(10), reduction="none")
    torch.testing.assert_close(losses[valid].double(), expected, atol=1e-4, rtol=1e-4)
    assert not losses[~valid].any()


def test_without_valid_spans_loss_and_gradients_are_zero():
    queries, keys = torch.randn(2, 12, 8)
    queries.requires_grad_()
    losses = info_nce(queries, keys, torch.zeros(12, dtype=torch.bool), 0.1, True)
    losses.sum().backward()
    assert not losses.any() and not queries.grad.any()


def test_it_is_exact_under_autocast():
    queries, keys, valid = torch.randn(12, 8), torch.randn(12, 8), torch.ones(12, dtype=torch.bool)
    with torch.autocast("cpu", torch.bfloat16):
        losses = info_nce(queries, keys, valid, 0.1, True)
    assert torch.equal(losses, info_nce(queries, keys, valid, 0.1, True))
