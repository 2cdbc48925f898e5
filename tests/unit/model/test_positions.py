"""model/positions.py and extend_max_seq_len."""

import copy

import pytest
import torch
from torch import nn

from model import ModelConfig, TransformerLM
from model.positions import RotaryPositions, extended_rows


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


def test_the_extended_model_reads_and_learns_at_the_new_positions(trained, token_ids):
    model = copy.deepcopy(trained)
    with pytest.raises(ValueError, match="80 tokens do not fit seq_length 32"):
        model.hidden_states(token_ids[None, :80])
    model.extend_max_seq_len(80)
    output = model(token_ids[None, :80], token_ids[None, 1:81])
    output.loss_sum.backward()
    assert model.positions.weight.grad[79].abs().sum() > 0
    cache = model.eval().new_cache()
    with torch.no_grad():
        pieces = [model.hidden_states(piece, cache) for piece in token_ids[None, :80].split([50, 20, 10], dim=1)]
        whole = model.hidden_states(token_ids[None, :80])
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=1e-5, rtol=1e-4)


def test_shortening_is_refused():
    with pytest.raises(ValueError, match="seq_length 32 cannot be extended to 16; give a larger length"):
        TransformerLM(ModelConfig(hidden_size=8, seq_length=32), 64).extend_max_seq_len(16)


def test_rotations_stay_in_fp32_in_a_model_that_does_not():
    rotations = RotaryPositions(16, 8)
    exact = rotations.table.clone()
    assert torch.equal(nn.Sequential(rotations).to(torch.bfloat16)[0].table, exact)


def test_rotations_go_on_beyond_the_table():
    """Look-ahead from the last tokens of a full row stands there; the table itself stays as long as it is."""
    short, long = RotaryPositions(16, 8), RotaryPositions(32, 8)
    assert torch.equal(short(6, start=13), long(6, start=13)) and short.table.shape == (2, 16, 4)
