"""The options of the `model` section: each against its definition, and all of what holds for the plain trunk."""

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from model import ModelConfig, TransformerLM
from model.attention import CausalSelfAttention
from model.positions import RotaryPositions, rotate
from model.snapshot.file import architecture_differences, restore
from model.transformer import MLP

OPTIONS = {
    "rotary": {"positions": "rotary"},
    "rms": {"norm": "rms"},
    "qk_norm": {"qk_norm": True},
    "squared_relu": {"mlp": "squared_relu"},
    "swiglu": {"mlp": "swiglu"},
    "no_bias": {"bias": False},
    "all": {
        "positions": "rotary",
        "norm": "rms",
        "qk_norm": True,
        "mlp": "swiglu",
        "bias": False,
        "tie_embeddings": False,
    },
}


def make(config: ModelConfig, option: str) -> TransformerLM:
    torch.manual_seed(0)
    return TransformerLM(config.model_copy(update=OPTIONS[option]), 500).eval()


@pytest.fixture(params=OPTIONS)
def model(request, config) -> TransformerLM:
    """With weights so large that every part matters."""
    model = make(config.model_copy(update={"init_std": 0.2}), request.param)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def test_rotations_tell_how_far_apart_two_tokens_are_and_nothing_else():
    rotary = RotaryPositions(64, 8)
    query, key = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)

    def score(at: int, other: int) -> float:
        return (rotate(query, rotary(1, at)) * rotate(key, rotary(1, other))).sum().item()

    for distance in (0, 1, 7, 30):
        scores = [score(start + distance, start) for start in (0, 5, 33)]
        assert scores == pytest.approx([scores[0]] * 3, abs=1e-4)
    assert score(1, 0) != pytest.approx(score(2, 0), abs=1e-3)
    torch.testing.assert_close(rotate(query, rotary(1, 0)), query)
    torch.testing.assert_close(rotate(query, rotary(1, 50)).norm(), query.norm())
    turned = rotate(torch.tensor([1.0, 0, 0, 0, 0, 0, 0, 0]).view(1, 1, 1, 8), rotary(1, 3)).flatten()
    assert turned[[0, 4]].tolist() == pytest.approx([math.cos(3), math.sin(3)], abs=1e-6)


def test_qk_norm_bounds_the_scores():
    torch.manual_seed(0)
    attention = CausalSelfAttention(32, 4, 0.0, 0, qk_norm=True)
    x = torch.randn(2, 10, 32)
    small = attention(x)
    with torch.no_grad():  # a hundred times the queries and keys: what is mixed stays the same
        attention.in_proj_weight[:64] *= 100
    torch.testing.assert_close(attention(x), small, atol=1e-5, rtol=1e-3)
    with torch.no_grad():
        attention.query_norm.weight *= 3
    assert not torch.allclose(attention(x), small, atol=1e-3)


@pytest.mark.parametrize("kind", ["gelu", "squared_relu", "swiglu"])
def test_each_mlp_is_what_its_name_says(kind):
    torch.manual_seed(0)
    mlp, x = MLP(96, kind), torch.randn(5, 96)
    up = F.linear(x, mlp.up.weight, mlp.up.bias)
    if kind == "gelu":
        inner = F.gelu(up)
    elif kind == "squared_relu":
        inner = up * up * (up > 0)
    else:
        inner = up[:, :256] * torch.sigmoid(up[:, :256]) * up[:, 256:]
    torch.testing.assert_close(mlp(x), F.linear(inner, mlp.down.weight, mlp.down.bias))
    assert sum(p.numel() for p in mlp.parameters() if p.ndim == 2) == 8 * 96**2


def test_without_biases_none_is_left(config):
    names = [name for name, _ in make(config, "no_bias").named_parameters()]
    assert names and not any("bias" in name for name in names)


def test_decoding_with_a_cache_equals_reading_the_whole(model, token_ids):
    ids, cache = token_ids[None, :32], model.new_cache()
    with torch.no_grad():
        pieces = [model.hidden_states(piece, cache) for piece in ids.split([9, 1, 1, 14, 7], dim=1)]
        whole = model.hidden_states(ids)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=1e-4, rtol=1e-4)


def test_later_tokens_never_change_earlier_outputs(model, token_ids):
    changed = token_ids[None, :32].clone()
    changed[0, 20:] = (changed[0, 20:] + 1) % 500
    with torch.no_grad():
        before, after = model.hidden_states(token_ids[None, :32]), model.hidden_states(changed)
    assert torch.equal(before[:, :20], after[:, :20]) and not torch.isclose(before[:, 20:], after[:, 20:]).all()


def test_a_segment_is_read_as_if_it_stood_alone(model, token_ids):
    ids = token_ids[None, :32]
    segment_ids = torch.tensor([[0] * 11 + [1] * 15 + [-1] * 6])
    with torch.no_grad():
        together = model.hidden_states(ids, segment_ids=segment_ids)
        for columns in (slice(0, 11), slice(11, 26)):
            alone = model.hidden_states(ids[:, columns])
            torch.testing.assert_close(together[:, columns], alone, atol=1e-4, rtol=1e-4)


def test_a_longer_window_leaves_what_was_learned(model, token_ids):
    longer = copy.deepcopy(model)
    longer.extend_max_seq_len(80)
    with torch.no_grad():
        assert torch.equal(longer.hidden_states(token_ids[None, :32]), model.hidden_states(token_ids[None, :32]))
        assert longer.hidden_states(token_ids[None, :80]).isfinite().all()


def test_weights_come_back_from_a_state_dict(model, token_ids):
    torch.manual_seed(1)
    other = TransformerLM(model.config, 500).eval()
    report = restore(other, model.state_dict())
    assert not report.new and not report.left_out
    with torch.no_grad():
        assert torch.equal(other.hidden_states(token_ids[None, :32]), model.hidden_states(token_ids[None, :32]))


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_learns_and_is_counted(config, token_ids, option):
    model = make(config, option).train()
    assert model.num_parameters() == sum(parameter.numel() for parameter in model.parameters())
    matrices = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and name.startswith("blocks"))
    head = model.padded_vocab_size * config.hidden_size
    attention = 12 * config.num_layers * config.hidden_size * config.seq_length
    assert model.flops_per_token() == 6 * (matrices + head) + attention
    rows, labels = token_ids[:256].view(8, 32), token_ids[1:257].view(8, 32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = model(rows, labels).loss_sum / labels.numel()
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(500), abs=0.3) and losses[-1] < losses[0] - 2


@pytest.mark.parametrize("option", OPTIONS)
def test_compiled_without_graph_breaks(config, token_ids, option):
    model = make(config, option)
    rows, labels = token_ids[:64].view(2, 32), token_ids[1:65].view(2, 32)
    expected = model(rows, labels).token_nll
    model.compile(backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(model(rows, labels).token_nll, expected)
    torch.compiler.reset()  # one code is compiled so and so many times only


def test_an_older_checkpoints_configuration_means_the_plain_trunk(config):
    older = {name: value for name, value in config.model_dump().items() if name not in OPTIONS["all"]}
    assert ModelConfig(**older) == config
    assert not architecture_differences(older, config.model_dump())
    for (name, option), value in itertools.product(OPTIONS.items(), [config.model_dump()]):
        differences = architecture_differences(older, value | option)
        assert len(differences) == len(option), name


def test_an_odd_head_cannot_be_rotated():
    with pytest.raises(ValidationError, match="12 over num_heads 4 is odd, and rotary positions turn pairs"):
        ModelConfig(hidden_size=12, num_heads=4, positions="rotary")
