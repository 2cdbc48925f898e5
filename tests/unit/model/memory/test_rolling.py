"""model/memory/rolling.py: a document that is read with a sliding window, by definition."""

import torch

from model.memory import Rolling, document_nll, read_document
from model.tensors import Memory

TOKENS, WINDOW = 4, 16  # of `make`

HALF = WINDOW // 2


def by_hand(model, ids: torch.Tensor) -> torch.Tensor:
    """The states of a document's tokens: window j begins at j * HALF, behind the tokens that sum up the WINDOW tokens
    before it, each half as it was read when it fell out."""
    memory, states, start = torch.empty(0, 32), [], 0
    while True:
        window = ids[start : start + WINDOW]
        before = Memory(memory[None], torch.ones(1, len(memory), dtype=torch.bool), None) if start else None
        hidden = model.hidden_states(window[None], memory=before)[0]
        states.append(hidden if start == 0 else hidden[HALF:])
        if start + WINDOW >= len(ids):
            return torch.cat(states)
        group = WINDOW // TOKENS
        fallen = torch.stack([part.mean(dim=0) for part in hidden[:HALF].split(group)])
        memory = torch.cat([memory, fallen @ model.memory.projection.weight.T])[-TOKENS:]
        start += HALF


@torch.no_grad()
def test_a_document_is_read_as_it_is_defined(make, token_ids):
    for changes in ({}, {"positions": "rotary"}):
        model = make(**changes)
        for length in (1, WINDOW - 1, WINDOW, WINDOW + 1, WINDOW + HALF, 71):
            ids = token_ids[:length]
            found = list(read_document(model, ids))
            assert [first for first, _ in found] == [0, *range(WINDOW, length, HALF)]
            states = torch.cat([hidden for _, hidden in found])
            torch.testing.assert_close(states, by_hand(model, ids))


@torch.no_grad()
def test_what_has_left_the_window_still_counts(make, token_ids):
    model, ids = make(), token_ids[:64]
    changed = ids.clone()
    changed[1] += 1
    before, after = (document_nll(model, sequence) for sequence in (ids, changed))
    assert (before != after)[WINDOW + HALF :].any() and before.shape == (63,)


@torch.no_grad()
def test_the_newest_tokens_are_kept(make):
    rolling = Rolling(make().memory)
    assert rolling.before().tokens.shape == (1, 0, 32)
    halves = [torch.randn(HALF, 32) for _ in range(3)]
    sizes = []
    for half in halves:
        rolling.add(half)
        sizes.append(len(rolling.tokens))
    assert sizes == [TOKENS // 2, TOKENS, TOKENS]
    tokens = rolling.tokens
    rolling.add(halves[0])
    assert torch.equal(rolling.tokens[: TOKENS // 2], tokens[TOKENS // 2 :])
    assert rolling.before().present.all() and rolling.before().readers is None
