"""model/snapshot/state_dict.py: loading weights into models that differ, and what is reported."""

import copy
import time

import pytest
import torch

from model import AuxiliaryConfig, ModelConfig, TransformerLM
from model.positions import extended_rows
from model.snapshot import architecture_differences, has_biases, learned_positions, restore


def test_restore_removes_prefixes_of_wrappers(trained, config):
    for prefix in ("module.", "_orig_mod.", "module._orig_mod."):
        model = TransformerLM(config, trained.vocab_size)
        report = restore(model, {prefix + name: tensor for name, tensor in trained.state_dict().items()})
        assert not report.new and not report.left_out
        assert torch.equal(model.blocks[1].mlp.up.weight, trained.blocks[1].mlp.up.weight)


def test_prefixes_of_any_number_are_removed_soon(trained, config):
    weights = {"module._orig_mod." * 200_000 + name: tensor for name, tensor in trained.state_dict().items()}
    started = time.monotonic()
    assert not restore(TransformerLM(config, trained.vocab_size), weights).new
    assert time.monotonic() - started < 10


def test_a_table_without_rows_is_left_out(trained, config):
    weights = {**trained.state_dict(), "positions.weight": torch.zeros(0, 32)}
    assert restore(TransformerLM(config, trained.vocab_size), weights).left_out == ["positions.weight"]


def test_restore_names_what_is_new_and_what_is_left_out(trained, config):
    weights = trained.state_dict()
    del weights["blocks.1.mlp.up.bias"]
    weights["blocks.0.mlp.up.weight"] = torch.zeros(3, 3)
    weights["router.weight"] = torch.zeros(2)
    torch.manual_seed(5)
    model = TransformerLM(config, trained.vocab_size)
    before = model.blocks[0].mlp.up.weight.clone()
    report = restore(model, weights)
    assert report.new == ["blocks.0.mlp.up.weight", "blocks.1.mlp.up.bias"]
    assert report.left_out == ["blocks.0.mlp.up.weight", "router.weight"]
    assert report.extended == [] and len(report.loaded) == 26
    assert torch.equal(model.blocks[0].mlp.up.weight, before)
    assert report.summary() == (
        "Loaded 26 of 28 parameters. Starting fresh: blocks.0.mlp.up.weight, blocks.1.mlp.up.bias; "
        "in the file but not used: blocks.0.mlp.up.weight, router.weight."
    )


def test_restore_extends_positions_in_either_direction(trained, config):
    longer = TransformerLM(config.model_copy(update={"seq_length": 48}), trained.vocab_size)
    report = restore(longer, trained.state_dict())
    assert report.extended == ["positions.weight"] and not report.new and not report.left_out
    assert torch.equal(longer.positions.weight, extended_rows(trained.positions.weight, 48))

    shorter = TransformerLM(config.model_copy(update={"seq_length": 16}), trained.vocab_size)
    report = restore(shorter, trained.state_dict())
    assert report.extended == ["positions.weight"] and not report.new and not report.left_out
    assert shorter.config.seq_length == 32
    assert torch.equal(shorter.positions.weight, trained.positions.weight)
    assert "resized: positions.weight" in report.summary()


@pytest.mark.parametrize("rows", [450, 512])
def test_restore_accepts_other_paddings_of_the_vocabulary(config, rows):
    source, model = TransformerLM(config, 450), TransformerLM(config, 450)
    weights = source.state_dict()
    weights["tokens.weight"] = torch.cat([source.tokens.weight[:450], torch.zeros(62, 32)])[:rows]
    assert not restore(model, weights).new
    assert torch.equal(model.tokens.weight[:450], source.tokens.weight[:450])

    for other_vocabulary in (400, 600):
        weights["tokens.weight"] = torch.zeros(other_vocabulary, 32)
        report = restore(copy.deepcopy(model), weights)
        assert report.new == report.left_out == ["tokens.weight"]


def test_how_many_positions_are_learned(trained):
    weights = trained.state_dict()
    assert learned_positions(weights) == learned_positions({f"module.{k}": v for k, v in weights.items()}) == 32
    assert learned_positions({"tokens.weight": torch.zeros(3, 4)}) == 0


