"""model/attention.py against nn.MultiheadAttention itself."""

import torch
from torch import nn

from model.attention import CausalSelfAttention, KeyValueCache, causal_mask


def pair(dropout=0.0):
    torch.manual_seed(1)
    reference = nn.MultiheadAttention(32, 4, batch_first=True)
    nn.init.normal_(reference.in_proj_bias)
    attention = CausalSelfAttention(32, 4, dropout, layer=0)
    attention.load_state_dict(reference.state_dict())  # strict: the parameters' names and shapes are the same
    return attention, reference, torch.randn(3, 10, 32)


def test_equals_multihead_attention_with_an_explicit_mask():
    attention, reference, x = pair()
    expected, _ = reference(x, x, x, attn_mask=~causal_mask(10), need_weights=False)
    torch.testing.assert_close(attention(x), expected, atol=1e-6, rtol=1e-5)


def test_gradients_equal_multihead_attention():
    attention, reference, x = pair()
    attention(x).square().sum().backward()
    reference(x, x, x, attn_mask=~causal_mask(10), need_weights=False)[0].square().sum().backward()
    for (name, parameter), (_, expected) in zip(
        attention.named_parameters(), reference.named_parameters(), strict=True
    ):
        torch.testing.assert_close(parameter.grad, expected.grad, atol=1e-4, rtol=1e-4, msg=name)


def test_any_split_into_cached_pieces_equals_one_pass():
    attention, _, x = pair()
    expected = attention(x)
    for pieces in ([10], [1] * 10, [4, 6], [4, 1, 3, 2]):
        cache = KeyValueCache(1, 3, 4, 10, 8, like=x)
        outputs = []
        for piece in x.split(pieces, dim=1):
            outputs.append(attention(piece, cache, causal_mask(10)))
            cache.length += piece.shape[1]
        torch.testing.assert_close(torch.cat(outputs, dim=1), expected, atol=1e-6, rtol=1e-5)


def test_a_shorter_length_forgets_the_tokens_after_it():
    attention, _, x = pair()
    cache = KeyValueCache(1, 3, 4, 10, 8, like=x)
    attention(x[:, :4], cache, causal_mask(10))
    cache.length = 4
    attention(torch.ones_like(x[:, :5]), cache, causal_mask(10))  # tokens that are taken back
    again = attention(x[:, 4:], cache, causal_mask(10))
    torch.testing.assert_close(again, attention(x)[:, 4:], atol=1e-6, rtol=1e-5)


def test_dropout_acts_in_training_only():
    attention, _, x = pair(dropout=0.5)
    assert not torch.equal(attention(x), attention(x))
    attention.eval()
    assert torch.equal(attention(x), attention(x))
