"""model/decoding/planning/router.py: candidates are read side by side as each would be alone, and the best one wins."""

import pytest
import torch

from model.decoding.drafts.speculation import History
from model.decoding.fitted import PlanWeights
from model.decoding.planning.foresight import Forecaster, Foreseen
from model.decoding.planning.router import CANDIDATES, ROUTED, candidates_of, read_branches, route, weigh
from model.decoding.processing import Penalties
from model.decoding.settings import GenerationSettings

TEXT = [0, 5, 6, 7, 8, 9, 30]
BRANCHES = torch.tensor([[3, 1, 2, 4], [17, 5, 6, 7], [30, 30, 9, 9]])


def history_of(decoder, **changes) -> History:
    like = torch.empty(decoder.vocab_size)
    return History(GenerationSettings(temperature=0, **changes), TEXT[1:], 10, like)


@pytest.mark.parametrize("changes", [{}, {"no_repeat_ngram": 2, "repetition_penalty": 1.3}])
@torch.inference_mode()
def test_branches_are_read_as_each_would_be_alone(make_decoder, changes):
    decoder, alone = make_decoder(3), make_decoder(1)
    decoder.read(0, TEXT[:4])
    decoder.reorder([0, 0, 0])
    decoder.read(0, TEXT[4:])  # the other slots have four tokens of it
    branches = read_branches(decoder, BRANCHES, history_of(decoder, **changes), synced=4)
    assert decoder.lengths == [11, 11, 11]
    for row, tokens in enumerate(BRANCHES.tolist()):
        alone.lengths[0] = 0
        alone.read(0, TEXT)
        logits = alone.read(0, tokens, every=True)
        torch.testing.assert_close(branches.logits[row], logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(branches.hidden[row], alone.hidden, rtol=1e-4, atol=1e-4)
        penalties = Penalties(GenerationSettings(temperature=0, **changes), TEXT[1:], decoder.vocab_size)
        following, nats = [], []
        for token, line in zip(tokens, logits, strict=True):
            penalties.add(token)
            best = penalties.apply(line.clone()).log_softmax(-1).max(-1)
            following.append(best.indices.item())
            nats.append(best.values)
        stood = next((k for k in range(3) if following[k] != tokens[k + 1]), 3)
        assert branches.following[row].tolist() == following and branches.stood[row] == stood
        torch.testing.assert_close(branches.continuation[row], torch.stack(nats[: stood + 1]).mean())
    decoder.lengths = [8, 8, 8]
    decoder.reorder([2, 2, 2], 7)  # the third one is written on, in all slots
    for slot in range(3):
        alone.lengths[0] = 0
        alone.read(0, [*TEXT, 30])
        torch.testing.assert_close(decoder.read(slot, [4]), alone.read(0, [4]), rtol=1e-4, atol=1e-4)


def test_candidates_are_the_likeliest_that_are_allowed():
    scores = torch.tensor([0.0, 3.0, -torch.inf, 2.0, 1.0])
    tokens, logprobs = candidates_of(scores, 3)
    assert tokens.tolist() == [1, 3, 4]
    torch.testing.assert_close(logprobs, scores.log_softmax(-1)[tokens])
    assert candidates_of(scores, 3, without=1)[0].tolist() == [3, 4, 0]
    assert candidates_of(scores, 8)[0].tolist() == [1, 3, 4, 0]


def test_scores_weigh_what_follows():
    foreseen = Foreseen(torch.zeros(2, 3), torch.tensor([-1.0, -2.0]), torch.tensor([3.0, 1.0]))
    weights = PlanWeights(threshold=0.0, continuation=0.5, value=0.25, verified=0.0, foresight="drafter")
    assert weigh(torch.tensor([-0.5, -0.7]), foreseen, weights).tolist() == pytest.approx([-1.75, -1.95])


@pytest.mark.parametrize("way", ["drafter", "rollout", "path"])
@torch.inference_mode()
def test_the_models_own_probabilities_decide(model, make_decoder, way):
    weights = PlanWeights(threshold=0.0, continuation=1.0, value=0.5, verified=2.0, foresight=way)
    decoder = make_decoder(ROUTED)
    forecaster = Forecaster(model, decoder)
    logits = decoder.read(0, TEXT)[0].clone()
    hidden = decoder.hidden[-1].clone()
    forecaster.read(TEXT, decoder.hidden)
    candidates = candidates_of(logits)
    foreseen = forecaster.foresee(way, hidden, candidates[0])
    choice, branches, row = route(decoder, forecaster, hidden, candidates, weights, history_of(decoder), 0)
    promise = candidates[1] + foreseen.continuation - 0.5 * foreseen.value
    routed = promise.topk(ROUTED).indices.tolist()
    assert len(choice.candidates) == CANDIDATES
    assert [one.token for one in choice.candidates] == candidates[0].tolist()
    assert {at for at, one in enumerate(choice.candidates) if one.verified is not None} == set(routed)
    final = candidates[1][routed] + 2 * branches.continuation - 0.5 * foreseen.value[routed]
    assert choice.chosen == routed[int(final.argmax())] and row == int(final.argmax())
    won = choice.candidates[choice.chosen]
    assert won.verified == max(one.verified for one in choice.candidates if one.verified is not None)
    assert len(won.following) == int(branches.stood[row]) + 1
