"""model/attention.py against nn.MultiheadAttention itself."""

import pytest
import torch
from torch import nn

from model.attention import CausalSelfAttention, KeyValueCache, attend, causal_mask, segment_mask, without_own


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


def test_a_seed_draws_what_multihead_attention_draws():
    for bias in (True, False):
        drawn = []
        for make in (CausalSelfAttention, nn.MultiheadAttention):
            torch.manual_seed(7)
            module = make(32, 4, 0.0, **({"layer": 0} if make is CausalSelfAttention else {}), bias=bias)
            drawn.append([torch.get_rng_state(), *module.state_dict().values()])
        assert len(drawn[0]) == len(drawn[1]) and all(map(torch.equal, *drawn))


def test_gradients_equal_multihead_attention():
    attention, reference, x = pair()
    attention(x).square().sum().backward()
    reference(x, x, x, attn_mask=~causal_mask(10), need_weights=False)[0].square().sum().backward()
    for (name, parameter), (_, expected) in zip(
        attention.named_parameters(), reference.named_parameters(), strict=True
    ):
        torch.testing.assert_close(parameter.grad, expected.grad, atol=1e-4, rtol=1e-4, msg=name)


def test_exclusive_attention_leaves_out_a_positions_own_value():
    attention, _, x = pair()
    attention.exclusive = True
    attention.out_proj = nn.Identity()
    own = nn.functional.linear(x, attention.in_proj_weight, attention.in_proj_bias)[..., 64:].unflatten(-1, (4, 8))
    mixed = attention(x).unflatten(-1, (4, 8))
    assert float((mixed * own).detach().sum(-1).abs().max()) < 1e-5
    assert float(mixed[:, 0].detach().abs().max()) < 1e-5  # the first position sees nothing but itself
    attention.exclusive = False
    along = mixed - attention(x).unflatten(-1, (4, 8))
    crossed = along[..., :, None] * own[..., None, :]
    torch.testing.assert_close(crossed, crossed.mT, atol=1e-5, rtol=1e-4)  # what is left out is along it


def test_a_value_of_zeros_has_no_direction_to_leave_out():
    mixed = torch.randn(1, 2, 3, 8)
    torch.testing.assert_close(without_own(mixed, torch.zeros_like(mixed)), mixed)


@pytest.mark.parametrize("segments", [False, True])
def test_attend_equals_sdpa(segments: bool, monkeypatch):
    torch.manual_seed(0)
    attention, x, triangle = CausalSelfAttention(64, 2, 0.0, layer=0), torch.randn(3, 40, 64), causal_mask(48)
    ids = torch.tensor([[0] * 13 + [1] * 20 + [-1] * 7, [0] * 40, [0] * 39 + [1]])
    mask = segment_mask(ids, triangle[:40, :40]) if segments else None
    calls = []
    monkeypatch.setattr("model.attention.QUERIES_AT_A_TIME", 16)  # the last ones are fewer
    monkeypatch.setattr("model.attention.attend", lambda *tensors: calls.append(1) or attend(*tensors))

    def run(dtype: torch.dtype) -> list[torch.Tensor]:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            mixed = attention(x, None, triangle, mask)
        return [mixed.float(), *torch.autograd.grad(mixed.float().square().sum(), list(attention.parameters()))]

    exact = run(torch.float32)
    assert not calls
    attended = run(torch.bfloat16)
    assert calls
    monkeypatch.setattr("model.attention.SHORT_ROW", 0)
    sdpa = run(torch.bfloat16)
    assert len(calls) == 1
    for ours, sdpas, truth in zip(attended, sdpa, exact, strict=True):
        error = (ours - truth).norm() / truth.norm()
        assert error < 0.02 and error < 2 * (sdpas - truth).norm() / truth.norm()


def test_any_split_with_a_cache_equals_one_call():
    attention, _, x = pair()
    expected = attention(x)
    for lengths in ([10], [1] * 10, [4, 6], [4, 1, 3, 2]):
        cache = KeyValueCache(x.new_zeros(1, 3, 4, 10, 8), x.new_zeros(1, 3, 4, 10, 8))
        outputs = []
        for part in x.split(lengths, dim=1):
            outputs.append(attention(part, cache, causal_mask(10)))
            cache.length += part.shape[1]
        torch.testing.assert_close(torch.cat(outputs, dim=1), expected, atol=1e-6, rtol=1e-5)


def test_a_shorter_length_forgets_the_tokens_after_it():
    attention, _, x = pair()
    cache = KeyValueCache(x.new_zeros(1, 3, 4, 10, 8), x.new_zeros(1, 3, 4, 10, 8))
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


def test_qk_norm_bounds_the_scores():
    torch.manual_seed(0)
    attention = CausalSelfAttention(32, 4, 0.0, 0, qk_norm=True)
    x = torch.randn(2, 10, 32)
    small = attention(x)
    with torch.no_grad():  # queries and keys a hundred times as large leave the output as it is
        attention.in_proj_weight[:64] *= 100
    torch.testing.assert_close(attention(x), small, atol=1e-5, rtol=1e-3)
    with torch.no_grad():
        attention.query_norm.weight *= 3
    assert not torch.allclose(attention(x), small, atol=1e-3)
