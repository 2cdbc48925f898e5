"""model/positions.py, and TransformerLM.extend_max_seq_len."""

import copy
import math

import pytest
import torch
from torch import nn

from model import ModelConfig, TransformerLM
from model.positions import RotaryPositions, extended_rows, rotate


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
    rotations = RotaryPositions(16, 8)
    exact = rotations.table.clone()
    assert torch.equal(nn.Sequential(rotations).to(torch.bfloat16)[0].table, exact)


def test_rotations_go_on_beyond_the_table():
    """Rollouts from the last tokens of a full row go there; the table keeps its length."""
    short, long = RotaryPositions(16, 8), RotaryPositions(32, 8)
    assert torch.equal(short(6, start=13), long(6, start=13)) and short.table.shape == (2, 16, 4)


def test_rotations_encode_the_distance_and_nothing_else():
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
