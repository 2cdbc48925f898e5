"""model/language_model.py: one file in, text and scores out."""

import json

import pytest
import torch
import torch.nn.functional as F

from model import LanguageModel, TransformerLM

EOS = 0


def test_known_text_scores_better_than_its_words_shuffled(language_model, text):
    known = text[100:400]
    shuffled = " ".join(sorted(known.split()))
    assert language_model.score(known).mean_nll < language_model.score(shuffled).mean_nll - 1.0


def test_the_stream_is_the_text_in_whole_characters(language_model):
    arguments = {"max_new_tokens": 300, "temperature": 5.0, "top_p": 1.0, "seed": 11, "stop_at_eos": False}
    pieces = list(language_model.stream("Grüße, 世界", **arguments))
    assert "".join(pieces) == language_model.generate("Grüße, 世界", **arguments)
    assert len(pieces) > 100 and all(pieces)


def test_a_seed_decides_and_global_randomness_is_untouched(language_model):
    state = torch.get_rng_state()
    first = language_model.generate("The", seed=1)
    assert language_model.generate("The", seed=1) == first
    assert language_model.generate("The", seed=2) != first
    assert language_model.generate("The") != language_model.generate("The")
    assert torch.equal(torch.get_rng_state(), state)


def test_empty_and_very_long_prompts(language_model, text):
    assert language_model.generate("", max_new_tokens=20, seed=0)
    long = text[:2000]
    assert language_model.generate(long, max_new_tokens=20, temperature=0)
    # only the last seq_length tokens of it are read
    tail = language_model.tokenizer.decode(language_model.encode(long)[-32:])
    assert language_model.generate(long, 20, temperature=0) == language_model.generate(tail, 20, temperature=0)


@pytest.mark.parametrize("end", ["\ufffd", "\ud800"])  # half a surrogate pair is read as the former
def test_a_prompt_that_ends_in_half_a_character(language_model, end):
    alone, after = (language_model.generate(f"The {end}", 8, temperature=0) for _ in range(2))
    assert alone == after and not alone.startswith("The")
    assert language_model.encode(f"The {end}") == language_model.encode("The \ufffd")
    assert language_model.score(f"The {end}").mean_nll > 0


def test_bad_arguments_are_refused_at_the_call(language_model):
    with pytest.raises(ValueError, match="top_p is 0; give a number above 0 and up to 1"):
        language_model.stream("x", top_p=0)  # before the first piece is asked for
    with pytest.raises(ValueError, match="the text to score is empty"):
        language_model.score("")


def test_settings_in_the_tokenizer_file_have_no_effect(trained, tokenizer, language_model, text):
    settings = json.loads(tokenizer.to_str())
    settings["truncation"] = {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0}
    settings["padding"] = {
        "strategy": {"Fixed": 64},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<|endoftext|>",
    }
    lm = LanguageModel(trained, json.dumps(settings), EOS)
    assert lm.encode(text[:100]) == language_model.encode(text[:100])
    assert lm.generate(text[:100], seed=0) == language_model.generate(text[:100], seed=0)
    assert EOS not in lm.encode("a <|endoftext|> b")  # text, not a command


def test_scores_equal_torchs_cross_entropy(language_model, trained, text):
    tokens = language_model.encode(text[300:360])
    assert 10 < len(tokens) < 32
    score = language_model.score(text[300:360])
    with torch.no_grad():
        logits = trained.logits(trained.hidden_states(torch.tensor([[EOS, *tokens[:-1]]])))[0]
    expected = F.cross_entropy(logits, torch.tensor(tokens), reduction="none")
    torch.testing.assert_close(score.token_nll, expected, atol=1e-5, rtol=1e-4)
    assert score.tokens == tokens and score.mean_nll == pytest.approx(expected.mean().item(), rel=1e-5)


def test_long_texts_are_scored_with_half_a_window_of_context(language_model, trained, text):
    long = text[:900]
    tokens = language_model.encode(long)
    score = language_model.score(long)
    assert len(score.token_nll) == len(tokens) > 200
    sequence = torch.tensor([EOS, *tokens])
    with torch.no_grad():
        for index in (0, 31, 32, 47, 48, 100, len(tokens) - 1):
            start = 0 if index < 32 else (index - 32) // 16 * 16 + 16
            logits = trained.logits(trained.hidden_states(sequence[None, start : index + 1]))[0, -1]
            expected = F.cross_entropy(logits, sequence[index + 1])
            torch.testing.assert_close(score.token_nll[index], expected, atol=1e-4, rtol=1e-3)


def test_a_model_in_training_stays_in_training(config, tokenizer):
    torch.manual_seed(0)
    model = TransformerLM(config.model_copy(update={"dropout": 0.5}), tokenizer.get_vocab_size()).train()
    lm = LanguageModel(model, tokenizer.to_str(), EOS)
    assert lm.generate("The", temperature=0) == lm.generate("The", temperature=0)  # no dropout while it speaks
    assert lm.score("The topics").mean_nll == lm.score("The topics").mean_nll
    next(lm.stream("The", seed=0))
    assert model.training and torch.is_grad_enabled()
    assert all(parameter.grad is None for parameter in model.parameters())
