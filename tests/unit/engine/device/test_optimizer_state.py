"""Moments by parameter name: any stage continues them, and what they lack is named."""

from collections.abc import Iterator

import pytest
import torch

from engine.config import TrainConfig
from engine.device import deepspeed_engine
from engine.device.deepspeed_engine import Engine, Gradients
from engine.device.optimizer_state import load_optimizer_state, optimizer_state
from engine.device.ranks import join
from model import ModelConfig, TransformerLM
from sources.loading.loader import BatchShape
from tests.helpers.folders import equal

SHAPE = ModelConfig(hidden_size=16, num_layers=1, num_heads=2, seq_length=16)
ROWS = torch.randint(64, (3, 2, 17), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def make() -> Iterator:
    """Makes engines over the same first weights."""
    engines: list[Engine] = []

    def make_engine(stage: int, optimizer: str = "adamw") -> Engine:
        torch.manual_seed(0)
        train = TrainConfig(zero_stage=stage, optimizer=optimizer)
        model = TransformerLM(SHAPE, 64)
        engines.append(deepspeed_engine.initialize(model, train, BatchShape(2, 1, 16), join(), bf16=False))
        return engines[-1]

    yield make_engine
    for engine in engines:
        engine.destroy()


def step(engine: Engine, number: int) -> None:
    ids = ROWS[number]
    engine.backward(engine(ids[:, :-1], ids[:, 1:]).loss_sum / 32)
    gradients = Gradients.accumulated(engine)
    deepspeed_engine.step(engine, gradients, gradients.squared_norms(torch.device("cpu")), 1.0, join())


def test_before_the_first_step_there_are_no_moments(make):
    engine = make(0)
    assert optimizer_state(engine, keep=True) == {"step": 0, "moments": {}}
    assert load_optimizer_state(engine, None, join()) == []
    assert load_optimizer_state(engine, {"step": 0, "moments": {}}, join()) == []
    assert optimizer_state(engine, keep=True)["step"] == 0


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize(("stage", "later"), [(0, 3), (3, 0)])
def test_another_stage_continues_with_the_same_moments(make, stage: int, later: int, optimizer: str):
    first, second = make(stage, optimizer), make(later, optimizer)
    for number in (0, 1):
        step(first, number)
    state = optimizer_state(first, keep=True)
    assert state["step"] == 2 and state["moments"].keys() == dict(first.module.named_parameters()).keys()
    kept = {name: set(moments) for name, moments in state["moments"].items()}
    assert kept["tokens.weight"] == {"exp_avg", "exp_avg_sq"}
    assert kept["blocks.0.mlp.up.weight"] == ({"exp_avg"} if optimizer == "muon" else {"exp_avg", "exp_avg_sq"})
    assert optimizer_state(first, keep=False) == {"step": 2, "moments": {}}

    assert load_optimizer_state(second, state, join()) == []
    assert equal(optimizer_state(second, keep=True), state)
    step(second, 2)
    assert optimizer_state(second, keep=True)["step"] == 3


@pytest.mark.parametrize("stage", [0, 3])
def test_what_a_state_lacks_is_named_and_starts_at_zero(make, stage: int):
    first, second = make(0), make(stage)
    step(first, 0)
    state = optimizer_state(first, keep=True)
    del state["moments"]["final_norm.weight"]
    del state["moments"]["final_norm.bias"]["exp_avg_sq"]
    state["moments"]["positions.weight"] = {key: torch.ones(8, 16) for key in ("exp_avg", "exp_avg_sq")}
    missing = load_optimizer_state(second, state, join())
    assert set(missing) == {"positions.weight", "final_norm.weight", "final_norm.bias"}
    loaded = optimizer_state(second, keep=True)
    assert loaded["step"] == 1
    for name, moments in loaded["moments"].items():
        if name in missing:
            assert not any(moment.any() for moment in moments.values())
        else:
            assert equal(moments, state["moments"][name])
