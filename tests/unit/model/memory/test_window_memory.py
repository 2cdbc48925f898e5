"""model/memory/window_memory.py: groups to tokens, their places before a window, and who sees them."""

import pytest
import torch

from model import ModelConfig, TransformerLM
from model.attention import causal_mask
from model.memory import WindowMemory
from model.memory.window_memory import memory_mask
from model.tensors import Memory


def test_a_token_is_the_projected_mean_of_its_group(make):
    memory = make().memory
    hidden = torch.randn(3, 16, 32)
    tokens, present = memory.summarise(hidden)
    assert memory.size == 4 and memory.group == 4 and present.all()
    torch.testing.assert_close(tokens[1, 2], memory.projection.weight @ hidden[1, 8:12].mean(dim=0))


def test_only_what_is_counted_is_summed_up(make):
    memory = make().memory
    hidden, counted = torch.randn(1, 16, 32), torch.zeros(1, 16, dtype=torch.bool)
    counted[0, 6:12] = True  # half of the second group and all of the third
    tokens, present = memory.summarise(hidden, counted)
    assert present.tolist() == [[False, True, True, False]]
    torch.testing.assert_close(tokens[0, 1], memory.projection.weight @ hidden[0, 6:8].mean(dim=0))
    assert torch.isfinite(tokens).all()


def test_fewer_tokens_take_the_places_next_to_the_window(make):
    memory, tokens = make().memory, torch.randn(1, 2, 32)
    torch.testing.assert_close(memory.placed(tokens)[0], tokens[0] + memory.places.weight[2:])


def test_rotations_are_those_of_the_middle_of_each_group(make):
    model = make(positions="rotary")
    own, table = model.memory.rotations(model.rotary, 4), model.rotary(16)
    # Of groups of 4 the middles are 14.5, 10.5, 6.5 and 2.5 before the window: the angles between two tables' rows.
    for number, distance in enumerate((14.5, 10.5, 6.5, 2.5)):
        angle = torch.atan2(own[1, number, 0], own[0, number, 0])
        assert torch.remainder(-angle - distance, 2 * torch.pi) == pytest.approx(0, abs=1e-4) or torch.remainder(
            -angle - distance, 2 * torch.pi
        ) == pytest.approx(2 * torch.pi, abs=1e-4)
    assert own.shape == (2, 4, 4) and own.dtype == table.dtype


def test_the_mask_says_who_sees_what():
    memory = Memory(
        torch.zeros(1, 3, 8), torch.tensor([[False, True, True]]), torch.tensor([[True, True, False, False]])
    )
    mask = memory_mask(memory, causal_mask(4)[None, None])
    assert mask.shape == (1, 1, 7, 7)
    assert mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0],  # there is no such token: it sees itself, and nobody sees it
        [0, 1, 0, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0, 0],
        [0, 1, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 1, 0, 0],
        [0, 0, 0, 1, 1, 1, 0],  # of another document
        [0, 0, 0, 1, 1, 1, 1],
    ]
    assert memory_mask(memory._replace(readers=None), causal_mask(4)[None, None])[0, 0, 3:, 1:3].all()


def test_the_trunk_starts_as_without_memory_and_draws_what_it_drew():
    shape = {"hidden_size": 32, "num_layers": 2, "seq_length": 16}
    models, drawn = [], []
    for tokens in (0, 4):
        torch.manual_seed(0)
        models.append(TransformerLM(ModelConfig(**shape, memory_tokens=tokens), 500))
        drawn.append(torch.rand(1))
    plain, remembering = (dict(model.named_parameters()) for model in models)
    assert drawn[0] == drawn[1]
    assert all(torch.equal(parameter, remembering[name]) for name, parameter in plain.items())
    assert remembering.keys() - plain.keys() == {"memory.projection.weight", "memory.places.weight"}
    assert models[0].memory is None


@pytest.mark.parametrize("tokens", [3, 6, 32])
def test_groups_that_do_not_come_out_even_are_refused(tokens):
    config = ModelConfig(hidden_size=32, seq_length=16, memory_tokens=tokens)
    with pytest.raises(ValueError, match=f"memory_tokens {tokens} is no even divisor of seq_length 16"):
        WindowMemory.create(config, None)


def test_longer_windows_have_larger_groups(make):
    model = make()
    model.extend_max_seq_len(32)
    assert model.memory.length == 32 and model.memory.group == 8
    with pytest.raises(ValueError, match="no even divisor"):
        model.extend_max_seq_len(33)
