"""Decoding token by token with a key-value cache.

When the window of seq_length tokens is full, its last half is kept and the cache is rebuilt from it: learned positions
cannot slide, and rebuilding once per half window costs far less than reading the whole window again for every token.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ..attention import KeyValueCache
from ..transformer import TransformerLM
from .sampling import RepeatedNgrams, SamplingOptions, choose


def generate_tokens(
    model: TransformerLM, prompt: list[int], options: SamplingOptions, eos_token_id: int
) -> Iterator[int]:
    """Yield up to max_new_tokens token ids that continue the document that begins with `prompt`, which may be empty.

    The document follows an end-of-text token, as in training. Only the last seq_length tokens of a longer prompt are
    read. With stop_at_eos the end-of-text token stops generation and is not yielded.
    """
    seq_length = model.config.seq_length
    generator = options.generator()
    repeated = RepeatedNgrams(options.no_repeat_ngram, prompt)  # without the end-of-text token, which may repeat
    tokens = [eos_token_id, *prompt][-seq_length:]
    cache = model.new_cache()
    unread = tokens
    for _ in range(options.max_new_tokens):
        token = choose(_next_logits(model, unread, cache), options, repeated.forbidden(), generator)
        if token is None or (options.stop_at_eos and token == eos_token_id):
            return
        yield token
        repeated.add(token)
        tokens.append(token)
        unread = [token]
        if cache.length == seq_length:
            unread = tokens[-max(1, seq_length // 2) :]
            cache.length = 0


@torch.no_grad()
def _next_logits(model: TransformerLM, tokens: list[int], cache: KeyValueCache) -> Tensor:
    """(vocab_size,): the distribution after `tokens`, which are added to the cache."""
    input_ids = torch.tensor([tokens], device=cache.keys.device)
    return model.logits(model.hidden_states(input_ids, cache)[0, -1])
