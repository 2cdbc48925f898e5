import pytest
import torch

from model import ModelConfig, TransformerLM
from model.config.size import value_layers
from model.streams.streams import Streams, normalised


def streams(**options) -> Streams:
    made = Streams.create(ModelConfig(hidden_size=16, num_heads=2, seq_length=8, **options), 64)
    assert made is not None
    return made


def test_off_is_no_module():
    assert Streams.create(ModelConfig(), 64) is None
    model = TransformerLM(ModelConfig(hidden_size=16, num_layers=2, num_heads=2, seq_length=8), 64)
    assert model.streams is None and model.bigrams is None and model.context is None
    assert not any("gate" in name or "streams" in name for name in model.state_dict())


def test_the_first_half_reaches_the_second_in_reverse_order():
    made = streams(num_layers=5, skip_connections=True)
    outputs = [torch.full((1, 1, 16), 10.0**layer) for layer in range(4)]
    x = torch.ones(1, 1, 16)
    with torch.no_grad():
        for number, skip in enumerate(made.skips, 2):
            skip.scale.fill_(number)
    read = [made.into_block(layer, x, x, outputs[:layer])[0, 0, 0].item() for layer in range(5)]
    assert read == [1, 1, 1, 1 + 2 * 10, 1 + 3 * 1]


def test_scales_mix_the_stream_with_the_embedding():
    made = streams(num_layers=2, stream_scales=True)
    x, first = torch.randn(1, 3, 16), torch.randn(1, 3, 16)
    assert torch.equal(made.into_block(1, x, first, []), x)
    with torch.no_grad():
        made.scales[1].scales.copy_(torch.tensor([0.5, 3.0]))
    torch.testing.assert_close(made.into_block(1, x, first, []), 0.5 * x + 3 * first)


@pytest.mark.parametrize(("layers", "with_values"), [(1, [0]), (2, [1]), (3, [0, 2]), (6, [1, 3, 5])])
def test_every_second_block_and_the_last_has_values(layers: int, with_values: list[int]):
    config = ModelConfig(hidden_size=16, num_heads=2, num_layers=layers, seq_length=8, value_embeddings="tables")
    assert value_layers(config) == with_values
    made, ids = Streams.create(config, 64), torch.tensor([[3, 60]])
    assert made is not None
    for layer in range(layers):
        values = made.values_of(layer, ids, torch.zeros(1, 2, 16))
        assert (values is not None) == (layer in with_values)


def test_values_are_rows_of_a_table_or_a_projection():
    ids, first = torch.tensor([[3, 60, 3]]), torch.randn(1, 3, 16)
    tables = streams(num_layers=1, value_embeddings="tables")
    projections = streams(num_layers=1, value_embeddings="projections")
    with torch.no_grad():
        for made in (tables, projections):
            for parameter in made.parameters():
                parameter.normal_()
    assert torch.equal(tables.values_of(0, ids, first)[0], tables.values["0"].weight[ids[0]])
    assert torch.equal(projections.values_of(0, ids, first), first @ projections.values["0"].weight.T)


def test_normalised_states_have_a_mean_square_of_one():
    x = 1000 * torch.randn(2, 3, 64)
    torch.testing.assert_close(normalised(x).square().mean(-1), torch.ones(2, 3))
