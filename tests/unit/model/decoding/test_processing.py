"""model/decoding/processing.py: the distributions of transformers, and draws that follow them."""

import itertools

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from model.decoding import kernel
from model.decoding.processing import Penalties, draw, draw_tokens, probabilities, shares_by_kernel
from model.decoding.settings import GenerationSettings

LOGITS = torch.tensor([[0.5, 0.2, 0.15, 0.1, 0.05]]).log()


def processed(logits: torch.Tensor, settings: GenerationSettings, tokens: list[int]) -> torch.Tensor:
    shares = probabilities(Penalties(settings, tokens, logits.shape[-1]).apply(logits[0].clone())[None], settings)
    return shares / shares.sum()


def by_transformers(logits: torch.Tensor, settings: GenerationSettings, tokens: list[int]) -> torch.Tensor:
    chain = LogitsProcessorList()
    if settings.repetition_penalty != 1:
        chain.append(RepetitionPenaltyLogitsProcessor(settings.repetition_penalty))
    if settings.no_repeat_ngram:
        chain.append(NoRepeatNGramLogitsProcessor(settings.no_repeat_ngram))
    chain += settings.logits_processors
    if settings.temperature != 1:
        chain.append(TemperatureLogitsWarper(float(settings.temperature)))
    if settings.top_k:
        chain.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1:
        chain.append(TopPLogitsWarper(settings.top_p))
    if settings.min_p:
        chain.append(MinPLogitsWarper(settings.min_p))
    return chain(torch.tensor([tokens]), logits.clone()).softmax(-1)


