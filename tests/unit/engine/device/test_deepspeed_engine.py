"""DeepSpeed's engine: learning rates, gradients that are clipped or dropped, whole weights."""

import math

import pytest
import torch

from engine.config import TrainConfig
from engine.device import deepspeed_engine
from engine.device.deepspeed_engine import Engine, Gradients
from engine.device.optimizer_state import optimizer_state
from engine.device.ranks import join
from model import AuxiliaryConfig, ModelConfig, TransformerLM
from sources.loading.loader import BatchShape

SHAPE = ModelConfig(hidden_size=16, num_layers=1, num_heads=2, seq_length=16)


def engine_of(stage: int, auxiliary: AuxiliaryConfig | None = None) -> Engine:
    torch.manual_seed(0)
    model = TransformerLM(SHAPE, 64, auxiliary)
    return deepspeed_engine.initialize(model, TrainConfig(zero_stage=stage), BatchShape(2, 1, 16), join(), bf16=False)


def backward(engine: Engine, scale: float = 1.0) -> Gradients:
    ids = torch.randint(64, (2, 17), generator=torch.Generator().manual_seed(1))
    engine.backward(engine(ids[:, :-1], ids[:, 1:]).loss_sum * scale)
    return Gradients.accumulated(engine)


def squares(gradients: Gradients) -> torch.Tensor:
    return gradients.squared_norms(torch.device("cpu"))


def test_an_offloaded_step_is_clipped_and_dropped_as_any_other():
    shape, train = BatchShape(2, 1, 16), TrainConfig(zero_stage=2, offload_optimizer=True)
    engines = []
    for section in (train, TrainConfig(zero_stage=0)):
        torch.manual_seed(0)
        engines.append(deepspeed_engine.initialize(TransformerLM(SHAPE, 64), section, shape, join(), bf16=False))
    for scale in (1.0, math.inf, 1.0):  # the second step is dropped
        norms = []
        for engine in engines:
            gradients = backward(engine, scale)
            norms.append(deepspeed_engine.step(engine, gradients, squares(gradients), 0.5, join())[0])
        assert norms[0] == pytest.approx(norms[1], rel=1e-5, nan_ok=True) and math.isnan(norms[0]) == (scale > 1)
    offloaded, plain = (deepspeed_engine.weights(engine, keep=True) for engine in engines)
    for name, weight in plain.items():
        torch.testing.assert_close(offloaded[name], weight, atol=1e-6, rtol=1e-5)
    states = [optimizer_state(engine, keep=True) for engine in engines]
    assert states[0]["step"] == states[1]["step"] == 2
    for name, moments in states[1]["moments"].items():
        torch.testing.assert_close(states[0]["moments"][name], moments, atol=1e-7, rtol=1e-4)
    for engine in engines:
        engine.destroy()


@pytest.mark.parametrize("stage", [0, 3])
@pytest.mark.parametrize("share", [0.5, 2.0])
def test_gradients_are_clipped_to_the_norm(stage: int, share: float):
    engine = engine_of(stage)
    gradients = backward(engine)
    norm = math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients.trunk))
    trunk, core = deepspeed_engine.step(engine, gradients, squares(gradients), share * norm, join())
    assert trunk == pytest.approx(norm, rel=1e-5) and core == 0
    assert given_norm(engine, "") == pytest.approx(min(1.0, share) * norm, rel=1e-4)
    engine.destroy()


def given_norm(engine: Engine, prefix: str) -> float:
    """The norm of the gradients that the optimizer was given in its first step: ten times the first moments'."""
    moments = optimizer_state(engine, keep=True)["moments"]
    given = [10 * own["exp_avg"].double() for name, own in moments.items() if name.startswith(prefix)]
    return math.sqrt(sum(float(gradient.square().sum()) for gradient in given))


def test_the_core_is_clipped_by_itself():
    engine = engine_of(0, AuxiliaryConfig(enable_value=True, value_horizons=(2,)))
    parameters = list(engine.module.latent.parameters())
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 2.0)  # the cross-entropy alone gives it none
    gradients = backward(engine, scale=1e-3)
    expected = squares(gradients)[0].sqrt().item()
    assert expected < 1.0 and len(gradients.core) == len(parameters)
    trunk, core = deepspeed_engine.step(engine, gradients, squares(gradients), 1.0, join())
    assert trunk == pytest.approx(expected)
    assert core == pytest.approx(2 * math.sqrt(sum(map(torch.numel, parameters))))
    clipped, whole = given_norm(engine, "latent."), given_norm(engine, "")
    assert clipped == pytest.approx(1.0, rel=1e-4)
    assert whole == pytest.approx(math.hypot(1.0, trunk), rel=1e-4), "the trunk's are as they were"
    engine.destroy()


@pytest.mark.parametrize("stage", [0, 3])
def test_a_gradient_that_is_not_finite_changes_nothing(stage: int):
    engine = engine_of(stage)
    before = deepspeed_engine.weights(engine, keep=True)
    gradients = backward(engine, scale=math.inf)
    trunk, _ = deepspeed_engine.step(engine, gradients, squares(gradients), 1.0, join())
    assert math.isnan(trunk) and optimizer_state(engine, keep=True)["step"] == 0
    after = deepspeed_engine.weights(engine, keep=True)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    gradients = backward(engine)
    trunk, _ = deepspeed_engine.step(engine, gradients, squares(gradients), 1.0, join())
    assert math.isfinite(trunk)
    engine.destroy()


@pytest.mark.parametrize("stage", [0, 3])
def test_weights_are_whole_copies_for_whoever_keeps_them(stage: int):
    engine = engine_of(stage)
    torch.manual_seed(0)
    expected = TransformerLM(SHAPE, 64).state_dict()
    weights = deepspeed_engine.weights(engine, keep=True)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights.items())
    weights["tokens.weight"].zero_()
    assert deepspeed_engine.weights(engine, keep=True)["tokens.weight"].any()
    assert deepspeed_engine.weights(engine, keep=False) == {}
    engine.destroy()


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
