"""model/decoding/generate.py: decoding with a cache equals decoding without, alone and in company."""

import torch

from model import TransformerLM
from model.decoding import kernel
from model.decoding.decoder import Weights
from model.decoding.generate import Token, generate_tokens
from model.decoding.settings import GenerationSettings

EOS = 0


def greedy_without_cache(model: TransformerLM, prompt: list[int], count: int) -> tuple[list[int], list[float]]:
    """Every token from a fresh forward pass over the whole window; also by how much each choice won."""
    seq_length = model.config.seq_length
    window, output, margins = [EOS, *prompt][-seq_length:], [], []
    for _ in range(count):
        with torch.no_grad():
            logits = model.logits(model.hidden_states(torch.tensor([window]))[0, -1])
        best = logits.topk(2)
        output.append(int(best.indices[0]))
        margins.append(float(best.values[0] - best.values[1]))
        was_full = len(window) == seq_length
        window.append(output[-1])
        if was_full:
            window = window[-(seq_length // 2) :]
    return output, margins


def steps(model: TransformerLM, prompts: list[list[int]], **settings) -> list[Token]:
    decoder = Weights(model, "fp32").decoder(len(prompts))
    samples = [0] * len(prompts)
    return list(generate_tokens(decoder, prompts, GenerationSettings(**settings), EOS, samples, set()))


def generate(model: TransformerLM, prompt: list[int], **settings) -> list[int]:
    return [token.id for token in steps(model, [prompt], **settings) if token.id is not None]


def greedy(model, prompt, count):
    return generate(model, prompt, max_new_tokens=count, temperature=0, stop_at_eos=False)


def test_cached_decoding_equals_uncached_far_beyond_the_window(trained, token_ids):
    prompt = token_ids[100:110].tolist()
    expected, margins = greedy_without_cache(trained, prompt, 400)
    near_ties = [index for index, margin in enumerate(margins) if margin < 1e-4]  # where rounding could decide
    certain = near_ties[0] if near_ties else len(expected)
    assert certain > 200
    assert greedy(trained, prompt, 400)[:certain] == expected[:certain]
    assert len(set(expected)) > 50


def test_prompts_of_every_length_around_the_window(trained, token_ids):
    for length in (0, 1, 30, 31, 32, 33, 100):
        prompt = token_ids[200 : 200 + length].tolist()
        assert greedy(trained, prompt, 40) == greedy_without_cache(trained, prompt, 40)[0], length


def test_every_prompt_of_a_batch_gets_what_it_gets_alone(trained, token_ids):
    """Of different lengths, beyond the window at different times, and ending at different times."""
    prompts = [token_ids[300 : 300 + length].tolist() for length in (0, 3, 31, 32, 70, 7)]
    values = {"max_new_tokens": 90, "top_p": 0.95, "temperature": 1.4, "seed": 3, "no_repeat_ngram": 6}
    settings, ended = GenerationSettings(**values), set()
    together: dict[int, list[int]] = {row: [] for row in range(len(prompts))}
    decoder = Weights(trained, "fp32").decoder(len(prompts))
    for token in generate_tokens(decoder, prompts, settings, EOS, [0] * len(prompts), ended):
        together[token.row].append(token.id)
        if len(together[token.row]) == 15 * (token.row + 1):
            ended.add(token.row)
    for row, prompt in enumerate(prompts):
        assert together[row] == generate(trained, prompt, **values)[: 15 * (row + 1)]


def test_penalties_and_processors_apply_before_the_kernel_draws(trained, token_ids, monkeypatch):
    """The text is the one that torch draws."""

    def forbid(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores.index_fill(1, ids[0, -3:], -torch.inf)

    prompts, texts = [token_ids[400 : 400 + length].tolist() for length in (4, 9)], []
    settings = GenerationSettings(
        max_new_tokens=60, temperature=1.3, top_k=30, min_p=0.01, repetition_penalty=1.2, no_repeat_ngram=3,
        logits_processors=(forbid,), seed=5, stop_at_eos=False,
    )  # fmt: skip
    decoder = Weights(trained, "fp32").decoder(2)
    for library in (kernel.library, lambda: None):
        monkeypatch.setattr(kernel, "library", library)
        texts.append([token[:2] for token in generate_tokens(decoder, prompts, settings, EOS, [0, 0], set())])
    assert texts[0] == texts[1] and len(texts[0]) == 120
    for row, prompt in enumerate(prompts):
        text = prompt + [id for number, id in texts[0] if number == row]
        assert all(text[i] not in text[i - 3 : i] for i in range(len(prompt), len(text)))


def test_a_row_that_the_caller_ends_gets_no_more(trained):
    ended: set[int] = set()
    settings = GenerationSettings(max_new_tokens=20, temperature=0, stop_at_eos=False)
    found = []
    for token in generate_tokens(Weights(trained, "fp32").decoder(2), [[5], [6]], settings, EOS, [0, 0], ended):
        found.append(token.row)
        if len(found) == 7:
            ended.add(token.row)  # row 0, at its fourth token
    assert found.count(0) == 4 and found.count(1) == 20


def test_log_probabilities_are_the_models_before_any_setting(trained, token_ids):
    prompt = token_ids[:12].tolist()
    tokens = steps(trained, [prompt], max_new_tokens=5, temperature=3.0, top_k=4, seed=0, logprobs=3)
    window = [EOS, *prompt]
    for token in tokens:
        with torch.no_grad():
            logprobs = trained.logits(trained.hidden_states(torch.tensor([window]))[0, -1]).log_softmax(-1)
        assert abs(token.logprob - logprobs[token.id].item()) < 1e-4
        best = logprobs.topk(3)
        assert [id for id, _ in token.top] == best.indices.tolist()
        window.append(token.id)
    assert all(token.logprob is None for token in steps(trained, [prompt], max_new_tokens=2))


def test_padding_rows_are_never_sampled(config):
    torch.manual_seed(0)
    model = TransformerLM(config, 65).eval()  # 63 of 128 rows are padding
    with torch.no_grad():
        model.tokens.weight[65:] *= 1000
    tokens = generate(model, [], max_new_tokens=500, temperature=100.0, top_p=1.0, seed=0, stop_at_eos=False)
    assert len(tokens) == 500 and max(tokens) == 64


def test_no_ngram_occurs_twice(trained, token_ids):
    prompt = token_ids[:20].tolist()
    tokens = prompt + generate(trained, prompt, max_new_tokens=150, temperature=0, no_repeat_ngram=3, stop_at_eos=False)
    new = [tuple(tokens[i : i + 3]) for i in range(18, len(tokens) - 2)]
    old = {tuple(prompt[i : i + 3]) for i in range(18)}
    assert len(set(new)) == len(new) and not old & set(new)
    plain = prompt + greedy(trained, prompt, 150)
    plain_ngrams = [tuple(plain[i : i + 3]) for i in range(len(plain) - 2)]
    assert len(set(plain_ngrams)) < len(plain_ngrams)  # without the rule there are repetitions


def test_a_text_ends_when_every_token_is_forbidden(config):
    model = TransformerLM(config, 10).eval()
    tokens = steps(model, [[3]], max_new_tokens=50, no_repeat_ngram=1, stop_at_eos=False, seed=0)
    assert sorted(token.id for token in tokens[:-1]) == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert tokens[-1] == Token(0, None, "exhausted")


def test_end_of_text_stops_only_when_asked(config):
    model = TransformerLM(config, 10).eval()
    settings = {"max_new_tokens": 300, "top_p": 1.0, "seed": 1}
    stopped = steps(model, [[3]], **settings)
    endless = generate(model, [3], **settings, stop_at_eos=False)
    assert len(endless) == 300 and EOS in endless
    assert [token.id for token in stopped] == [*endless[: endless.index(EOS)], None]
    assert stopped[-1].stopped == "eos"
