"""model/row_weights.py: the weights by hand, and what they do to the loss and its gradient; those of tokens, too."""

import math

import pytest
import torch

from model import TransformerLM
from model.row_weights import QUANTILES, gain_weights, row_losses, row_weights

THRESHOLDS = torch.tensor([1.0, 2.0, 2.5, 3.0, 4.0, 6.0])


@pytest.fixture
def batch(token_ids):
    labels = token_ids[1:257].view(8, 32).clone()
    labels[3, 20:] = -100
    labels[7] = -100
    return token_ids[:256].view(8, 32), labels


def thresholds_of(row_loss: torch.Tensor) -> torch.Tensor:
    return torch.quantile(row_loss, torch.tensor(QUANTILES))


def test_row_losses_are_means_over_labels():
    labels = torch.tensor([[3, 4, -100], [5, -100, -100], [-100, -100, -100]])
    token_nll = torch.tensor([[1.0, 2.0, 0.0], [4.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    assert row_losses(token_nll, labels).tolist() == [1.5, 4.0, 0.0]


@pytest.mark.parametrize("temperature", [0.25, 1.0, 4.0])
def test_weights_follow_the_rank_among_recent_rows(temperature):
    """Relative to a usual row: exp((f - 1) / r) below the 20th percentile, 1 above, capped above the 98th."""
    losses = torch.tensor([0.5, 1.0, 1.5, 2.0, 2.75, 4.0, 5.0, 6.0, 12.0])
    ease = torch.tensor([0.0, 0.0, 0.125, 0.25, 0.625, 1.0, 1.0, 1.0, 1.0])
    weights = row_weights(losses, THRESHOLDS, temperature)
    expected = torch.exp((ease - 1) / temperature)
    expected[-1] = 0.5
    torch.testing.assert_close(weights / weights[6], expected)


@pytest.mark.parametrize("temperature", [0.01, 0.3, 1.0, 10.0])
def test_weights_are_about_one_on_average(temperature):
    losses = torch.linspace(2.0, 6.0, 10_001)
    weights = row_weights(losses, thresholds_of(losses), temperature)
    assert weights.mean().item() == pytest.approx(1.0, abs=1e-3)  # the cap takes a little away
    assert (weights.diff()[:9_000] >= 0).all()


def test_equal_losses_and_empty_rows_have_finite_weights():
    weights = row_weights(torch.tensor([0.0, 3.0, 3.1, 6.0]), torch.full((6,), 3.0), 1.0)
    torch.testing.assert_close(weights / weights[0], torch.tensor([1.0, 1.0, math.e * 3.0 / 3.1, math.e / 2]))


def test_the_loss_is_the_weighted_sum_of_the_rows(config, batch):
    torch.manual_seed(0)
    model = TransformerLM(config, 500)
    plain = model(*batch)
    thresholds = thresholds_of(row_losses(plain.token_nll, batch[1])[:7])
    weights = row_weights(row_losses(plain.token_nll, batch[1]), thresholds, 0.5)
    assert weights[:7].min() < 0.5 < 1.0 < weights[:7].max()
    expected = sum(w * model(ids[None], labels[None]).loss_sum for w, ids, labels in zip(weights, *batch, strict=True))

    output = model(*batch, difficulty=thresholds, curriculum_temperature=0.5)
    assert torch.equal(output.token_nll, plain.token_nll)  # what is reported is never weighted
    torch.testing.assert_close(output.loss_sum, expected)
    parameters = list(model.parameters())
    actual = torch.autograd.grad(output.loss_sum, parameters)
    torch.testing.assert_close(actual, torch.autograd.grad(expected, parameters), atol=1e-4, rtol=1e-4)


def test_compiled_once_for_all_thresholds(config, batch):
    torch.manual_seed(0)
    model = TransformerLM(config, 500)
    segment_ids = torch.zeros(8, 32, dtype=torch.int32)
    expected = [model(*batch, segment_ids, THRESHOLDS + shift, 0.5).loss_sum for shift in (3.0, 3.5)]
    model.compile(backend="aot_eager", fullgraph=True)
    losses = [model(*batch, segment_ids, THRESHOLDS + 3.0, 0.5).loss_sum]
    with torch.compiler.set_stance("fail_on_recompile"):
        losses.append(model(*batch, segment_ids, THRESHOLDS + 3.5, 0.5).loss_sum)
    torch.testing.assert_close(losses, expected)
    losses[1].backward()


def test_tokens_that_tell_more_count_more_and_a_row_counts_as_before():
    labels = torch.tensor([[3, 4, 5, -100], [5, -100, -100, -100], [-100, -100, -100, -100]])
    gain = torch.tensor([[0.0, 1.0, 2.0, 50.0], [7.0, 8.0, 9.0, 9.0], [1.0, 2.0, 3.0, 4.0]])
    weights = gain_weights(gain, labels, 0.5)
    expected = torch.exp(0.5 * gain[0, :3])
    torch.testing.assert_close(weights[0, :3], expected / expected.mean())
    assert weights[1].tolist() == [1.0, 0.0, 0.0, 0.0] and weights[2].tolist() == [0.0] * 4
    torch.testing.assert_close(gain_weights(1e4 * gain, labels, 0.5)[0], torch.tensor([0.0, 0.0, 3.0, 0.0]))
