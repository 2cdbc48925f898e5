"""model/latent/transition.py, last_block.py: what a rollout reads, the gradient's way back, the sign of a collapse."""

import pytest
import torch

from model import ModelConfig, TransformerLM
from model.latent.transition import Rollout, Transition, dynamics_losses, roll_out, variance_ratio

KINDS = [
    {},
    {"positions": "rotary", "norm": "rms", "qk_norm": True, "mlp": "squared_relu"},
    {"positions": "rotary", "mlp": "swiglu", "num_layers": 1},
    {"bias": False},
]


@pytest.fixture
def transition() -> Transition:
    torch.manual_seed(0)
    made = Transition(16, 2)
    torch.nn.init.normal_(made.nothing)
    return made


def trunk(**changes) -> TransformerLM:
    torch.manual_seed(0)
    config = {"num_layers": 2, "num_heads": 2, "hidden_size": 16, "seq_length": 12, "init_std": 0.3}
    return TransformerLM(ModelConfig(**(config | changes)), 50)


def begin(transition: Transition, model: TransformerLM, ids: torch.Tensor, segments=None, start: int = 0) -> Rollout:
    text = model.text(ids, model.states(ids, segment_ids=segments), segments)
    return Rollout(transition, model.last_block, text, start)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("segments", [None, [0] * 4 + [1] * 6])
def test_the_last_block_makes_of_what_the_trunk_gives_it_the_trunks_own_states(kind, segments):
    """Each position by itself, with the keys and values of those before it: first of the text, then of steps."""
    model, ids = trunk(**kind), torch.randint(50, (2, 10))
    segments = None if segments is None else torch.tensor([segments] * 2)
    states, allowed = model.states(ids, segment_ids=segments), model._allowed(10, segments)
    keys, values = model.last_block.remember(states.before_last)
    for read in (1, 5, 7):
        steps = []
        for at in range(read, 10):
            same = segments is None or segments[0, at] == segments[0, read]
            if not same:
                break
            text = keys[:, :, :read], values[:, :, :read]
            made = model.last_block(
                states.before_last[:, at : at + 1], at, text, allowed[..., at : at + 1, :read], steps
            )
            torch.testing.assert_close(made[:, 0], states.final[:, at], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("segments", [None, [0] * 4 + [1] * 6])
def test_a_rollout_chains_steps_along_the_text(transition, depth, kind, segments):
    """All columns at once are each column by itself, from a text that ends there, in the segment that it is in."""
    model, ids = trunk(**kind), torch.randint(50, (2, 10))
    segments = None if segments is None else torch.tensor([segments] * 2)
    hidden, embeddings = model.hidden_states(ids, segment_ids=segments), model.tokens(ids)
    states = roll_out(begin(transition, model, ids, segments), hidden, embeddings, depth)
    assert [tuple(each.shape) for each in states] == [(2, 10 - i, 16) for i in range(1, depth + 1)]
    for column in (0, 4, 6):
        cut = None if segments is None else segments[:, : column + 1]
        rollout = begin(transition, model, ids[:, : column + 1], cut, start=column)
        expected = hidden[:, column : column + 1]
        for step in range(1, depth + 1):
            expected = rollout.step(expected, embeddings[:, column + step : column + step + 1])
            torch.testing.assert_close(states[step - 1][:, column : column + 1], expected, atol=1e-4, rtol=1e-3)


def test_what_came_of_like_transitions_is_recalled(transition):
    """A slot holds what met and what came of it; where a text begins it stands for nothing."""
    model, ids = trunk(), torch.randint(50, (1, 10))
    segments = torch.tensor([[0] * 4 + [1] * 6])
    slots = begin(transition, model, ids, segments).slots
    states, embeddings = model.states(ids, segment_ids=segments), model.tokens(ids)
    for column in range(10):
        expected = transition.nothing
        if column not in (0, 4):
            met = transition.state_norm(states.final[0, column - 1]), transition.token_norm(embeddings[0, column])
            came = transition.outcome_norm(states.final[0, column])
            expected = torch.cat([transition.query(torch.cat(met)), transition.outcome(came)])
        torch.testing.assert_close(slots[0, column], expected, atol=1e-5, rtol=1e-4)


def test_what_was_read_matters_and_what_comes_later_does_not(transition):
    model, ids = trunk(), torch.randint(50, (1, 10))
    hidden, embeddings = torch.randn(1, 10, 16), torch.randn(1, 10, 16)
    other = ids.clone()
    other[0, 4] = (other[0, 4] + 1) % 50
    one, two = (roll_out(begin(transition, model, each), hidden, embeddings, 2) for each in (ids, other))
    for step, (before, after) in enumerate(zip(one, two, strict=True), 1):
        differs = ~torch.isclose(before[0], after[0]).all(dim=-1)
        assert differs.tolist() == [False] * 4 + [True] * (6 - step)


def test_the_trunk_gets_no_gradient_from_what_is_remembered_or_read(transition):
    model, ids = trunk(), torch.randint(50, (1, 10))
    rollout = begin(transition, model, ids)
    hidden = torch.randn(1, 10, 16, requires_grad=True)
    states = roll_out(rollout, hidden, torch.randn(1, 10, 16), 2)
    torch.stack([state.square().sum() for state in states]).sum().backward()
    assert hidden.grad.any() and all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.grad.any() for parameter in transition.parameters())


def test_the_gradient_into_the_state_is_halved_at_every_step_and_the_value_keeps_its_bits():
    class Nothing:
        def step(self, hidden, embeddings):
            return hidden

    hidden = torch.randn(2, 10, 16, requires_grad=True)
    states = roll_out(Nothing(), hidden, torch.zeros(2, 10, 16), 3)
    for step, predicted in enumerate(states, 1):
        assert torch.equal(predicted, hidden[:, : 10 - step])
        (gradient,) = torch.autograd.grad(predicted.sum(), hidden, retain_graph=True)
        assert (gradient[:, : 10 - step] == 0.5**step).all() and not gradient[:, 10 - step :].any()


def test_the_scale_does_not_drift(transition):
    model, ids = trunk(norm="rms"), torch.randint(50, (1, 10))
    rollout, state = begin(transition, model, ids, start=9), 5.0 * torch.randn(1, 1, 16)
    scale = []
    for _ in range(20):
        state = rollout.step(state, torch.randn(1, 1, 16))
        scale.append(state.square().mean().sqrt().item())
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
