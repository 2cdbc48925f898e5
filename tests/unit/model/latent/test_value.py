"""model/latent/value.py: bins that keep the mean, targets by a naive loop."""

import pytest
import torch

from model.latent.core import remaining_labels
from model.latent.value import MAX_NLL, NUM_BINS, ValueHead, expected_nll, two_hot, value_losses, value_targets


def test_two_neighbouring_bins_have_the_target_as_their_mean():
    nll = torch.cat([torch.linspace(0.0, MAX_NLL, 1001), torch.tensor([-1.0, 13.0])])
    probabilities = two_hot(nll)
    assert probabilities.shape == (1003, NUM_BINS)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(1003), atol=2e-5, rtol=0)
    assert ((probabilities > 0).sum(-1) <= 2).all()
    torch.testing.assert_close(expected_nll(probabilities.log()), nll.clamp(0.0, MAX_NLL), atol=1e-4, rtol=0)


def test_the_best_distribution_has_the_mean_of_the_targets():
    """The loss is least where the bins are the average two-hot, whose mean is the mean of the targets."""
    targets = torch.tensor([0.3, 2.0, 2.1, 7.7, 11.9], dtype=torch.float64)
    best = two_hot(targets).mean(0).clamp_min(1e-30).log().requires_grad_()
    value_losses(best.expand(5, -1), targets).sum().backward()
    assert best.grad.abs().max() < 1e-12
    assert expected_nll(best).item() == pytest.approx(targets.mean().item(), abs=1e-9)


def test_losses_equal_float64_cross_entropy():
    torch.manual_seed(0)
    logits, targets = torch.randn(40, 3, NUM_BINS), 14 * torch.rand(40, 3) - 1
    expected = torch.nn.functional.cross_entropy(
        logits.double().flatten(0, 1), two_hot(targets.double()).flatten(0, 1), reduction="none"
    )
    torch.testing.assert_close(value_losses(logits, targets).flatten().double(), expected, atol=1e-4, rtol=1e-5)


def test_targets_equal_a_naive_loop(packed):
    _, labels, segment_ids = packed
    token_nll = torch.rand(labels.shape).masked_fill(labels == -100, 0.0)
    token_nll[0] *= 1000  # neighbours of large numbers must not lose digits
    horizons = (1, 4, 16)
    targets, known = value_targets(token_nll, remaining_labels(segment_ids, labels), horizons)
    assert targets.dtype == torch.float32 and not targets.requires_grad
    assert targets.shape == known.shape == (4, 32, 3)
    for row in range(4):
        for column in range(32):
            for number, horizon in enumerate(horizons):
                ahead = [
                    token_nll[row, later].item()
                    for later in range(column, min(column + horizon, 32))
                    if segment_ids[row, later] == segment_ids[row, column] != -1
                ]
                assert known[row, column, number] == (len(ahead) >= max(1, horizon / 2)), (row, column, horizon)
                if ahead:
                    assert targets[row, column, number].item() == pytest.approx(sum(ahead) / len(ahead), rel=1e-6)


def test_a_head_reads_every_horizon_from_one_state():
    logits = ValueHead(16, (4, 16, 64))(torch.randn(2, 5, 16))
    assert logits.shape == (2, 5, 3, NUM_BINS) and logits.dtype == torch.float32
    assert expected_nll(logits).shape == (2, 5, 3)
