"""model/decoding/forecast.py, and LanguageModel.look_ahead: forecasts read no later token and agree with the model."""

from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F

from model import LanguageModel, TransformerLM
from model.decoding.forecast import forecast
from model.latent import expected_nll

EOS = 0


@pytest.fixture
def model(model_with_core) -> TransformerLM:
    return model_with_core


def test_a_forecast_depends_on_no_later_token(model, token_ids):
    before = token_ids[:32]
    after = before.clone()
    after[9:] = (after[9:] + 1) % 500
    one, other = (forecast(model, ids, depth=3) for ids in (before, after))
    for name in ("guesses", "probabilities", "expected"):
        ours, theirs = getattr(one, name), getattr(other, name)
        assert torch.equal(ours[:9], theirs[:9]) and not torch.equal(ours[9:], theirs[9:])
    assert torch.equal(one.token_nll[:8], other.token_nll[:8])


def test_guesses_follow_the_likeliest_token_step_by_step(model, token_ids):
    ids = token_ids[:32]
    result = forecast(model, ids, depth=2, best=4)
    with torch.no_grad():
        states = model.states(ids[None, :21])  # of what was read, and nothing after it
        rollout = model.latent.begin_rollout(model, ids[None, :21], states, start=20)
        state = states.final[0, 20]
        for place in range(3):
            probabilities, tokens = model.logits(state).softmax(-1).topk(4)
            assert torch.equal(result.guesses[20, place], tokens)
            torch.testing.assert_close(result.probabilities[20, place], probabilities, atol=1e-6, rtol=1e-4)
            state = rollout.step(state[None, None], model.tokens(tokens[:1])[None])[0, 0]


def test_expected_and_realised_difficulty(model, token_ids):
    ids = token_ids[:32]
    result = forecast(model, ids, depth=1)
    with torch.no_grad():
        hidden = model.hidden_states(ids[None])[0]
        nll = F.cross_entropy(model.logits(hidden[:-1]), ids[1:], reduction="none")
        torch.testing.assert_close(result.expected, expected_nll(model.latent.value(hidden)))
    torch.testing.assert_close(result.token_nll[:-1], nll)
    torch.testing.assert_close(result.realised[10], torch.stack([nll[10:14].mean(), nll[10:26].mean()]))
    assert result.known[:, 0].tolist() == [True] * 30 + [False] * 2  # half of 4 tokens are left
    assert result.known[:, 1].tolist() == [True] * 24 + [False] * 8


@pytest.fixture
def language_model(model, tokenizer) -> LanguageModel:
    return LanguageModel(model, tokenizer.to_str(), EOS)


def test_look_ahead_has_text_for_tokens(language_model, text):
    tokens = language_model.look_ahead(text[:40], depth=2, best=2)
    assert "".join(token.token for token in tokens[1:]) == text[:40]
    assert all(len(token.guesses) == 3 and all(len(place) == 2 for place in token.guesses) for token in tokens)
    assert set(tokens[0].expected_nll) == {4, 16} == set(tokens[-1].expected_nll) and tokens[-1].realised_nll == {}
    keys = ["token", "guesses", "expected_nll", "realised_nll", "drafted", "accepted"]
    assert list(asdict(tokens[0])) == keys  # of an evaluation's event in metrics.jsonl


def test_drafts_are_accepted_as_greedy_writing_accepts_them(model, token_ids):
    model.eval()
    ids = token_ids[:20]
    result = forecast(model, ids, depth=1)
    assert result.drafts[0] == [] and all(len(drafts) == 3 for drafts in result.drafts[1:])
    for at in range(1, 20):
        drafts, accepted = result.drafts[at], 0
        while accepted < 3:
            read = torch.cat([ids[: at + 1], torch.tensor(drafts[:accepted], dtype=torch.int64)])
            with torch.no_grad():
                if model.logits(model.hidden_states(read[None])[0, -1]).argmax() != drafts[accepted]:
                    break
            accepted += 1
        assert result.accepted[at] == accepted
    some = forecast(model, ids, depth=1, draft_after=range(4, 6))
    assert [bool(drafts) for drafts in some.drafts] == [at in (4, 5) for at in range(20)]
    assert some.drafts[4] == result.drafts[4]


def test_without_a_core_only_the_next_token_is_guessed(config, tokenizer, text):
    torch.manual_seed(0)
    lm = LanguageModel(TransformerLM(config, 500), tokenizer.to_str(), EOS)
    tokens = lm.look_ahead(text[:40])
    assert all(len(token.guesses) == 1 and not token.expected_nll and not token.realised_nll for token in tokens)


@pytest.mark.parametrize("length", [0, 2000])
def test_a_text_that_does_not_fit_is_refused(language_model, text, length):
    with pytest.raises(ValueError, match="give one of at least 1 and at most 31"):
        language_model.look_ahead(text[:length])
