"""model/latent/rollout.py: what a rollout reads, and the gradient's way back."""

import pytest
import torch

from model import TransformerLM
from model.latent.rollout import Rollout, RolloutContext, roll_out
from model.latent.transition import Transition


def begin(transition: Transition, trunk: TransformerLM, ids: torch.Tensor, segments=None, start: int = 0) -> Rollout:
    context = RolloutContext.read(trunk, ids, trunk.states(ids, segment_ids=segments), segments)
    return Rollout(transition, trunk, context, start)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("segments", [None, [0] * 4 + [1] * 6])
def test_a_rollout_chains_steps_along_the_text(transition, depth, any_trunk, segments):
    """All columns at once equal each column by itself, from a text that ends there."""
    ids = torch.randint(50, (2, 10))
    segments = None if segments is None else torch.tensor([segments] * 2)
    hidden, embeddings = any_trunk.hidden_states(ids, segment_ids=segments), any_trunk.tokens(ids)
    states = roll_out(begin(transition, any_trunk, ids, segments), hidden, embeddings, depth)
    assert [tuple(each.shape) for each in states] == [(2, 10 - i, 16) for i in range(1, depth + 1)]
    for column in (0, 4, 6):
        cut = None if segments is None else segments[:, : column + 1]
        rollout = begin(transition, any_trunk, ids[:, : column + 1], cut, start=column)
        expected = hidden[:, column : column + 1]
        for step in range(1, depth + 1):
            expected = rollout.step(expected, embeddings[:, column + step : column + step + 1])
            torch.testing.assert_close(states[step - 1][:, column : column + 1], expected, atol=1e-4, rtol=1e-3)


def test_slots_hold_transitions_and_their_outcomes(transition, make_trunk):
    """A slot holds a state, a token and their outcome; where a text begins it holds nothing."""
    trunk, ids = make_trunk(), torch.randint(50, (1, 10))
    segments = torch.tensor([[0] * 4 + [1] * 6])
    slots = begin(transition, trunk, ids, segments).slots
    states, embeddings = trunk.states(ids, segment_ids=segments), trunk.tokens(ids)
    for column in range(10):
        expected = transition.nothing
        if column not in (0, 4):
            key = transition.state_norm(states.final[0, column - 1]), transition.token_norm(embeddings[0, column])
            outcome = transition.outcome_norm(states.final[0, column])
            expected = torch.cat([transition.query(torch.cat(key)), transition.outcome(outcome)])
        torch.testing.assert_close(slots[0, column], expected, atol=1e-5, rtol=1e-4)


def test_earlier_tokens_matter_and_later_ones_do_not(transition, make_trunk):
    trunk, ids = make_trunk(), torch.randint(50, (1, 10))
    hidden, embeddings = torch.randn(1, 10, 16), torch.randn(1, 10, 16)
    other = ids.clone()
    other[0, 4] = (other[0, 4] + 1) % 50
    one, two = (roll_out(begin(transition, trunk, each), hidden, embeddings, 2) for each in (ids, other))
    for step, (before, after) in enumerate(zip(one, two, strict=True), 1):
        differs = ~torch.isclose(before[0], after[0]).all(dim=-1)
        assert differs.tolist() == [False] * 4 + [True] * (6 - step)


def test_the_context_sends_the_trunk_no_gradient(transition, make_trunk):
    trunk, ids = make_trunk(), torch.randint(50, (1, 10))
    rollout = begin(transition, trunk, ids)
    hidden = torch.randn(1, 10, 16, requires_grad=True)
    states = roll_out(rollout, hidden, torch.randn(1, 10, 16), 2)
    torch.stack([state.square().sum() for state in states]).sum().backward()
    assert hidden.grad.any() and all(parameter.grad is None for parameter in trunk.parameters())
    assert all(parameter.grad.any() for parameter in transition.parameters())


def test_each_step_halves_the_gradient_and_keeps_the_bits():
    class Nothing:
        def step(self, hidden, embeddings):
            return hidden

    hidden = torch.randn(2, 10, 16, requires_grad=True)
    states = roll_out(Nothing(), hidden, torch.zeros(2, 10, 16), 3)
    for step, predicted in enumerate(states, 1):
        assert torch.equal(predicted, hidden[:, : 10 - step])
        (gradient,) = torch.autograd.grad(predicted.sum(), hidden, retain_graph=True)
        assert (gradient[:, : 10 - step] == 0.5**step).all() and not gradient[:, 10 - step :].any()


def test_the_scale_does_not_drift(transition, make_trunk):
    trunk, ids = make_trunk(norm="rms"), torch.randint(50, (1, 10))
    rollout, state = begin(transition, trunk, ids, start=9), 5.0 * torch.randn(1, 1, 16)
    scale = []
    for _ in range(20):
        state = rollout.step(state, torch.randn(1, 1, 16))
        scale.append(state.square().mean().sqrt().item())
    assert scale == pytest.approx([1.0] * 20, abs=1e-3)
