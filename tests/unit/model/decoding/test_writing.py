"""model/decoding/writing.py: what callers of generate and stream get."""

import warnings

import pytest
import torch

from model import AuxiliaryConfig, LanguageModel, TransformerLM
from model.decoding.decoder import Weights
from model.decoding.writing import Generation

EOS = 0


def test_a_generation_is_its_text_and_says_how_it_came_about(language_model):
    generation = language_model.generate("The", 12, seed=0)
    assert isinstance(generation, Generation) and generation + "" == generation.text == str(generation)
    assert type(generation.text) is str and generation.logprobs is None
    assert language_model.tokenizer.decode(generation.tokens) == generation
    assert (len(generation.tokens), generation.stopped) == (12, "length")


def test_a_list_gets_a_list_with_what_each_prompt_gets_alone(language_model):
    prompts = ["The import statement", "", "A", "The for statement is used to iterate over"]
    together = language_model.generate(prompts, 30, seed=2)
    assert together == [language_model.generate(prompt, 30, seed=2) for prompt in prompts]
    assert language_model.generate(["A"], 5, seed=2) == [language_model.generate("A", 5, seed=2)]
    with pytest.raises(ValueError, match="the list of prompts is empty; give at least one text"):
        language_model.generate([])
    with pytest.raises(ValueError, match="a prompt is no text"):
        language_model.generate(["a", 3])


def test_a_long_list_is_written_in_groups(language_model, monkeypatch):
    prompts = ["The", "A", "In", "", "x"]
    together = language_model.generate(prompts, 6, seed=4, num_samples=2)
    sizes, begin = [], Weights.decoder
    monkeypatch.setattr(Weights, "decoder", lambda self, slots: sizes.append(slots) or begin(self, slots))
    monkeypatch.setattr("model.decoding.writing.ROWS_AT_A_TIME", 3)
    assert language_model.generate(prompts, 6, seed=4, num_samples=2) == together and len(together) == 10
    assert max(sizes) == 3


def test_samples_are_what_the_next_seeds_give(language_model):
    texts = language_model.generate(["The", "A"], 10, seed=7, num_samples=3)
    assert texts == [language_model.generate(prompt, 10, seed=7 + j) for prompt in ("The", "A") for j in range(3)]
    assert len(set(texts)) > 4


def test_streams_are_the_texts_and_may_take_turns(language_model):
    whole = language_model.generate(["The", "A"], 25, seed=1)
    first, second = (language_model.stream(["The", "A"], 25, seed=1) for _ in range(2))
    found: list[list[str]] = [["", ""], ["", ""]]
    for pieces in zip(first, second, strict=False):
        for texts, (row, piece) in zip(found, pieces, strict=True):
            texts[row] += piece
    assert found[0] == whole
    for row, piece in second:
        found[1][row] += piece
    assert found[1] == whole


def test_a_stream_returns_what_generate_returns(language_model):
    stream, pieces = language_model.stream("The", 10, seed=3), []
    try:
        while True:
            pieces.append(next(stream))
    except StopIteration as end:
        generation = end.value
    assert "".join(pieces) == generation == language_model.generate("The", 10, seed=3)
    assert len(generation.tokens) == 10
    with pytest.raises(ValueError, match="num_samples is 2, which text as it is decided cannot have; use generate"):
        language_model.stream("The", num_samples=2)


def test_text_stops_before_a_stop_string_streamed_or_not(language_model):
    whole = language_model.generate("The", 40, seed=5)
    stop = whole[10:14]
    cut = language_model.generate("The", 40, seed=5, stop=stop)
    assert cut == whole[: whole.find(stop)] and cut.stopped == "stop" and len(cut.tokens) < len(whole.tokens)
    assert "".join(language_model.stream("The", 40, seed=5, stop=[stop])) == cut
    beams = language_model.generate("The", 20, temperature=0, num_beams=3)
    assert beams[:4] == language_model.generate("The", 20, temperature=0, num_beams=3, stop=beams[4:7])[:4]


def test_echo_and_logprobs_agree_with_the_score(language_model):
    prompt = "The import statement is used to find modules, and the standard library has many of them. " * 2
    generation = language_model.generate(prompt, 8, temperature=0, echo=True, logprobs=2)
    assert generation.startswith(prompt) and len(generation.tokens) == len(generation.logprobs)
    assert generation.tokens == [*language_model.encode(prompt), *generation.tokens[-8:]]
    length = len(language_model.encode(prompt))
    assert length > language_model.model.config.seq_length
    scored = -language_model.score(prompt).token_nll
    found = torch.tensor([token.logprob for token in generation.logprobs[:length]])
    torch.testing.assert_close(found, scored, rtol=1e-3, atol=1e-3)
    for token in generation.logprobs[length:]:
        assert token.top[0] == (token.token, token.logprob) and len(token.top) == 2  # greedy
    beam = language_model.generate("The", 5, temperature=0, num_beams=4, logprobs=1)
    assert len(beam.logprobs) == len(beam.tokens)


