from types import SimpleNamespace

import pytest
import torch

from engine.config import TrainConfig
from engine.device.deepspeed_engine import set_hyperparameters
from engine.optim.optimizers import adamw, make_optimizer, parameter_groups
from engine.optim.schedule import Hyperparameters
from model import AuxiliaryConfig, ModelConfig, TransformerLM


def test_only_matrices_of_linear_layers_decay():
    model = TransformerLM(
        ModelConfig(hidden_size=16, num_layers=1, num_heads=2, seq_length=8, tie_embeddings=False), 64
    )
    decayed, kept = parameter_groups(model, 0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    assert {names[id(p)].split(".", 2)[-1] for p in decayed["params"] if "blocks" in names[id(p)]} == {
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "mlp.up.weight",
        "mlp.down.weight",
    }
    kept_names = {names[id(p)] for p in kept["params"]}
    assert {name for name in kept_names if "norm" not in name and "bias" not in name} == {
        "tokens.weight",
        next(name for name in kept_names if name.startswith("positions")),
    }
    assert len(decayed["params"]) + len(kept["params"]) == len(names)


def test_fused_adamw_takes_the_textbook_step():
    parameter = torch.nn.Linear(2, 1, bias=False)
    weight = parameter.weight.detach().clone()
    optimizer = adamw(parameter, 0.1, 0.5)
    parameter(torch.tensor([[1.0, -2.0]])).sum().backward()
    optimizer.step()
    # The first step of Adam is the gradient's sign; the decay is decoupled.
    assert torch.allclose(parameter.weight, weight * (1 - 0.1 * 0.5) - 0.1 * torch.tensor([[1.0, -1.0]]), atol=1e-5)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_lookahead_core_has_groups_of_its_own_with_its_factor(optimizer: str):
    config = ModelConfig(hidden_size=16, num_layers=1, num_heads=2, seq_length=16)
    model = TransformerLM(config, 64, AuxiliaryConfig(enable_value=True, value_horizons=(2,), learning_rate_factor=3.0))
    core = set(model.latent.parameters())
    groups = make_optimizer(model, TrainConfig(optimizer=optimizer), bf16=False).param_groups
    for group in groups:
        assert set(group["params"]) <= core or not set(group["params"]) & core
        assert group["rate_factor"] == (3.0 if set(group["params"]) <= core else 1.0)
    assert {parameter for group in groups for parameter in group["params"]} == set(model.parameters())


def test_roles_have_their_own_rates_and_decay():
    config = ModelConfig(
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        seq_length=16,
        tie_embeddings=False,
        stream_scales=True,
        value_embeddings="tables",
        bigram_rows=10,
        embedding_context=2,
    )
    model = TransformerLM(config, 64)
    asked = TrainConfig(
        optimizer="muon",
        embedding_rate_factor=2.0,
        head_rate_factor=3.0,
        scalar_rate_factor=4.0,
        embedding_weight_decay=0.02,
        head_weight_decay=0.03,
    )
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = {
        names[parameter]: (group["rate_factor"], group["weight_decay"], group.get("muon", False))
        for group in make_optimizer(model, asked, bf16=False).param_groups
        for parameter in group["params"]
    }
    assert found.keys() == set(names.values())
    for name in ("tokens.weight", "positions.weight", "bigrams.table.weight", "streams.values.1.weight"):
        assert found[name] == (2.0, 0.02, False)
    assert found["lm_head.weight"] == (3.0, 0.03, False)
    for name in ("blocks.0.mlp_norm.weight", "blocks.1.mlp.up.bias", "streams.scales.0.scales"):
        assert found[name] == (4.0, 0.0, False)
    for name in ("blocks.0.mlp.up.weight", "context.weight"):
        assert found[name] == (1.0, 0.1, True)


def test_without_roles_groups_are_two_and_in_the_models_order():
    """So that sums over them keep their bits."""
    model = TransformerLM(ModelConfig(hidden_size=16, num_layers=2, num_heads=2, seq_length=16), 64)
    groups = make_optimizer(model, TrainConfig(), bf16=False).param_groups
    assert [group["params"] for group in groups] == [group["params"] for group in parameter_groups(model, 0.1)]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("kind", ["attention", "residual"])
def test_factors_of_layers_move_only_while_they_are_fitted(optimizer: str, kind: str):
    shape = ModelConfig(hidden_size=16, num_layers=2, num_heads=2, seq_length=8, layer_rescaling=kind)
    model = TransformerLM(shape, 64)
    made = make_optimizer(model, TrainConfig(optimizer=optimizer), bf16=False)
    (group,) = [group for group in made.param_groups if group.get("layer_factors")]
    named = dict(model.named_parameters())
    assert set(group["params"]) == {p for name, p in named.items() if name.endswith("layer_factor")}
    engine = SimpleNamespace(optimizer=made)
    for fits in (False, True, False):
        before = [factor.item() for factor in group["params"]]
        set_hyperparameters(engine, Hyperparameters(1e-2, fits_layers=fits))
        ids = torch.arange(8)[None]
        model(ids, ids).loss_sum.backward()
        made.step()
        assert ([factor.item() for factor in group["params"]] != before) == fits
