"""Rows of several segments, across attention, positions and loss: each segment is read as if it stood alone."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from model import ModelConfig, TransformerLM
from model.attention import causal_mask, segment_mask
from model.positions import segment_starts

LENGTH = 32
ROWS = [[5, 9, 1, 12], [32], [31, 1], []]  # lengths of the segments; the rest of a row is padding


class Operators(TorchDispatchMode):
    """The names of all operators that run inside."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


def test_a_mask_is_true_in_a_segment_up_to_the_diagonal():
    mask = segment_mask(torch.tensor([[0, 0, 1, -1, -1]]), causal_mask(5))
    assert mask.shape == (1, 1, 5, 5)
    assert mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 0, 1, 0],
        [0, 0, 0, 1, 1],
    ]


def test_segments_start_where_their_number_changes():
    segment_ids = torch.tensor([[0, 0, 1, 2, 2, -1, -1], [0] * 7, [-1] * 7], dtype=torch.int32)
    assert segment_starts(segment_ids, torch.arange(7)).tolist() == [[0, 0, 2, 3, 3, 5, 5], [0] * 7, [0] * 7]


def test_every_segment_has_the_losses_it_has_alone(trained, pack):
    (input_ids, labels, segment_ids), alone = pack(ROWS)
    with torch.no_grad():
        packed = trained(input_ids, labels, segment_ids)
        expected = trained(*alone)
        mixed = trained(input_ids, labels)
    nll = packed.token_nll[labels != -100]
    torch.testing.assert_close(nll, expected.token_nll[alone[1] != -100], atol=1e-5, rtol=0)
    torch.testing.assert_close(packed.loss_sum, expected.loss_sum)
    assert (nll - mixed.token_nll[labels != -100]).abs().max() > 0.1  # the mask does something


def test_gradients_are_those_of_the_segments_alone(config, pack):
    torch.manual_seed(0)
    model = TransformerLM(config, 500)
    packed, alone = pack(ROWS)
    gradients = []
    for inputs in (packed, alone):
        model.zero_grad()
        model(*inputs).loss_sum.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)


def test_a_token_changes_only_what_follows_in_its_segment(trained, pack):
    (input_ids, _, segment_ids), _ = pack(ROWS)
    changed = input_ids.clone()
    changed[0, 8] += 1  # the fourth token of the second segment, which is 5..13
    with torch.no_grad():
        before = trained.hidden_states(input_ids, segment_ids=segment_ids)
        after = trained.hidden_states(changed, segment_ids=segment_ids)
    same = (before == after).all(dim=-1)
    assert same[1:].all()
    assert same[0].tolist() == [not 8 <= position < 14 for position in range(LENGTH)]


@pytest.mark.parametrize("bf16", [False, True])
def test_rows_of_padding_alone_stay_finite(config, bf16):
    torch.manual_seed(0)
    model = TransformerLM(config, 500)
    input_ids = torch.zeros(2, LENGTH, dtype=torch.int64)
    padding = torch.full_like(input_ids, -100), torch.full((2, LENGTH), -1, dtype=torch.int32)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        output = model(input_ids, *padding)
    hidden = model.hidden_states(input_ids, segment_ids=padding[1])
    (output.loss_sum + hidden.sum()).backward()
    assert output.loss_sum == 0 and torch.isfinite(hidden).all()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_one_segment_a_row_is_the_plain_model(trained, token_ids):
    input_ids, labels = token_ids[:64].view(2, LENGTH), token_ids[1:65].view(2, LENGTH)
    with torch.no_grad():
        plain = trained(input_ids, labels)
        masked = trained(input_ids, labels, torch.zeros_like(input_ids, dtype=torch.int32))
    torch.testing.assert_close(masked.token_nll, plain.token_nll, atol=1e-5, rtol=0)


def test_one_mask_with_segments_and_none_without(pack):
    model = TransformerLM(ModelConfig(num_layers=3, hidden_size=32, seq_length=LENGTH), 500)
    (input_ids, _, segment_ids), _ = pack(ROWS)
    with torch.no_grad(), Operators() as masked:
        model.hidden_states(input_ids, segment_ids=segment_ids)
    with torch.no_grad(), Operators() as plain:
        model.hidden_states(input_ids)
    made = [name for name in masked.names if name in ("eq", "bitwise_and", "__and__", "cummax")]
    assert len(made) == 3
    assert not {"eq", "ne", "bitwise_and", "__and__", "where", "cummax", "sub"} & set(plain.names)


def test_compiled_once_for_all_segments(config, pack):
    torch.manual_seed(0)
    model = TransformerLM(config, 500)
    (input_ids, labels, segment_ids), _ = pack(ROWS)
    other = segment_ids.roll(1, dims=0)
    expected = [model(input_ids, labels, ids).loss_sum for ids in (segment_ids, other)]
    model.compile(backend="aot_eager", fullgraph=True)
    losses = [model(input_ids, labels, segment_ids).loss_sum]
    with torch.compiler.set_stance("fail_on_recompile"):
        losses.append(model(input_ids, labels, other).loss_sum)
    torch.testing.assert_close(losses, expected)
    losses[1].backward()
