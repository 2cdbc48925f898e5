"""The average of the last weights: every step counts by its tokens, and it continues where it was saved."""

from collections.abc import Iterator

import pytest
import torch

from engine.config import TrainConfig
from engine.device import deepspeed_engine
from engine.device.deepspeed_engine import Engine, Gradients
from engine.device.optimizer_state import load_optimizer_state, optimizer_state
from engine.device.ranks import join
from engine.optim.weight_average import WeightAverage
from model import ModelConfig, TransformerLM
from sources.loading.loader import BatchShape

SHAPE = ModelConfig(hidden_size=16, num_layers=1, num_heads=2, seq_length=16)
ROWS = torch.randint(64, (8, 2, 17), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def make() -> Iterator:
    """Makes engines over the same first weights, or over those given."""
    engines: list[Engine] = []

    def make_engine(stage: int, optimizer: str, weights: dict[str, torch.Tensor] | None = None) -> Engine:
        torch.manual_seed(0)
        train = TrainConfig(zero_stage=stage, optimizer=optimizer)
        model = TransformerLM(SHAPE, 64)
        model.load_state_dict(weights or model.state_dict())
        engines.append(deepspeed_engine.initialize(model, train, BatchShape(2, 1, 16), join(), bf16=False))
        return engines[-1]

    yield make_engine
    for engine in engines:
        engine.destroy()


def step(engine: Engine, number: int) -> dict[str, torch.Tensor]:
    """The weights after it."""
    ids = ROWS[number]
    engine.backward(engine(ids[:, :-1], ids[:, 1:]).loss_sum / 32)
    gradients = Gradients.accumulated(engine)
    deepspeed_engine.set_learning_rate(engine, 1e-2)
    deepspeed_engine.step(engine, gradients, gradients.squared_norms(torch.device("cpu")), 1.0, join())
    return deepspeed_engine.weights(engine, keep=True)


@pytest.mark.parametrize(("stage", "later"), [(0, 3), (3, 0)])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_second_half_is_averaged_across_a_restart(make, stage: int, later: int, optimizer: str):
    engine, average, seen = make(stage, optimizer), WeightAverage(0.5, 8 * 32), []
    average.start(engine)
    for number in range(8):
        if number == 6:
            state, weights = optimizer_state(engine, keep=True), seen[-1]
            engine = make(later, optimizer, weights)
            assert load_optimizer_state(engine, state, join()) == []
            average.start(engine)
        seen.append(step(engine, number))
        average.add(engine, (number + 1) * 32, 32)
        assert ("average" in next(iter(optimizer_state(engine, True)["moments"].values()))) == (number >= 4)
    average.take_place(engine)
    for name, found in deepspeed_engine.weights(engine, keep=True).items():
        expected = torch.stack([weights[name] for weights in seen[4:]]).mean(0)
        torch.testing.assert_close(found, expected)
        assert not torch.equal(found, seen[-1][name])


def test_what_an_earlier_run_has_averaged_is_dropped_where_it_is_off(make):
    engine = make(0, "adamw")
    last = step(engine, 0)
    WeightAverage(0.9, 100).add(engine, 32, 32)
    off = WeightAverage(0.0, 100)
    off.take_place(engine)
    off.start(engine)
    off.add(engine, 100, 32)
    state = optimizer_state(engine, keep=True)
    assert all(moments.keys() == {"exp_avg", "exp_avg_sq"} for moments in state["moments"].values())
    assert all(torch.equal(tensor, last[name]) for name, tensor in deepspeed_engine.weights(engine, True).items())
