import torch

from model.streams.bigrams import NO_TOKEN, BigramEmbedding, hashed, previous_tokens


def test_what_is_added_depends_on_both_tokens_and_their_order():
    table = BigramEmbedding(1009, 8)
    with torch.no_grad():
        table.table.weight.normal_()
    pairs = torch.tensor([[3, 5, 5, NO_TOKEN]]), torch.tensor([[5, 3, 5, 5]])
    rows = table(*pairs)[0]
    assert rows.shape == (4, 8)
    assert len({tuple(row.tolist()) for row in rows}) == 4


def test_pairs_are_spread_evenly_over_the_rows():
    ids = torch.arange(300)
    counts = torch.bincount(hashed(ids[:, None], ids[None], 1000).flatten(), minlength=1000)
    assert counts.sum() == 90_000 and counts.min() > 30 and counts.max() < 180  # 90 each, by chance 62 to 121


def test_the_largest_ids_do_not_overflow():
    largest = torch.tensor([2**24])
    assert 0 <= hashed(largest, largest, 2**30).item() < 2**30


def test_no_token_comes_before_a_row_or_a_segment():
    ids = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    assert previous_tokens(ids, None).tolist() == [[-1, 1, 2, 3], [-1, 5, 6, 7]]
    segments = torch.tensor([[0, 0, 1, -1], [0, 1, 1, 1]])
    assert previous_tokens(ids, segments).tolist() == [[-1, 1, -1, -1], [-1, -1, 6, 7]]
