"""The indices of states, tokens and targets, across trunk, transition, policy and value, on a Markov chain of second
order, whose right answers are known.

The next symbol depends on the last two. After k steps along the text a prediction has read both, so logits(h^_{t+k})
must reach the chain's entropy for x_{t+k+1}. Indices shifted by one would have to guess a symbol, or would learn the
wrong one: both cost more than the tolerance.
"""

import pytest
import torch

from model import AuxiliaryConfig, ModelConfig, TransformerLM
from model.latent import LookAheadSampler, Trained, expected_nll

SYMBOLS, LENGTH, DEPTH = 6, 24, 3


class Chain:
    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.generator = generator
        self.next = torch.softmax(3.0 * torch.randn(SYMBOLS, SYMBOLS, SYMBOLS, generator=generator), dim=-1)

    def draw(self, rows: int) -> torch.Tensor:
        """(rows, LENGTH + 1) symbols."""
        text = torch.randint(SYMBOLS, (rows, LENGTH + 1), generator=self.generator)
        for column in range(2, LENGTH + 1):
            probabilities = self.next[text[:, column - 2], text[:, column - 1]]
            text[:, column] = torch.multinomial(probabilities, 1, generator=self.generator)[:, 0]
        return text

    def nll(self, text: torch.Tensor, column: int) -> torch.Tensor:
        """(rows,): the true NLL of the symbol at `column`, whose mean is the entropy."""
        return -self.next[text[:, column - 2], text[:, column - 1], text[:, column]].log()


@pytest.fixture(scope="module")
def trained() -> tuple[TransformerLM, torch.Tensor, Chain]:
    """A model that has learned the chain, and rows that it was not trained on."""
    chain = Chain()
    auxiliary = AuxiliaryConfig(
        enable_policy=True,
        enable_dynamics=True,
        enable_value=True,
        policy_kl_weight=1.0,
        dynamics_weight=1.0,
        value_weight=1.0,
        auxiliary_warmup_fraction=0.0,
        rollout_depth=3,
        rollout_row_fraction=1.0,
        policy_position_fraction=0.5,
        value_horizons=(1, 2),
        span_length=4,
    )
    torch.manual_seed(0)
    model = TransformerLM(
        ModelConfig(num_layers=2, num_heads=2, hidden_size=32, seq_length=LENGTH, init_std=0.1), SYMBOLS, auxiliary
    )
    sampler = LookAheadSampler(auxiliary, LENGTH, seed=0)
    steps = 250
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, steps)
    whole = torch.zeros(64, LENGTH, dtype=torch.int32)
    for step in range(steps):
        text = chain.draw(64)
        draw = sampler.draw(whole, Trained.alike(1.0), step)
        loss = model(text[:, :-1], text[:, 1:], look_ahead=draw).loss_sum / (64 * LENGTH)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval(), chain.draw(1024), chain


def test_the_policy_reaches_the_entropy_at_every_depth(trained):
    model, text, chain = trained
    with torch.no_grad():
        states = [model.hidden_states(text[:, :-1]), *model.latent.rollout(model, text[:, :-1], DEPTH)]
        for depth, predicted in enumerate(states):
            log_p = model.logits(predicted).log_softmax(-1)
            for start in (4, 10, 13):  # columns of h_t; x_{t+1} ... x_{t+depth} are read, the next one is predicted
                next_one = start + depth + 1
                ours = -log_p[:, start].gather(1, text[:, next_one, None]).mean()
                # less than the entropy would mean that the answer was read
                assert abs(ours - chain.nll(text, next_one).mean()) < 0.04, f"depth {depth}, column {start}"


def test_a_shift_by_one_exceeds_the_tolerance(trained):
    """One symbol more or less is worth far more than the tolerance above."""
    _, text, chain = trained
    entropy = chain.nll(text, 12).mean()
    flat = chain.draw(4096)[:, 4:].flatten()
    knows_one = torch.zeros(SYMBOLS, SYMBOLS).index_put_((flat[:-1], flat[1:]), torch.tensor(1.0), accumulate=True)
    knows_one = knows_one / knows_one.sum(1, keepdim=True)
    assert -knows_one[text[:, 11], text[:, 12]].log().mean() > entropy + 0.2


def test_a_prediction_has_the_value_of_the_true_state(trained):
    """K = 1: the value at column t is the known entropy of what follows x_t; so is that of a prediction."""
    model, text, chain = trained
    entropies = -(chain.next * chain.next.log()).sum(-1)
    with torch.no_grad():
        states = [model.hidden_states(text[:, :-1]), *model.latent.rollout(model, text[:, :-1], DEPTH)]
        for depth, predicted in enumerate(states):
            value = expected_nll(model.latent.value(predicted[:, 10]))[:, 0]
            known = entropies[text[:, 10 + depth - 1], text[:, 10 + depth]]
            shifted = entropies[text[:, 10 + depth - 2], text[:, 10 + depth - 1]]
            assert (value - known).square().mean() < 0.3 * known.var(), f"depth {depth}"
            assert (value - shifted).square().mean() > known.var(), f"depth {depth}"


def test_predicted_states_explain_the_true_ones(trained):
    model, text, _ = trained
    with torch.no_grad():
        hidden = model.hidden_states(text[:, :-1])
        for depth, predicted in enumerate(model.latent.rollout(model, text[:, :-1], DEPTH), 1):
            error = (predicted - hidden[:, depth:]).flatten(0, 1).square().mean()
            assert error < 0.5 * hidden.flatten(0, 1).var(dim=0).mean(), f"depth {depth}"
