"""model/memory/cache.py: keys and values behind memory tokens are those of a window that is read at once."""

import pytest
import torch

from model.memory import MemoryCache, read_memory
from model.tensors import Memory

TOKENS, WINDOW = 4, 16  # of `make`


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"positions": "rotary"},
        {"embedding_norm": True},
        {"value_embeddings": "tables", "bigram_rows": 50, "embedding_context": 2},
    ],
)
@pytest.mark.parametrize("number", [2, TOKENS])
@torch.no_grad()
def test_decoding_behind_a_memory_equals_reading_the_whole(make, token_ids, changes, number):
    model = make(**changes)
    cache = MemoryCache(model.new_cache(3), torch.zeros(3, TOKENS, dtype=torch.bool))
    tokens, ids = torch.randn(1, number, 32), token_ids[None, :WINDOW]
    read_memory(model, tokens, cache.memory_of(1, number))
    assert cache.present.tolist() == [
        [False] * TOKENS,
        [place >= TOKENS - number for place in range(TOKENS)],
        [False] * TOKENS,
    ]
    for row, memory in ((1, Memory(tokens, torch.ones(1, number, dtype=torch.bool), None)), (2, None)):
        whole, parts, done = model.hidden_states(ids, memory=memory), [], 0
        for part in ids.split([7, 1, 8], dim=1):
            parts.append(model.hidden_states(part, cache.row(row, done)))
            done += part.shape[1]
        torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_rows_are_reordered_with_their_memories(make, token_ids):
    model = make()
    cache = MemoryCache(model.new_cache(2), torch.zeros(2, TOKENS, dtype=torch.bool))
    read_memory(model, torch.randn(1, TOKENS, 32), cache.memory_of(0, TOKENS))
    ids = token_ids[None, :5]
    model.hidden_states(ids, cache.row(0, 0))
    expected = model.hidden_states(token_ids[None, 5:6], cache.row(0, 5))
    cache.reorder([0, 0], start=5)
    assert cache.present.all()
    torch.testing.assert_close(model.hidden_states(token_ids[None, 5:6], cache.row(1, 5)), expected)


@torch.no_grad()
def test_several_rows_step_together(make, token_ids):
    """Of different lengths, one with a memory and one without."""
    model = make()
    cache = MemoryCache(model.new_cache(2), torch.zeros(2, TOKENS, dtype=torch.bool))
    read_memory(model, torch.randn(1, TOKENS, 32), cache.memory_of(0, TOKENS))
    lengths = [3, 9]
    for row, length in enumerate(lengths):
        model.hidden_states(token_ids[None, :length], cache.row(row, 0))
    alone = [model.hidden_states(token_ids[None, n : n + 1], cache.row(row, n)) for row, n in enumerate(lengths)]
    cache.positions.copy_(torch.tensor(lengths))
    cache.window = 10
    together = model.hidden_states(torch.stack([token_ids[n : n + 1] for n in lengths]), cache)
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)
