"""model/decoding/beam.py: against all continuations, and against transformers."""

import itertools

import pytest
import torch

from model import ModelConfig, TransformerLM
from model.decoding.beam import search
from model.decoding.decoder import Weights
from model.decoding.settings import GenerationSettings

EOS, VOCAB_SIZE = 0, 6


@pytest.fixture(scope="module")
def model() -> TransformerLM:
    torch.manual_seed(1)
    shape = {"num_layers": 1, "num_heads": 2, "hidden_size": 16, "seq_length": 16, "init_std": 0.6}
    return TransformerLM(ModelConfig(**shape), VOCAB_SIZE).eval()


def every_continuation(
    model: TransformerLM, prompt: list[int], length: int, penalty: float
) -> list[tuple[float, list[int]]]:
    """Score and tokens of all that end in `length` tokens, by the model itself; the best first."""
    found = {}
    for tokens in itertools.product(range(VOCAB_SIZE), repeat=length):
        if EOS in tokens:
            tokens = tokens[: tokens.index(EOS) + 1]
        if tokens in found:
            continue
        ids = torch.tensor([[EOS, *prompt, *tokens]])
        with torch.no_grad():
            logprobs = model.logits(model.hidden_states(ids[:, :-1])[0]).log_softmax(-1)
        total = logprobs[len(prompt) :].gather(1, torch.tensor(tokens)[:, None]).sum().item()
        found[tokens] = total / len(tokens) ** penalty
    return sorted(((score, [t for t in tokens if t != EOS]) for tokens, score in found.items()), reverse=True)


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
def test_wide_beams_find_the_best_of_all_continuations(model, penalty):
    settings = GenerationSettings(max_new_tokens=3, temperature=0, num_beams=216, num_samples=5, length_penalty=penalty)
    beams = search(Weights(model, "fp32").decoder(216), [3, 4], settings, EOS)
    expected = every_continuation(model, [3, 4], 3, penalty)[:5]
    assert [beam.tokens for beam in beams] == [tokens for _, tokens in expected]
    torch.testing.assert_close([beam.score for beam in beams], [score for score, _ in expected], rtol=1e-4, atol=1e-4)


def test_more_beams_find_a_likelier_text_than_greedy(trained, token_ids):
    prompt = token_ids[200:206].tolist()
    scores = []
    for width in (1, 8):
        settings = GenerationSettings(
            max_new_tokens=20,
            temperature=0,
            num_beams=width,
            length_penalty=0.0 if width > 1 else 1.0,
            stop_at_eos=False,
        )
        scores.append(
            search(Weights(trained, "fp32").decoder(width), prompt, settings, EOS)[0].score * (20 if width == 1 else 1)
        )
    assert scores[1] >= scores[0]


def test_penalties_apply_to_beams(model):
    settings = GenerationSettings(max_new_tokens=8, temperature=0, num_beams=4, no_repeat_ngram=1, stop_at_eos=False)
    for beam in search(Weights(model, "fp32").decoder(4), [3], settings, EOS):
        assert len(set(beam.tokens)) == len(beam.tokens) and 3 not in beam.tokens


def test_what_does_not_fit_the_window_is_refused(model):
    settings = GenerationSettings(max_new_tokens=14, temperature=0, num_beams=2)
    search(Weights(model, "fp32").decoder(2), [1, 2], settings, EOS)
    with pytest.raises(ValueError, match="prompt and continuation to fit 16 tokens, and these have 4 and 14"):
        search(Weights(model, "fp32").decoder(2), [1, 2, 3], settings, EOS)