def test_logprobs_of_beams_add_up_to_more_than_greedys(language_model):
    def total(**settings) -> float:
        return sum(t.logprob for t in language_model.generate("The", 6, temperature=0, logprobs=0, **settings).logprobs)

    assert total(num_beams=8, length_penalty=0.0) >= total() - 1e-6
    two = language_model.generate("The", 6, temperature=0, num_beams=4, num_samples=2)
    assert len(two) == 2 and two[0] != two[1]


def test_text_beyond_the_window_is_announced_once(trained, tokenizer):
    lm = LanguageModel(trained, tokenizer.to_str(), EOS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        lm.generate("The", 10, seed=0)
        assert not caught
        lm.generate("The", 60, seed=0)
        list(lm.stream("The", 60, seed=0))
    assert len(caught) == 1 and "beyond seq_length 32" in str(caught[0].message)


def test_changed_weights_are_read(trained, tokenizer):
    model = TransformerLM(trained.config, trained.vocab_size)
    model.load_state_dict(trained.state_dict())
    lm = LanguageModel(model, tokenizer.to_str(), EOS, precision="int8")  # which has copies of the weights
    before = lm.generate("The", 20, temperature=0)
    with torch.no_grad():
        model.tokens.weight.mul_(-1)
    assert lm.generate("The", 20, temperature=0) != before


def with_drafter(lm: LanguageModel) -> LanguageModel:
    """The same model with an untrained drafter."""
    torch.manual_seed(0)
    auxiliary = AuxiliaryConfig(enable_draft=True, draft_rollouts=0)
    model = TransformerLM(lm.model.config, lm.model.vocab_size, auxiliary)
    model.load_state_dict(lm.model.state_dict(), strict=False)
    return LanguageModel(model, lm.tokenizer.to_str(), lm.eos_token_id)


def test_greedy_texts_are_the_same_with_drafts(language_model):
    drafting, prompts = with_drafter(language_model), ["The import statement", "", "A"]
    settings = {"temperature": 0, "no_repeat_ngram": 3, "logprobs": 1, "echo": True}
    plain = language_model.generate(prompts, 60, **settings)
    drafted = drafting.generate(prompts, 60, speculate=True, **settings)
    assert drafted == plain and [text.tokens for text in drafted] == [text.tokens for text in plain]
    for text in drafted:
        assert len(text.drafted) == len(text.tokens) == len(text.logprobs)
    assert not any(any(text.drafted) for text in plain)
    stopped = drafting.generate("The", 60, temperature=0, stop="e", speculate=True)
    assert stopped == language_model.generate("The", 60, temperature=0, stop="e")
    assert "".join(drafting.stream("The", 30, temperature=0, speculate=True)) == language_model.generate(
        "The", 30, temperature=0
    )


def test_a_seed_gives_the_same_text_each_time_with_drafts(language_model):
    drafting = with_drafter(language_model)
    first, second, other = (drafting.generate("The", 30, seed=seed, speculate=True) for seed in (1, 1, 2))
    assert first == second != other
    assert drafting.generate("The", 30, seed=1, num_samples=2, speculate=True) == [first, other]


def test_drafts_need_a_drafter(language_model):
    with pytest.raises(ValueError, match=r"a drafter; train one with auxiliary\.enable_draft"):
        language_model.generate("The", 5, speculate=True)
    assert language_model.generate("The", 5, seed=1, speculate="auto") == language_model.generate("The", 5, seed=1)


def test_what_is_faster_is_measured_once_and_said(language_model):
    drafting = with_drafter(language_model)
    with pytest.warns(UserWarning, match=r"^Writing (with drafts|token by token): [\d,]+ tokens/s with drafts") as said:
        text = drafting.generate("The", 20, temperature=0, speculate="auto")
    assert len(said) == 1 and text == language_model.generate("The", 20, temperature=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert drafting.generate("The", 20, temperature=0, speculate="auto") == text
        assert len(drafting.generate(["The", "A"], 20, temperature=0, speculate="auto")) == 2
