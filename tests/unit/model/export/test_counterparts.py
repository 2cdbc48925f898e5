"""model/export/counterparts.py: each combination of options has one counterpart or none, and all presets have one."""

import itertools

import pytest

from engine.config import load_preset, preset_files
from model import ExportError, ModelConfig
from model.config import ADDITIONS
from model.export.architecture import choose
from model.export.counterparts import COUNTERPARTS, recognise

OPTIONS = {
    "positions": ("learned", "rotary"),
    "norm": ("layer", "rms"),
    "qk_norm": (False, True),
    "mlp": ("gelu", "squared_relu", "swiglu"),
    "bias": (False, True),
}
COMBINATIONS = [dict(zip(OPTIONS, values, strict=True)) for values in itertools.product(*OPTIONS.values())]


def test_the_rows_name_every_option():
    untouched = {"num_layers", "num_heads", "hidden_size", "seq_length", "tie_embeddings", "dropout", "init_std"}
    untouched |= {"num_experts", "experts_per_token", "shared_experts", "moe_layers", "expert_hidden_size"}
    untouched |= {"head_init", "z_loss", "position_extension"}  # what a model computes is the same
    untouched |= {"rope_scaling", "rope_original_length", "layer_rescaling"}  # described by their own keys, or folded
    assert ModelConfig.model_fields.keys() == OPTIONS.keys() | untouched | ADDITIONS.keys()
    assert all(row.options.keys() - {"moe_layers"} == OPTIONS.keys() for row in COUNTERPARTS)


@pytest.mark.parametrize("options", COMBINATIONS, ids=lambda options: " ".join(map(str, options.values())))
def test_a_combination_has_one_counterpart_or_a_sentence(options):
    config = ModelConfig(**options, dropout=0.25, init_std=0.125, tie_embeddings=False)
    fitting = [row for row in COUNTERPARTS if not row.differences(config)]
    if not fitting:
        with pytest.raises(ExportError, match=r"^transformers has no architecture .* the nearest one, \w+, needs \w+ "):
            choose(COUNTERPARTS, config, "transformers")
        return
    (row,) = fitting
    assert choose(COUNTERPARTS, config, "transformers") is row
    assert recognise(row.describe(config)) == (row, config)


def test_as_many_combinations_as_rows_say_have_one():
    """A row that gets lost is noticed here."""
    have = [c for c in COMBINATIONS if any(not row.differences(ModelConfig(**c)) for row in COUNTERPARTS)]
    assert len(have) == 11


@pytest.mark.parametrize("path", preset_files(), ids=lambda path: path.stem)
def test_every_preset_has_a_counterpart(path):
    row = choose(COUNTERPARTS, load_preset(path).model, "transformers")
    assert row.name == ("GPT2LMHeadModel" if path.stem == "03_reference" else "ApertusForCausalLM")


def test_the_nearest_counterpart_is_named():
    with pytest.raises(ExportError) as caught:
        choose(COUNTERPARTS, ModelConfig(positions="rotary", norm="rms", qk_norm=True, mlp="swiglu"), "transformers")
    assert str(caught.value) == (
        "transformers has no architecture for a model of positions rotary, norm rms, qk_norm True, mlp swiglu, bias "
        "True; the nearest one, Qwen3ForCausalLM, needs bias False."
    )


@pytest.mark.parametrize(
    "addition",
    [
        *({key: True} for key in ("embedding_norm", "stream_scales", "skip_connections")),
        *({key: True} for key in ("attention_gates", "exclusive_attention")),
        {"value_embeddings": "tables"},
        {"bigram_rows": 100},
        {"embedding_context": 1},
        {"logit_softcap": 15.0},
        {"embedding_size": 64},
    ],
    ids=lambda addition: next(iter(addition)),
)
def test_what_no_other_program_has_is_refused(addition):
    ((key, value),) = addition.items()
    portable = {"positions": "rotary", "norm": "rms", "qk_norm": True, "mlp": "squared_relu", "bias": False}
    with pytest.raises(ExportError) as caught:
        choose(COUNTERPARTS, ModelConfig(**portable, **addition), "transformers")
    assert f"{key} {value}; the nearest one, ApertusForCausalLM, needs {key} {ADDITIONS[key]}." in str(caught.value)


EXPERTS = {"positions": "rotary", "norm": "rms", "mlp": "swiglu", "bias": False, "num_experts": 8}


def test_experts_have_one_counterpart():
    config = ModelConfig(**EXPERTS, qk_norm=True)
    row = choose(COUNTERPARTS, config, "transformers")
    assert row.name == "Dots1ForCausalLM"
    described = row.describe(config)
    assert described["moe_intermediate_size"] == 240 and described["routed_scaling_factor"] == 2.0
    assert recognise(described) == (row, config.model_copy(update={"expert_hidden_size": 240}))


@pytest.mark.parametrize(
    ("changes", "needs"),
    [
        ({"qk_norm": False}, "qk_norm True"),
        ({"shared_experts": 0}, "shared_experts 1 or more"),
        ({"moe_layers": "alternate"}, "moe_layers all"),
    ],
)
def test_other_experts_are_told_what_their_counterpart_needs(changes: dict, needs: str):
    with pytest.raises(ExportError, match=rf"num_experts 8.*Dots1ForCausalLM, needs {needs}\.$"):
        choose(COUNTERPARTS, ModelConfig(**EXPERTS | {"qk_norm": True} | changes), "transformers")


def test_matrices_stand_as_transformers_has_them():
    (gpt2,) = [row for row in COUNTERPARTS if row.model_type == "gpt2"]
    (llama,) = [row for row in COUNTERPARTS if row.model_type == "llama"]
    import torch

    rows = torch.arange(6.0).view(3, 2)
    assert gpt2.oriented("blocks.0.attention.in_proj_weight", rows).shape == (2, 3)
    assert gpt2.oriented("tokens.weight", rows) is rows and gpt2.oriented("positions.weight", rows) is rows
    assert llama.oriented("blocks.0.attention.in_proj_weight", rows) is rows
