"""model/latent/foresight.py: what is said at a token rests on nothing after it, and agrees with model and parts."""

import pytest
import torch
import torch.nn.functional as F

from model import LanguageModel, TransformerLM
from model.latent import expected_nll, foresee

EOS = 0


def test_what_is_said_at_a_token_depends_on_nothing_after_it(model, token_ids):
    before = token_ids[:32]
    after = before.clone()
    after[9:] = (after[9:] + 1) % 500
    one, other = (foresee(model, ids, depth=3) for ids in (before, after))
    for ours, theirs in zip(one[1:4], other[1:4], strict=True):  # guesses, probabilities, expected
        assert torch.equal(ours[:9], theirs[:9]) and not torch.equal(ours[9:], theirs[9:])
    assert torch.equal(one.token_nll[:8], other.token_nll[:8])


def test_guesses_follow_the_likeliest_token_step_by_step(model, token_ids):
    ids = token_ids[:32]
    said = foresee(model, ids, depth=2, best=4)
    with torch.no_grad():
        states = model.states(ids[None, :21])  # of what was read, and nothing after it
        rollout = model.latent.begin(model.last_block, model.text(ids[None, :21], states), start=20)
        state = states.final[0, 20]
        for place in range(3):
            probabilities, tokens = model.logits(state).softmax(-1).topk(4)
            assert torch.equal(said.guesses[20, place], tokens)
            torch.testing.assert_close(said.probabilities[20, place], probabilities, atol=1e-6, rtol=1e-4)
            state = rollout.step(state[None, None], model.tokens(tokens[:1])[None])[0, 0]


def test_expected_and_realised_difficulty(model, token_ids):
    ids = token_ids[:32]
    said = foresee(model, ids, depth=1)
    with torch.no_grad():
        hidden = model.hidden_states(ids[None])[0]
        nll = F.cross_entropy(model.logits(hidden[:-1]), ids[1:], reduction="none")
        torch.testing.assert_close(said.expected, expected_nll(model.latent.value(hidden)))
    torch.testing.assert_close(said.token_nll[:-1], nll)
    torch.testing.assert_close(said.realised[10], torch.stack([nll[10:14].mean(), nll[10:26].mean()]))
    assert said.known[:, 0].tolist() == [True] * 30 + [False] * 2  # half of 4 tokens are left
    assert said.known[:, 1].tolist() == [True] * 24 + [False] * 8


def test_the_cost_of_a_path_and_what_it_leads_to(model):
    states, costs = torch.randn(5, 32), torch.rand(5, 3)
    with torch.no_grad():
        expected = costs.sum(1, keepdim=True) + torch.tensor([4, 16]) * expected_nll(model.latent.value(states))
        torch.testing.assert_close(model.latent.path_value(costs, states), expected)


@pytest.fixture
def language_model(model, tokenizer) -> LanguageModel:
    return LanguageModel(model, tokenizer.to_str(), EOS)


def test_a_text_is_read_with_words_for_tokens(language_model, text):
    said = language_model.look_ahead(text[:40], depth=2, best=2)
    assert "".join(ahead.token for ahead in said[1:]) == text[:40]
    assert all(len(ahead.guesses) == 3 and all(len(place) == 2 for place in ahead.guesses) for ahead in said)
    assert set(said[0].expected_nll) == {4, 16} == set(said[-1].expected_nll) and said[-1].realised_nll == {}


def test_a_model_without_the_core_guesses_the_next_token_only(config, tokenizer, text):
    torch.manual_seed(0)
    lm = LanguageModel(TransformerLM(config, 500), tokenizer.to_str(), EOS)
    said = lm.look_ahead(text[:40])
    assert all(len(ahead.guesses) == 1 and not ahead.expected_nll and not ahead.realised_nll for ahead in said)


@pytest.mark.parametrize("length", [0, 2000])
def test_a_text_that_does_not_fit_is_refused(language_model, text, length):
    with pytest.raises(ValueError, match="give one of at least 1 and at most 31"):
        language_model.look_ahead(text[:length])
