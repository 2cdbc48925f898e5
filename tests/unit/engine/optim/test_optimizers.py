import pytest
import torch

from engine.config import TrainConfig
from engine.device import deepspeed_engine
from engine.device.ranks import join
from engine.optim.optimizers import adamw, make_optimizer, parameter_groups
from model import AuxiliaryConfig, ModelConfig, TransformerLM
from sources.loading.loader import BatchShape


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
def test_the_latent_core_has_groups_of_its_own_with_its_factor(optimizer: str):
    config = ModelConfig(hidden_size=16, num_layers=1, num_heads=2, seq_length=16)
    model = TransformerLM(config, 64, AuxiliaryConfig(enable_value=True, value_horizons=(2,), learning_rate_factor=3.0))
    core = set(model.latent.parameters())
    groups = make_optimizer(model, TrainConfig(optimizer=optimizer), bf16=False).param_groups
    for group in groups:
        assert set(group["params"]) <= core or not set(group["params"]) & core
        assert group["rate_factor"] == (3.0 if set(group["params"]) <= core else 1.0)
    assert {parameter for group in groups for parameter in group["params"]} == set(model.parameters())


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_gradients_that_stay_where_they_are_change_no_bit(optimizer: str):
    """As CUDA graphs need them: over steps of two passes, a discarded one among them."""
    weights = []
    for kept in (False, True):
        torch.manual_seed(0)
        model = TransformerLM(ModelConfig(hidden_size=16, num_layers=1, num_heads=2, seq_length=16), 64)
        settings = TrainConfig(optimizer=optimizer)
        ranks = join()
        engine = deepspeed_engine.initialize(model, settings, BatchShape(2, 2, 16), ranks, bf16=False)
        if kept:
            deepspeed_engine.keep_gradients(engine)
            places = [parameter.grad.data_ptr() for parameter in model.parameters()]
        for number in range(4):
            for _ in range(2):
                ids = torch.randint(64, (2, 17))
                engine.backward(engine(ids[:, :-1], ids[:, 1:]).loss_sum / 32)
                if not engine.is_gradient_accumulation_boundary():
                    engine.step()
            if number == 1:
                deepspeed_engine.discard(engine)
                continue
            gradients = deepspeed_engine.Gradients.accumulated(engine)
            assert len(gradients.trunk) == len(list(model.parameters())) and not gradients.core
            deepspeed_engine.step(engine, gradients, gradients.squared_norms(ranks.device).cpu(), 1.0, ranks)
        if kept:
            assert places == [parameter.grad.data_ptr() for parameter in model.parameters()]
            assert not any(parameter.grad.any() for parameter in model.parameters())
        weights.append([parameter.detach().clone() for parameter in model.parameters()])
        engine.destroy()
    assert all(torch.equal(*pair) for pair in zip(*weights, strict=True))


@pytest.mark.parametrize("stage", [1, 3])
def test_the_cores_learning_rate_follows_the_trunks(stage: int):
    config = ModelConfig(hidden_size=16, num_layers=1, num_heads=2, seq_length=16)
    model = TransformerLM(config, 64, AuxiliaryConfig(enable_value=True, value_horizons=(2,), learning_rate_factor=3.0))
    engine = deepspeed_engine.initialize(model, TrainConfig(zero_stage=stage), BatchShape(1, 1, 16), join(), bf16=False)
    deepspeed_engine.set_learning_rate(engine, 0.01)
    assert deepspeed_engine.learning_rate(engine) == 0.01
    assert sorted({round(group["lr"], 9) for group in engine.optimizer.param_groups}) == [0.01, 0.03]
    engine.destroy()
