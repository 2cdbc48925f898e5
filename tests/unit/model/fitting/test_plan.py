"""model/fitting/plan.py: what a choice is worth, and the weights that are worth most."""

from dataclasses import replace

import pytest
import torch

from model import LanguageModel
from model.decoding.decoder import Weights
from model.decoding.fitted import PlanWeights
from model.decoding.planning.foresight import Foreseen
from model.decoding.planning.planner import entropy
from model.decoding.planning.router import CANDIDATES, candidates_of
from model.fitting.plan import FURTHEST, Gates, best_weights, fit_plan, gates, uncertain_places, worth


def weights_of(continuation: float = 0.0, value: float = 0.0, verified: float = 0.0) -> PlanWeights:
    return PlanWeights(threshold=1.0, continuation=continuation, value=value, verified=verified, foresight="drafter")


def four_gates() -> Gates:
    """Of the first three the continuation tells the second candidate, of which the text has three tokens; the fourth is
    the first."""
    logprobs = torch.tensor([[-1.0, -1.2, -2.0, -3.0]]).repeat(4, 1)
    continuation = torch.tensor([[-2.0, -0.5, -2.0, -2.0]] * 3 + [[-0.5, -0.5, -2.0, -2.0]])
    foreseen = Foreseen(torch.zeros(4, 4, 3), continuation, torch.zeros(4, 4))
    return Gates(
        logprobs,
        {"drafter": foreseen},
        {"drafter": continuation},
        torch.tensor([1, 1, -1, 0]),
        torch.tensor([3.0, 3, 1, 2]),
    )


def test_a_choice_is_worth_the_tokens_that_are_right_behind_it():
    found = four_gates()
    assert worth(found, weights_of()).tolist() == [0, 0, 0, 2]
    assert worth(found, weights_of(verified=1.0)).tolist() == [3, 3, 0, 2]
    assert worth(found, weights_of(continuation=1.0)).tolist() == [0, 0, 0, 2]  # it routes, and does not decide
    fit = best_weights(found, 4.5)
    assert worth(found, fit.weights).sum() == 8 and fit.weights.threshold == 4.5
    assert (fit.weights.continuation, fit.weights.value) == (0.0, 0.0)  # the smallest that do it
    assert fit.gain == pytest.approx(1.5) and fit.greedy == 0.5 and fit.gates == 4 and fit.standard_error > 0


def test_where_nothing_helps_it_is_greedy():
    found = four_gates()._replace(came=torch.zeros(4, dtype=torch.int64))
    fit = best_weights(found, 4.5)
    assert (fit.weights.continuation, fit.weights.value, fit.weights.verified, fit.gain) == (0.0, 0.0, 0.0, 0.0)
    assert fit.weights.threshold > 1e6  # so that it costs nothing


@torch.inference_mode()
def test_gates_are_read_as_the_text_has_them(model_with_core, token_ids):
    model = model_with_core.eval()
    rows = [token_ids[:33], token_ids[40:73]]
    threshold, read = uncertain_places(model, rows)
    entropies = torch.cat([entropy(model.logits(model.hidden_states(row[None, :-1])[0])) for row in rows])
    assert (entropies > threshold).float().mean() == pytest.approx(0.2, abs=0.03)
    found = gates(model, Weights(model, "fp32").decoder(CANDIDATES), read, ["drafter", "rollout", "path"])
    at = 0
    for row, some in read:
        assert some == sorted(some, reverse=True) and max(some) < 32 - FURTHEST
        logits = model.logits(model.hidden_states(row[None, :-1])[0])
        for place in some:
            tokens, logprobs = candidates_of(logits[place])
            torch.testing.assert_close(found.logprobs[at], logprobs, rtol=1e-4, atol=1e-4)
            came = found.came[at].item()
            assert (tokens[came] == row[place + 1]) if came >= 0 else (row[place + 1] not in tokens)
            right = 1
            while right < FURTHEST and logits[place + right].argmax() == row[place + right + 1]:
                right += 1
            assert found.right[at] == right
            # what the model says after a candidate, read by itself
            candidate, foreseen = tokens[3], found.foreseen["rollout"].tokens[at, 3]
            alone = torch.cat([row[: place + 1], candidate[None], foreseen])
            lines = model.logits(model.hidden_states(alone[None])[0, place + 1 :]).log_softmax(-1).max(-1)
            stood = int((lines.indices[:-1] == foreseen).long().cumprod(0).sum())
            torch.testing.assert_close(
                found.verified["rollout"][at, 3], lines.values[: stood + 1].mean(), rtol=1e-3, atol=1e-3
            )
            at += 1
    assert at == len(found.came) > 5
    assert torch.equal(found.verified["path"], found.verified["rollout"])
    assert not torch.allclose(found.foreseen["path"].value, found.foreseen["rollout"].value)


def test_a_model_plans_with_what_was_fitted(model_with_core, tokenizer, text, trained):
    lm = LanguageModel(model_with_core.eval(), tokenizer.to_str(), 0)
    with pytest.raises(ValueError, match=r"call lm\.fit_plan"):
        lm.generate("The", temperature=0, plan=True)
    fit = lm.fit_plan([text[:6000]])
    assert lm.fitted.plan == fit.weights and fit.gates > 100 and fit.gain >= 0
    lm.fitted = replace(lm.fitted, plan=replace(fit.weights, threshold=2.0, verified=2.0))
    written = lm.generate("The", 24, temperature=0, plan=True, echo=True)
    plan = written.plan
    assert plan.gates == len(plan.choices) > 0 and plan.candidates == plan.gates * CANDIDATES
    assert plan.forwards == 24 - sum(written.drafted)
    for at, choice in plan.choices.items():
        assert written.tokens[at] == choice.candidates[choice.chosen].token
    assert lm.generate("The", 24, temperature=0).plan is None
    with pytest.raises(ValueError, match="planning needs a model with a drafter or a transition"):
        fit_plan(trained, [torch.arange(30)])
