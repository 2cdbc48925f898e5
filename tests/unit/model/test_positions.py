"""model/positions.py, and TransformerLM.extend_max_seq_len."""

import copy
import math

import pytest
import torch
from torch import nn

from model import ModelConfig, TransformerLM
from model.positions import BASE, RotaryPositions, attention_factor, extended_rows, frequencies, rope_base, rotate


def rotary_positions(seq_length: int, head_size: int, **options) -> RotaryPositions:
    return RotaryPositions(ModelConfig(num_heads=1, hidden_size=head_size, seq_length=seq_length, **options))


def test_new_rows_continue_with_the_second_half():
    rows = torch.arange(6.0)[:, None]
    assert extended_rows(rows, 14)[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 3, 4, 5, 3, 4, 5, 3, 4]
    assert extended_rows(torch.arange(3.0)[:, None], 6)[:, 0].tolist() == [0, 1, 2, 1, 2, 1]


def test_extension_keeps_learned_rows_and_outputs_to_the_bit(trained, token_ids):
    model = copy.deepcopy(trained)
    model.extend_max_seq_len(80)
    assert torch.equal(model.positions.weight[:32], trained.positions.weight)
    assert model.config.seq_length == 80 and model.causal_mask.shape == (80, 80) and len(model.positions.ids) == 80
    with torch.no_grad():
        assert torch.equal(model.hidden_states(token_ids[None, :32]), trained.hidden_states(token_ids[None, :32]))


def test_an_extended_model_reads_and_learns_further(trained, token_ids):
    model = copy.deepcopy(trained)
    with pytest.raises(ValueError, match="80 tokens do not fit seq_length 32"):
        model.hidden_states(token_ids[None, :80])
    model.extend_max_seq_len(80)
    output = model(token_ids[None, :80], token_ids[None, 1:81])
    output.loss_sum.backward()
    assert model.positions.weight.grad[79].abs().sum() > 0
    cache = model.eval().new_cache()
    with torch.no_grad():
        parts = [model.hidden_states(part, cache) for part in token_ids[None, :80].split([50, 20, 10], dim=1)]
        whole = model.hidden_states(token_ids[None, :80])
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=1e-4)


def test_shortening_is_refused():
    with pytest.raises(ValueError, match="seq_length 32 cannot be extended to 16; give a larger length"):
        TransformerLM(ModelConfig(hidden_size=8, seq_length=32), 64).extend_max_seq_len(16)


def test_rotations_stay_in_fp32_in_a_bf16_model():
    rotations = rotary_positions(16, 8)
    exact = rotations.table.clone()
    assert torch.equal(nn.Sequential(rotations).to(torch.bfloat16)[0].table, exact)


def test_rotations_go_on_beyond_the_table():
    """Rollouts from the last tokens of a full row go there; the table keeps its length."""
    short, long = rotary_positions(16, 8), rotary_positions(32, 8)
    assert torch.equal(short(6, start=13), long(6, start=13)) and short.table.shape == (2, 16, 4)


def test_rotations_encode_the_distance_and_nothing_else():
    rotary = rotary_positions(64, 8)
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


def scaled(kind: str, size: int = 64, length: int = 1024, original: int | None = 256) -> ModelConfig:
    return ModelConfig(
        num_heads=1,
        hidden_size=size,
        seq_length=length,
        positions="rotary",
        rope_scaling=kind,
        rope_original_length=original,
    )


def test_nothing_is_scaled_before_rows_become_longer():
    plain = frequencies(scaled("none"))
    for kind in ("linear", "ntk", "yarn"):
        config = scaled(kind, original=None)
        assert torch.equal(frequencies(config), plain) and attention_factor(config) == 1 and rope_base(config) == BASE


def test_linear_scaling_divides_positions():
    long, short = rotary_positions(64, 8, rope_scaling="linear", rope_original_length=16), rotary_positions(16, 8)
    torch.testing.assert_close(long.table[:, ::4], short.table, atol=1e-6, rtol=0)


def test_ntk_scaling_keeps_the_fastest_pair_and_divides_the_slowest():
    plain, slower = frequencies(scaled("none")), frequencies(scaled("ntk"))
    assert rope_base(scaled("ntk")) == pytest.approx(BASE * 4 ** (64 / 62))
    assert slower[0] == plain[0] and slower[-1].item() == pytest.approx(plain[-1].item() / 4)


@pytest.mark.parametrize("shape", [(64, 1024, 256), (32, 2048, 512), (8, 128, 32)])
def test_scalings_are_those_of_transformers(shape: tuple[int, int, int]):
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    size, length, original = shape
    for kind in ("linear", "yarn"):
        parameters = {"rope_type": kind, "rope_theta": BASE, "factor": length / original}
        if kind == "yarn":
            parameters["original_max_position_embeddings"] = original
        theirs = LlamaConfig(
            hidden_size=size, num_attention_heads=1, max_position_embeddings=length, rope_parameters=parameters
        )
        expected, factor = ROPE_INIT_FUNCTIONS[kind](theirs, "cpu")
        config = scaled(kind, size, length, original)
        torch.testing.assert_close(frequencies(config).float(), expected, rtol=1e-5, atol=1e-8)
        assert attention_factor(config) == pytest.approx(factor)


def test_an_extension_scales_by_the_first_length():
    model = TransformerLM(scaled("yarn", 16, 64, None), 64)
    for length in (128, 256):
        model.extend_max_seq_len(length)
        assert model.config.rope_original_length == 64 and model.config.rope_factor == length / 64
        assert torch.equal(model.rotary.table, RotaryPositions(model.config).table)


def test_resampled_rows_go_from_the_first_to_the_last():
    rows = torch.arange(4.0)[:, None]
    assert extended_rows(rows, 8, "resample")[:, 0].tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3]
    assert extended_rows(rows, 4, "resample")[:, 0].tolist() == [0, 1, 2, 3]
    model = TransformerLM(ModelConfig(hidden_size=8, seq_length=4, position_extension="resample"), 64)
    before = model.positions.weight.clone()
    model.extend_max_seq_len(8)
    assert torch.equal(model.positions.weight[::2], before)