def test_parts_of_the_core_are_added_and_left_out_again(trained, config):
    torch.manual_seed(3)
    model = TransformerLM(
        config, trained.vocab_size, AuxiliaryConfig(enable_policy=True, enable_value=True, enable_span_contrastive=True)
    )
    fresh = {name: tensor.clone() for name, tensor in model.state_dict().items() if name.startswith("latent")}
    report = restore(model, trained.state_dict())
    assert set(report.new) == set(fresh) and not report.left_out
    assert report.summary() == (
        f"Loaded 28 of {28 + len(fresh)} parameters. "
        "Starting fresh: latent.transition, latent.value_head, latent.span_projector."
    )
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, fresh[name] if name in fresh else trained.state_dict()[name])

    fewer = TransformerLM(config, trained.vocab_size, AuxiliaryConfig(enable_value=True))
    report = restore(fewer, model.state_dict())
    assert not report.new and {name.split(".")[1] for name in report.left_out} == {"transition", "span_projector"}
    assert report.summary() == (
        "Loaded 32 of 32 parameters. In the file but not used: latent.transition, latent.span_projector."
    )
    assert torch.equal(fewer.latent.value_head.up.weight, model.latent.value_head.up.weight)

    other_horizons = AuxiliaryConfig(enable_value=True, value_horizons=(4,))
    report = restore(TransformerLM(config, trained.vocab_size, other_horizons), fewer.state_dict())
    bins = "latent.value_head.bins.weight, latent.value_head.bins.bias"
    assert report.summary() == (
        f"Loaded 30 of 32 parameters. Starting fresh: {bins}; in the file but not used: {bins}."
    )


def test_architecture_differences():
    config = {**ModelConfig().model_dump(), "vocab_size": 500, "eos_token_id": 0}
    other = {**config, "seq_length": 512, "dropout": 0.1, "init_std": 0.01, "eos_token_id": 4}
    assert architecture_differences(config, other) == []
    other |= {"hidden_size": 512, "tie_embeddings": False, "vocab_size": 600}
    assert architecture_differences(config, other) == [
        "hidden_size 256 in the checkpoint, 512 in the preset",
        "tie_embeddings True in the checkpoint, False in the preset",
        "vocab_size 500 in the checkpoint, 600 in the preset",
    ]
    without = {key: value for key, value in config.items() if key != "num_layers"}
    assert architecture_differences(without, config) == []  # an absent key has its default
    assert architecture_differences(config, {**without, "num_layers": 4}) == [
        "num_layers 3 in the checkpoint, 4 in the preset"
    ]


def test_an_older_configuration_means_the_plain_trunk(config):
    """Checkpoints from before an option existed lack its key."""
    options = {"positions": "rotary", "norm": "rms", "qk_norm": True, "mlp": "swiglu", "bias": False}
    older = {name: value for name, value in config.model_dump().items() if name not in {*options, "tie_embeddings"}}
    assert ModelConfig(**older) == config
    assert not architecture_differences(older, config.model_dump())
    for name, value in [*options.items(), ("tie_embeddings", False)]:
        assert len(architecture_differences(older, {**config.model_dump(), name: value})) == 1, name


def test_a_dense_model_may_get_experts_and_no_other_may_change_theirs(config):
    dense = config.model_dump()
    experts = dense | {"num_experts": 8, "expert_hidden_size": 24}
    assert not architecture_differences(dense, experts)
    assert not architecture_differences(dense, dense | {"experts_per_token": 3})
    assert architecture_differences(experts, dense) == [
        "num_experts 8 in the checkpoint, 0 in the preset",
        "expert_hidden_size 24 in the checkpoint, None in the preset",
    ]
    assert len(architecture_differences(experts, experts | {"num_experts": 16})) == 1


def test_the_biases_of_routers_come_back(config):
    experts = config.model_copy(update={"num_experts": 4})
    torch.manual_seed(0)
    trained, model = TransformerLM(experts, 100), TransformerLM(experts, 100)
    trained.blocks[0].mlp.router.expert_bias.uniform_()
    report = restore(model, trained.state_dict())
    assert not report.new and not report.left_out
    assert torch.equal(model.blocks[0].mlp.router.expert_bias, trained.blocks[0].mlp.router.expert_bias)
    assert has_biases(trained.state_dict())
    without = TransformerLM(experts.model_copy(update={"bias": False}), 100)
    assert not has_biases(without.state_dict())
