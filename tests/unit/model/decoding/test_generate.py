"""model/decoding/generate.py: decoding with a cache equals decoding without."""

import torch

from model import TransformerLM
from model.decoding.generate import generate_tokens
from model.decoding.sampling import SamplingOptions

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


def greedy(model, prompt, count):
    options = SamplingOptions(max_new_tokens=count, temperature=0, stop_at_eos=False)
    return list(generate_tokens(model, prompt, options, EOS))


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


def test_padding_rows_are_never_sampled(config):
    torch.manual_seed(0)
    model = TransformerLM(config, 65).eval()  # 63 of 128 rows are padding
    with torch.no_grad():
        model.tokens.weight[65:] *= 1000
    options = SamplingOptions(max_new_tokens=500, temperature=100.0, top_p=1.0, seed=0, stop_at_eos=False)
    tokens = list(generate_tokens(model, [], options, EOS))
    assert len(tokens) == 500 and max(tokens) == 64


def test_no_ngram_occurs_twice(trained, token_ids):
    prompt = token_ids[:20].tolist()
    options = SamplingOptions(max_new_tokens=150, temperature=0, no_repeat_ngram=3, stop_at_eos=False)
    tokens = prompt + list(generate_tokens(trained, prompt, options, EOS))
    new = [tuple(tokens[i : i + 3]) for i in range(18, len(tokens) - 2)]
    old = {tuple(prompt[i : i + 3]) for i in range(18)}
    assert len(set(new)) == len(new) and not old & set(new)
    plain = prompt + greedy(trained, prompt, 150)
    plain_ngrams = [tuple(plain[i : i + 3]) for i in range(len(plain) - 2)]
    assert len(set(plain_ngrams)) < len(plain_ngrams)  # without the rule there are repetitions


def test_generation_ends_when_every_token_is_forbidden(config):
    model = TransformerLM(config, 10).eval()
    options = SamplingOptions(max_new_tokens=50, no_repeat_ngram=1, stop_at_eos=False, seed=0)
    assert sorted(generate_tokens(model, [3], options, EOS)) == [0, 1, 2, 4, 5, 6, 7, 8, 9]


def test_end_of_text_stops_only_when_asked(config):
    model = TransformerLM(config, 10).eval()
    options = {"max_new_tokens": 300, "top_p": 1.0, "seed": 1}
    stopped = list(generate_tokens(model, [3], SamplingOptions(**options), EOS))
    endless = list(generate_tokens(model, [3], SamplingOptions(**options, stop_at_eos=False), EOS))
    assert len(endless) == 300 and EOS in endless
    assert stopped == endless[: endless.index(EOS)]
