"""model/latent/transition.py: its inputs, the loss of the dynamics, the sign of a collapse."""

import pytest
import torch

from model.latent.transition import dynamics_losses, variance_ratio


def test_small_embeddings_matter(transition):
    """A token's embedding is far smaller than a state; which token it is must still move the prediction."""
    hidden, embeddings = torch.randn(50, 16), 0.02 * torch.randn(2, 50, 16)
    one, other = (
        transition.up(torch.cat([transition.state_norm(hidden), transition.token_norm(each)], dim=-1))
        for each in embeddings
    )
    torch.testing.assert_close((one - other).std(), one.std(), rtol=0.4, atol=0)


def test_dynamics_give_the_true_state_no_gradient():
    predicted, hidden = torch.randn(2, 3, 5, 16, requires_grad=True)
    losses = dynamics_losses(predicted, hidden)
    distance = (predicted - hidden).double().abs()
    expected = torch.where(distance < 1, distance.square() / 2, distance - 0.5).mean(dim=-1)
    torch.testing.assert_close(losses.double(), expected, atol=1e-6, rtol=1e-6)
    predicted, hidden = predicted.detach().requires_grad_(), hidden.detach().requires_grad_()
    dynamics_losses(predicted, hidden).sum().backward()
    assert hidden.grad is None and predicted.grad.any()


def test_the_variance_ratio_shows_collapse():
    hidden = torch.randn(4, 50, 16)
    valid = torch.rand(4, 50) < 0.7
    ratio = variance_ratio(2.0 * hidden + 3.0, hidden, valid)
    assert ratio.item() == pytest.approx(4.0, rel=1e-4)
    assert variance_ratio(hidden[:1, :1].expand_as(hidden), hidden, valid) < 1e-6
    wild = torch.where(valid[..., None], hidden, 1e3 * hidden)  # other positions do not count
    assert variance_ratio(wild, hidden, valid).item() == pytest.approx(1.0, rel=1e-4)
    assert variance_ratio(hidden, hidden, torch.zeros_like(valid)) == 0
