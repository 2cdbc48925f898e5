"""model/export/architecture.py: names of tensors, and what of a model is exported."""

import torch

from model import ModelConfig, TransformerLM
from model.export.architecture import Architecture, exported_tensors, with_padding

LAYERS = Architecture(
    name="Some",
    options={"norm": ("rms",), "mlp": ("gelu", "swiglu")},
    names={"tokens": ("embed",), "blocks.{}.attention.in_proj": ("h.{}.q", "h.{}.k", "h.{}.v")},
)


def test_names_carry_the_number_of_the_block_and_the_parameter():
    assert LAYERS.their_names("tokens.weight") == ("embed.weight",)
    names = ("h.12.q.weight", "h.12.k.weight", "h.12.v.weight")
    assert LAYERS.their_names("blocks.12.attention.in_proj_weight") == names
    assert LAYERS.their_names("blocks.0.attention.in_proj_bias")[2] == "h.0.v.bias"


def test_differences_name_what_would_have_to_change():
    assert LAYERS.differences(ModelConfig(norm="rms")) == []
    assert LAYERS.differences(ModelConfig(mlp="squared_relu")) == ["norm rms", "mlp gelu or swiglu"]


def test_padding_and_the_lookahead_core_stay_here(everything):
    config = ModelConfig(num_layers=1, num_heads=2, hidden_size=16, seq_length=128, tie_embeddings=False)
    model = TransformerLM(config, 100, everything)
    exported = exported_tensors(model.state_dict(), 100)
    assert exported.keys() == {name for name, _ in TransformerLM(config, 100).named_parameters()}
    assert len(exported["tokens.weight"]) == len(exported["lm_head.weight"]) == 100
    padded = with_padding("tokens.weight", exported["tokens.weight"], 128)
    assert torch.equal(padded[:100], model.tokens.weight[:100]) and padded.shape == (128, 16) and not padded[100:].any()
    assert with_padding("positions.weight", exported["positions.weight"], 128) is exported["positions.weight"]