def halve(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Depends on all that a processor may see."""
    return scores / 2 + (ids.sum() % 7) * torch.arange(scores.shape[-1]) / 1000


@pytest.mark.parametrize("seed", range(3))
def test_distributions_equal_those_of_transformers(seed):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(1, 200, generator=generator)
    tokens = torch.randint(20, (60,), generator=generator).tolist()
    kinds = itertools.product(
        (0.7, 1.0, 1.9), (1.0, 0.9, 0.3), (0, 20), (0.0, 0.1), (1.0, 1.3, 0.8), (0, 1, 3), ((), (halve,))
    )
    compared = 0
    for temperature, top_p, top_k, min_p, penalty, ngram, processors in kinds:
        settings = GenerationSettings(
            temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p, repetition_penalty=penalty,
            no_repeat_ngram=ngram, logits_processors=processors,
        )  # fmt: skip
        expected = by_transformers(logits, settings, tokens)
        torch.testing.assert_close(processed(logits, settings, tokens), expected, rtol=1e-4, atol=1e-7)
        compared += 1
    assert compared == 648


def test_top_p_keeps_the_fewest_tokens_that_reach_it():
    def kept(top_p: float) -> torch.Tensor:
        return processed(LOGITS, GenerationSettings(top_p=top_p), [])[0]

    torch.testing.assert_close(kept(0.6), torch.tensor([5 / 7, 2 / 7, 0, 0, 0]))
    torch.testing.assert_close(kept(0.8), torch.tensor([0.5, 0.2, 0.15, 0, 0]) / 0.85)
    torch.testing.assert_close(kept(1.0), LOGITS[0].exp())
    assert kept(1e-9).tolist() == [1, 0, 0, 0, 0]


@pytest.mark.parametrize("temperature", [5e-324, 1e-40, 1e-30, 1e30])
def test_temperatures_at_the_edges(temperature):
    shares = processed(torch.tensor([[1.0, 3.0, 2.0]]), GenerationSettings(temperature=temperature, top_p=1.0), [])
    torch.testing.assert_close(shares[0], torch.full((3,), 1 / 3) if temperature > 1 else torch.tensor([0.0, 1, 0]))


def test_top_p_keeps_ties_and_what_likelier_tokens_leave_room_for():
    shares = torch.tensor([[0.25, 0.125, 0.25, 0.0625, 0.125, 0.125, 0.0625]])

    def kept(top_p: float) -> list[int]:
        return probabilities(shares.log(), GenerationSettings(top_p=top_p))[0].nonzero()[:, 0].tolist()

    assert kept(0.1) == kept(0.5) == [0, 2]
    assert kept(0.51) == kept(0.875) == [0, 1, 2, 4, 5]
    assert kept(0.88) == list(range(7))


def rows_of_logits(size: int) -> torch.Tensor:
    """Random, peaked, flat, tied, with forbidden tokens, and all equal."""
    generator = torch.Generator().manual_seed(size)
    random = torch.randn(6, size, generator=generator)
    random *= torch.tensor([1.0, 8.0, 0.01, 1.0, 3.0, 0.0])[:, None]
    random[3] = random[3].round()
    random[4, torch.rand(size, generator=generator) < 0.4] = -torch.inf
    random[4, 0] = 0.5
    return random + torch.tensor([0.0, 50.0, -50.0, 0.0, 0.0, 7.0])[:, None]


@pytest.mark.parametrize("size", [1, 2, 3, 15, 17, 255, 257, 1000, 4096, 50257])
def test_the_kernel_draws_what_the_definition_draws(size):
    assert kernel.library() is not None
    logits, near = rows_of_logits(size), 1e-6
    kinds = itertools.product(
        (1e-30, 0.7, 1.0, 1e4, 1e30), (1.0, 0.9, 0.3, 1e-9), (0, 1, 20, 3000, 2**63 - 1), (0.0, 0.05, 1.0)
    )
    uniforms = torch.rand(len(logits), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    uniforms[0] = 0
    same = compared = 0
    for temperature, top_p, top_k, min_p in kinds if size < 50257 else itertools.islice(kinds, 0, None, 7):
        values = {"temperature": temperature, "top_k": top_k, "min_p": min_p}
        found = draw_tokens(logits.clone(), GenerationSettings(**values, top_p=top_p), uniforms.tolist())
        expected = draw(probabilities(logits, GenerationSettings(**values, top_p=top_p)), uniforms).tolist()
        compared += len(found)
        same += sum(a == b for a, b in zip(found, expected, strict=True))
        if found != expected:  # rounding decides where a bound or a number in [0, 1) is as near as that
            possible = [
                draw(
                    probabilities(logits, GenerationSettings(**values, top_p=min(1.0, top_p + p))),
                    (uniforms + u).clamp(0, 1 - near),
                )
                for p, u in itertools.product((-near * top_p, 0, near), (-near, 0, near))
            ]
            assert all(token in column for token, column in zip(found, torch.stack(possible).T.tolist(), strict=True))
    assert same >= 0.995 * compared


def test_the_kernel_draws_by_the_distribution():
    settings = GenerationSettings(temperature=0.8, top_p=0.9, top_k=30, min_p=0.01)
    logits = torch.randn(300, generator=torch.Generator().manual_seed(2))
    shares = probabilities(logits[None], settings)[0].double()
    uniforms = torch.rand(20000, generator=torch.Generator().manual_seed(3), dtype=torch.float64).tolist()
    counts = torch.bincount(torch.tensor(draw_tokens(logits.repeat(20000, 1), settings, uniforms)), minlength=300)
    kept = shares > 0
    assert 10 < kept.sum() < 30 and not counts[~kept].any()
    expected = (shares / shares.sum() * 20000)[kept]
    chi_square = ((counts[kept] - expected) ** 2 / expected).sum()
    freedom = int(kept.sum()) - 1
    assert chi_square < freedom + 4 * (2 * freedom) ** 0.5


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_the_ends_of_the_uniforms_draw_what_has_a_share(top_p):
    logits = torch.full((2, 1000), -torch.inf)
    logits[:, [300, 301, 700]] = torch.tensor([0.0, 0.0, -30.0 if top_p == 1 else 0.0])
    assert draw_tokens(logits, GenerationSettings(top_p=top_p), [0.0, 1 - 2**-53]) == [300, 700]


@pytest.mark.parametrize("on_kernel", [True, False])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_no_number_is_refused(value, on_kernel, monkeypatch):
    if not on_kernel:
        monkeypatch.setattr(kernel, "library", lambda: None)
    logits = torch.zeros(2, 100)
    logits[1, 40] = value
    for top_p, top_k in itertools.product((1.0, 0.9), (0, 5)):
        with pytest.raises(ValueError, match=r"NaN or .inf.*logits_processors"):
            draw_tokens(logits.clone(), GenerationSettings(top_p=top_p, top_k=top_k), [0.5, 0.5])


def test_draws_follow_the_shares():
    shares = torch.tensor([[0.2, 0.0, 0.5, 0.0, 0.1]])  # of 0.8
    uniforms = torch.rand(4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    counts = torch.bincount(draw(shares.expand(4000, 5), uniforms), minlength=5)
    expected = shares[0] / 0.8 * 4000
    assert counts[1] == counts[3] == 0
    chi_square = ((counts - expected) ** 2 / expected)[[0, 2, 4]].sum()
    assert chi_square < 13.8  # p = 0.001 at two degrees of freedom


def test_no_uniform_draws_what_has_no_share():
    shares = torch.tensor([[0.0, 0.3, 0.0, 1e-12, 0.0]])
    ends = torch.tensor([0.0, 1 - 2**-53, 0.5], dtype=torch.float64)
    assert draw(shares.expand(3, 5), ends).tolist() == [1, 3, 1]


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_forbidden_tokens_equal_the_definition_of_an_ngram(size):
    tokens = [1, 2, 3, 1, 2, 4, 1, 2, 1, 1, 2, 3, 1, 1, 2, 4]
    settings = GenerationSettings(no_repeat_ngram=size)
    penalties = Penalties(settings, tokens[:3], 6)
    for end in range(3, len(tokens) + 1):
        seen = tokens[:end]
        ngrams = {tuple(seen[i : i + size]) for i in range(len(seen) - size + 1)}
        tail = tuple(seen[len(seen) - size + 1 :])
        forbidden = torch.isneginf(penalties.apply(torch.zeros(6)))
        assert forbidden.nonzero()[:, 0].tolist() == [token for token in range(6) if (*tail, token) in ngrams]
        if end < len(tokens):
            penalties.add(tokens[end])


def test_a_copy_goes_on_by_itself():
    settings = GenerationSettings(no_repeat_ngram=2, repetition_penalty=2.0)
    penalties = Penalties(settings, [1, 2, 1], 4)
    other = penalties.copy()
    other.add(3)
    assert penalties.tokens == [1, 2, 1] and other.tokens == [1, 2, 1, 3]
    assert penalties.apply(torch.ones(4)).tolist() == [1, 0.5, -torch.inf, 1]
    assert other.apply(torch.ones(4)).tolist() == [1, 0.5, 0.5, 0.5]


@pytest.mark.parametrize("changes", [{}, {"top_p": 1.0}, {"top_k": 7, "min_p": 0.05}, {"temperature": 1e-30}])
def test_shares_by_the_kernel_are_the_probabilities(changes):
    torch.manual_seed(0)
    settings = GenerationSettings(**{"temperature": 0.8, **changes})
    for size in (2, 100, 8191):
        scores = torch.randn(4, size) * 3
        scores[1, : size // 2] = -torch.inf
        expected = probabilities(scores.clone(), settings)
        torch.testing.assert_close(shares_by_kernel(scores, settings), expected, rtol=1e-5, atol=1e-7)
