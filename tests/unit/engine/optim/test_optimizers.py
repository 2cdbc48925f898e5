import pytest
import torch

from engine.config import TrainConfig
from engine.optim.optimizers import adamw, make_optimizer, parameter_groups
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
