"""model/decoding/planning/planner.py: without weights a plan is greedy writing, with them it keeps to what was read."""

import pytest
import torch

from model.decoding.fitted import PlanWeights
from model.decoding.generate import generate_tokens
from model.decoding.planning.planner import entropy, planned_tokens
from model.decoding.planning.router import CANDIDATES, ROUTED
from model.decoding.settings import GenerationSettings

EOS = 0
PROMPTS = ([], [5, 6, 7], list(range(1, 39)))
SETTINGS = [{}, {"speculate": True}, {"no_repeat_ngram": 3, "speculate": True}, {"repetition_penalty": 1.3}]


def weights_of(way: str = "drafter", threshold: float = -1.0, weight: float = 0.0) -> PlanWeights:
    return PlanWeights(threshold=threshold, continuation=weight, value=weight, verified=weight, foresight=way)


@torch.inference_mode()
def planned(decoder, model, prompt, settings, weights):
    return list(planned_tokens(decoder, 0, prompt, settings, EOS, set(), model, weights))


@pytest.mark.parametrize("way", ["drafter", "rollout", "path"])
@pytest.mark.parametrize("changes", SETTINGS)
def test_without_weights_the_tokens_are_the_greedy_ones(model, make_decoder, changes, way):
    """Wherever it plans, over several windows, also where it ends early."""
    for prompt, threshold, stop_at_eos in zip(PROMPTS, (-1.0, 2.5, -1.0), (True, False, False), strict=True):
        settings = GenerationSettings(max_new_tokens=40, temperature=0, stop_at_eos=stop_at_eos, **changes)
        with torch.inference_mode():
            greedy = list(generate_tokens(make_decoder(1), [prompt], settings, EOS, [0], set()))
        tokens = planned(make_decoder(ROUTED), model, prompt, settings, weights_of(way, threshold))
        assert [(one.id, one.stopped) for one in tokens] == [(one.id, one.stopped) for one in greedy]


@pytest.mark.parametrize("way", ["drafter", "rollout", "path"])
def test_it_plans_where_the_model_is_uncertain_and_nowhere_else(model, make_decoder, way):
    settings = GenerationSettings(max_new_tokens=18, temperature=0, stop_at_eos=False, logprobs=0)
    lines = []
    tokens = planned(make_decoder(ROUTED), model, [5], settings, weights_of(way, 2.5, 1.0))
    ids = [token.id for token in tokens]
    with torch.no_grad():
        lines = model.logits(model.states(torch.tensor([[EOS, 5, *ids]])).final)[0, 1:-1]
    uncertain = (entropy(lines) > 2.5).tolist()
    assert 0 < sum(uncertain) < len(ids)
    for at, token in enumerate(tokens):
        # near the end there is no room for what is read behind a candidate
        planned_here = uncertain[at] and len(ids) - at > 4
        assert (token.choice is not None) == planned_here
        assert token.logprob == pytest.approx(lines[at].log_softmax(-1)[token.id].item(), abs=1e-3)
        if token.choice is None:
            assert token.id == lines[at].argmax()
        else:
            assert len(token.choice.candidates) == CANDIDATES and not token.drafted
            assert token.choice.candidates[token.choice.chosen].token == token.id
    assert any(token.choice is not None and token.id != lines[at].argmax() for at, token in enumerate(tokens))


def test_one_choice_for_each_forward_call_at_most(model, make_decoder):
    calls = []
    decoder = make_decoder(ROUTED)
    verify = decoder.verify
    decoder.verify = lambda tokens: calls.append(tuple(tokens.shape)) or verify(tokens)
    settings = GenerationSettings(max_new_tokens=15, temperature=0, stop_at_eos=False)
    tokens = planned(decoder, model, [5, 6], settings, weights_of("drafter", -1.0, 1.0))
    choices = sum(token.choice is not None for token in tokens)
    assert calls == [(ROUTED, 4)] * choices and choices > 3


def test_the_end_of_the_text_is_no_candidate(model, make_decoder):
    settings = GenerationSettings(max_new_tokens=40, temperature=0)
    for prompt in PROMPTS:
        for token in planned(make_decoder(ROUTED), model, prompt, settings, weights_of("rollout", -1.0, 1.0)):
            if token.choice is not None:
                assert EOS not in [one.token for one in token.choice.candidates]
