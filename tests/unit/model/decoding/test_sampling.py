"""model/decoding/sampling.py: nucleus, repeated n-grams, refusals."""

import pytest
import torch

from model.decoding.sampling import RepeatedNgrams, SamplingOptions, choose, nucleus

LOGITS = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05]).log()


def test_nucleus_keeps_the_fewest_tokens_that_reach_top_p():
    torch.testing.assert_close(nucleus(LOGITS, 1.0, 0.6), torch.tensor([5 / 7, 2 / 7, 0, 0, 0]))
    torch.testing.assert_close(nucleus(LOGITS, 1.0, 0.8), torch.tensor([0.5, 0.2, 0.15, 0, 0]) / 0.85)
    torch.testing.assert_close(nucleus(LOGITS, 1.0, 1.0), LOGITS.exp())
    assert nucleus(LOGITS, 1.0, 1e-9).tolist() == [1, 0, 0, 0, 0]


def test_temperature_sharpens_and_flattens():
    torch.testing.assert_close(nucleus(LOGITS, 0.5, 1.0), LOGITS.exp() ** 2 / (LOGITS.exp() ** 2).sum())
    assert nucleus(LOGITS, 1e-30, 1.0).tolist() == [1, 0, 0, 0, 0]
    torch.testing.assert_close(nucleus(LOGITS, 1e30, 1.0), torch.full((5,), 0.2))


@pytest.mark.parametrize("temperature", [5e-324, 1e-40, 1e30])
def test_temperatures_at_the_edges(temperature):
    logits, generator = torch.tensor([1.0, 3.0, 2.0]), torch.Generator().manual_seed(0)
    options = SamplingOptions(temperature=temperature, top_p=1.0)
    drawn = {choose(logits, options, {1}, generator) for _ in range(50)}
    assert drawn == ({0, 2} if temperature > 1 else {2})


def test_drawn_tokens_follow_the_distribution_and_the_seed():
    options = SamplingOptions(top_p=0.8, seed=3)
    generator = options.generator()
    drawn = [choose(LOGITS, options, set(), generator) for _ in range(4000)]
    counts = torch.bincount(torch.tensor(drawn), minlength=5)
    assert counts[3:].sum() == 0
    expected = torch.tensor([0.5, 0.2, 0.15]) / 0.85 * 4000
    chi_square = ((counts[:3] - expected) ** 2 / expected).sum()
    assert chi_square < 13.8  # p = 0.001 at two degrees of freedom
    generator = options.generator()
    assert [choose(LOGITS, options, set(), generator) for _ in range(100)] == drawn[:100]


def test_greedy_takes_the_largest_allowed_token():
    options = SamplingOptions(temperature=0)
    assert choose(LOGITS, options, set(), options.generator()) == 0
    assert choose(LOGITS, options, {0, 1}, options.generator()) == 2
    assert choose(LOGITS, options, set(range(5)), options.generator()) is None
    assert LOGITS.argmax() == 0  # forbidding did not write into the caller's logits


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_repeated_ngrams_equal_their_definition(size):
    tokens = torch.tensor([1, 2, 3, 1, 2, 4, 1, 2, 1, 1, 2, 3, 1, 1, 2, 4]).tolist()
    repeated = RepeatedNgrams(size, tokens[:3])
    for end in range(3, len(tokens) + 1):
        seen = tokens[:end]
        ngrams = {tuple(seen[i : i + size]) for i in range(len(seen) - size + 1)}
        tail = tuple(seen[len(seen) - size + 1 :])
        assert repeated.forbidden() == {token for token in range(6) if (*tail, token) in ngrams}
        if end < len(tokens):
            repeated.add(tokens[end])


def test_size_zero_forbids_nothing():
    assert RepeatedNgrams(0, [1, 1, 1, 1]).forbidden() == set()


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("max_new_tokens", 0),
        ("max_new_tokens", 2.5),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", "hot"),
        ("temperature", 10**400),
        ("top_p", 0),
        ("top_p", 1.1),
        ("top_p", float("nan")),
        ("no_repeat_ngram", -1),
        ("seed", -1),
        ("seed", 2**70),
        ("seed", "x"),
    ],
)
def test_bad_arguments_are_refused_in_one_sentence(argument, value):
    with pytest.raises(ValueError, match=rf"^{argument} is .*; give .*\.$"):
        SamplingOptions(**{argument: value})
