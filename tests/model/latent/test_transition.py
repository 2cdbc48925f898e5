"""model/latent/transition.py: what a rollout reads, the gradient's way back, the sign of a collapse."""

import pytest
import torch

from model.latent.transition import Transition, dynamics_losses, rollout, variance_ratio


@pytest.fixture
def transition() -> Transition:
    torch.manual_seed(0)
    made = Transition(16, 2)
    torch.nn.init.normal_(made.nothing)
    return made


def recalled(transition: Transition, hidden: torch.Tensor, embeddings: torch.Tensor, first: int, column: int):
    """The slots that a rollout from `column` may look at, in the segment that begins at column `first`, one by one."""
    slots = [transition.nothing]
    for at in range(first + 1, column + 1):
        pair = torch.cat([transition.state_norm(hidden[at - 1]), transition.token_norm(embeddings[at])])
        slots.append(transition.memory(pair))
    return torch.stack(slots)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("segments", [None, [0] * 4 + [1] * 6])
def test_a_rollout_chains_steps_along_the_text(transition, depth, segments):
    """And recalls pairs of a state and the token after it, of its own segment and up to where it began."""
    hidden, embeddings = torch.randn(2, 2, 10, 16)
    segment_ids = None if segments is None else torch.tensor([segments] * 2)
    states = rollout(transition, hidden, embeddings, depth, segment_ids)
    assert [tuple(each.shape) for each in states] == [(2, 10 - i, 16) for i in range(1, depth + 1)]
    for column in (0, 4, 6):
        first = 0 if segments is None or column < 4 else 4
        slots = recalled(transition, hidden[1], embeddings[1], first, column)[None]
        expected = hidden[1:, column : column + 1]
        for step in range(1, depth + 1):
            allowed = torch.ones(1, 1, slots.shape[1], dtype=torch.bool)
            expected = transition(expected, embeddings[1:, column + step : column + step + 1], slots, allowed)
            torch.testing.assert_close(states[step - 1][1:, column : column + 1], expected, atol=1e-5, rtol=1e-4)


def test_what_was_read_is_recalled(transition):
    """The same state and token after another text are another prediction; what comes later changes nothing."""
    hidden, embeddings = torch.randn(2, 1, 10, 16)
    other = embeddings.clone()
    other[:, 4] = torch.randn(16)
    one, two = (rollout(transition, hidden, each, 2) for each in (embeddings, other))
    for step, (before, after) in enumerate(zip(one, two, strict=True), 1):
        differs = ~torch.isclose(before[0], after[0]).all(dim=-1)
        assert differs.tolist() == [False] * (4 - step) + [True] * 6


def test_the_gradient_into_the_state_is_halved_at_every_step_and_the_value_keeps_its_bits():
    class Nothing(torch.nn.Module):
        def remember(self, hidden, *_):
            return hidden.detach()

        def forward(self, hidden, *_):
            return hidden

    hidden = torch.randn(2, 10, 16, requires_grad=True)
    states = rollout(Nothing(), hidden, torch.zeros(2, 10, 16), 3)
    for step, predicted in enumerate(states, 1):
        assert torch.equal(predicted, hidden[:, : 10 - step])
        (gradient,) = torch.autograd.grad(predicted.sum(), hidden, retain_graph=True)
        assert (gradient[:, : 10 - step] == 0.5**step).all() and not gradient[:, 10 - step :].any()


def test_the_scale_does_not_drift(transition):
    hidden, embeddings = 5.0 * torch.randn(2, 40, 16), torch.randn(2, 40, 16)
    scale = [state.square().mean().sqrt().item() for state in rollout(transition, hidden, embeddings, 20)]
    assert scale == pytest.approx([1.0] * 20, abs=1e-3)


def test_small_embeddings_are_heard(transition):
    """A token's embedding is far smaller than a state; which token it is must still move the prediction."""
    hidden, embeddings = torch.randn(50, 16), 0.02 * torch.randn(2, 50, 16)
    one, other = (transition.up(transition_input(transition, hidden, each)) for each in embeddings)
    torch.testing.assert_close((one - other).std(), one.std(), rtol=0.4, atol=0)


def transition_input(transition, hidden, embeddings):
    return torch.cat([transition.state_norm(hidden), transition.token_norm(embeddings)], dim=-1)


def test_dynamics_compare_with_a_target_that_stands_still():
    predicted, hidden = torch.randn(2, 3, 5, 16, requires_grad=True)
    losses = dynamics_losses(predicted, hidden)
    distance = (predicted - hidden).double().abs()
    expected = torch.where(distance < 1, distance.square() / 2, distance - 0.5).mean(dim=-1)
    torch.testing.assert_close(losses.double(), expected, atol=1e-6, rtol=1e-6)
    predicted, hidden = predicted.detach().requires_grad_(), hidden.detach().requires_grad_()
    dynamics_losses(predicted, hidden).sum().backward()
    assert hidden.grad is None and predicted.grad.any()


def test_the_variance_of_predictions_tells_collapse():
    hidden = torch.randn(4, 50, 16)
    valid = torch.rand(4, 50) < 0.7
    ratio = variance_ratio(2.0 * hidden + 3.0, hidden, valid)
    assert ratio.item() == pytest.approx(4.0, rel=1e-4)
    assert variance_ratio(hidden[:1, :1].expand_as(hidden), hidden, valid) < 1e-6
    wild = torch.where(valid[..., None], hidden, 1e3 * hidden)  # what is not valid must not count
    assert variance_ratio(wild, hidden, valid).item() == pytest.approx(1.0, rel=1e-4)
    assert variance_ratio(hidden, hidden, torch.zeros_like(valid)) == 0
