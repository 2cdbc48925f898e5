"""model/decoding/planning/foresight.py: what is foreseen from slots is what the core predicts of the text."""

import torch

from model.decoding.planning.foresight import ROLLED_OUT, Forecaster, Memory
from model.latent import expected_nll
from model.latent.rollout import Rollout, RolloutContext

TEXT = [0, 5, 6, 7, 8, 9, 30]


@torch.no_grad()
def test_slots_of_a_growing_text_are_those_of_the_whole(model):
    ids = torch.tensor([TEXT])
    states = model.states(ids)
    context = RolloutContext.read(model, ids, states)
    expected = Rollout(model.latent.transition, model, context).slots
    memory = Memory(model.latent.transition, model)
    for piece in (slice(0, 3), slice(3, 4), slice(4, 6)):
        memory.read(TEXT[piece], states.final[0, piece])
        torch.testing.assert_close(memory.slots(), expected[:, : piece.stop])
    memory.read(TEXT[6:], states.final[0, 6:])
    torch.testing.assert_close(memory.slots(), expected)
    assert torch.equal(memory.slots(), memory.slots())


@torch.no_grad()
def test_all_ways_foresee_what_the_core_predicts(model, make_decoder):
    core, ids, candidates = model.latent, torch.tensor([TEXT]), torch.tensor([3, 17, 30])
    states, decoder = model.states(ids), make_decoder(2)
    forecaster = Forecaster(model, decoder)
    decoder.read(0, TEXT)
    forecaster.read(TEXT, decoder.hidden)
    foreseen = {way: forecaster.foresee(way, decoder.hidden[-1], candidates) for way in ("drafter", "rollout", "path")}
    for row, candidate in enumerate(candidates):
        # one candidate at a time, in a text that ends here: by the rollouts that training uses
        rollout = Rollout(core.transition, model, RolloutContext.read(model, ids, states), len(TEXT) - 1)
        state, token, nats, tokens = states.final[:, -1:], candidate, [], []
        for step in range(ROLLED_OUT):
            state = rollout.step(state, model.tokens(token)[None, None])
            if step == 0:
                value = expected_nll(core.value(state[0, 0]))[0]
            best = model.logits(state[0, 0]).log_softmax(-1).max(-1)
            token = best.indices
            nats.append(best.values)
            tokens.append(token.item())
        found = foreseen["rollout"]
        assert found.tokens[row].tolist() == tokens
        torch.testing.assert_close(found.continuation[row], torch.stack(nats).mean(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.value[row], expected_nll(core.value(state[0, 0]))[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(foreseen["drafter"].value[row], value, rtol=1e-4, atol=1e-4)
        path, horizon = foreseen["path"], core.value_head.horizons[0]
        assert path.tokens[row].tolist() == tokens and torch.equal(path.continuation[row], found.continuation[row])
        whole = -torch.stack(nats).sum() + horizon * expected_nll(core.value(state[0, 0]))[0]
        torch.testing.assert_close(path.value[row], whole / (ROLLED_OUT + horizon), rtol=1e-4, atol=1e-4)
        decoder.place()
        line, previous, nats, tokens = decoder.draft(0, decoder.hidden[-1], candidate).clone(), candidate, [], []
        for place in line:
            best = decoder.condition(place.clone(), previous).log_softmax(-1).max(-1)
            previous = best.indices
            tokens.append(previous.item())
            nats.append(best.values)
        found = foreseen["drafter"]
        torch.testing.assert_close(found.continuation[row], torch.stack(nats).mean(), rtol=0.05, atol=0.05)
    assert decoder.lengths == [len(TEXT), 0]  # nothing was read


@torch.no_grad()
def test_only_the_tokens_that_a_slot_holds_count(model, make_decoder):
    """Where tokens are forgotten, as while a planner is fitted, the slots of later ones are not looked at."""
    decoder, candidates = make_decoder(1), torch.tensor([3, 4])
    results = []
    for length in (5, len(TEXT)):
        forecaster = Forecaster(model, decoder)
        decoder.lengths[0] = 0
        decoder.read(0, TEXT[:length])
        hidden = decoder.hidden.clone()
        forecaster.read(TEXT[:length], hidden)
        decoder.lengths[0] = 5
        results.append([forecaster.foresee(way, hidden[4], candidates) for way in ("drafter", "rollout")])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)
