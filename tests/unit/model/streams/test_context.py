import torch

from model.streams.bigrams import NO_TOKEN
from model.streams.context import EmbeddingContext, earlier_embeddings, tokens_before


def test_each_distance_has_a_matrix():
    context = EmbeddingContext(2, 4)
    with torch.no_grad():
        context.weight[0] = 10 * torch.eye(4)
        context.weight[1] = torch.eye(4)
    embedding = torch.tensor([1.0, 2.0, 3.0, 4.0])[None, :, None].expand(1, 4, 4)
    added = context(earlier_embeddings(embedding, None, 2))
    assert added[0, :, 0].tolist() == [0, 10, 20 + 1, 30 + 2]


def test_nothing_is_before_a_row_or_a_segment():
    embedding = torch.arange(1.0, 6.0)[None, :, None]
    segments = torch.tensor([[0, 0, 0, 1, 1]])
    near, far = (part[0, :, 0].tolist() for part in earlier_embeddings(embedding, segments, 2))
    assert near == [0, 1, 2, 0, 4] and far == [0, 0, 1, 0, 0]
    short = earlier_embeddings(embedding[:, :1], None, 3)
    assert [part.tolist() for part in short] == [[[[0.0]]]] * 3


def test_ids_before_positions_of_each_row():
    tokens = torch.tensor([[5, 6, 7, 8], [1, 2, 3, 4]])
    before = tokens_before(tokens, torch.tensor([[0, 1], [2, 3]]), 2)
    assert before.tolist() == [[[NO_TOKEN, NO_TOKEN], [5, NO_TOKEN]], [[2, 1], [3, 2]]]
    shared = tokens_before(tokens, torch.tensor([[1]]), 1)
    assert shared.tolist() == [[[5]], [[1]]]
