"""Source weights during a run: when they change, to what, and across a restart."""

import json
from pathlib import Path

import pytest
import torch

from engine.data.adaptive import DELAY_STEPS, AdaptiveSources
from engine.data.source_losses import UNIT
from engine.events import EventLog, read
from engine.screen.console import Console
from model.config import AuxiliaryConfig
from sources.config import DataConfig
from sources.registry import OpenedSources

AUXILIARY = AuxiliaryConfig(enable_adaptive_sources=True, adaptive_interval_tokens=1000, adaptive_smoothing=0.0)
OPENED = OpenedSources({}, {})


def data(*names: str) -> DataConfig:
    return DataConfig(sources=[{"type": "files", "path": name} for name in names])


def sums(*by_source: tuple[float, int]) -> torch.Tensor:
    """StepResult.loss_sums of each source's mean loss in nats and labels."""
    return torch.tensor([[round(loss * labels / UNIT) for loss, labels in by_source], [n for _, n in by_source]])


STEPS = [
    sums((2.0, 300), (6.0, 100)),
    sums((3.0, 100), (5.0, 300)),
    sums((0.0, 0), (0.0, 0)),
    sums((2.5, 200), (7, 50)),
]


@pytest.fixture
def make(tmp_path: Path):
    log = EventLog(tmp_path, Console(enabled=False))
    yield lambda config, saved=None: AdaptiveSources(AUXILIARY, config, log, saved)
    log.close()


def test_weights_follow_the_losses_of_an_interval(make, tmp_path: Path):
    adaptive = make(data("a", "b"))
    for number, loss_sums in enumerate(STEPS):
        assert not read(tmp_path)
        adaptive.after_step(number, loss_sums, OPENED)
    # a: (600 + 300 + 500) / 600 nats, b: (600 + 1500 + 350) / 450; relative to the mean of the two
    losses = {"a": 1400 / 600, "b": 2450 / 450}
    mean = sum(losses.values()) / 2
    expected = {name: pytest.approx(loss / mean, rel=1e-6) for name, loss in losses.items()}
    (event,) = read(tmp_path)
    assert (event["event"], event["name"], event["what"], event["weights"]) == ("source", "all", "weights", expected)
    assert event["message"] == "token shares from batch 11 on: a 30.0%, b 70.0%"
    first = len(STEPS) - 1 + DELAY_STEPS
    assert adaptive.weights.weights_at(first) == expected
    assert adaptive.weights.weights_at(first - 1) == {"a": 1.0, "b": 1.0}
    assert adaptive.state()["sums"] == {"a": [0, 0], "b": [0, 0]}, "the next interval"


@pytest.mark.parametrize("middle", [1, 2, 3])
def test_a_restart_changes_no_weight(make, tmp_path: Path, middle: int):
    whole, first = make(data("a", "b")), make(data("a", "b"))
    for number, loss_sums in enumerate(STEPS):
        whole.after_step(number, loss_sums, OPENED)
    (expected,) = read(tmp_path)
    for number in range(middle):
        first.after_step(number, STEPS[number], OPENED)
    second = make(data("a", "b"), json.loads(json.dumps(first.state())))
    for number in range(middle, len(STEPS)):
        second.after_step(number, STEPS[number], OPENED)
    assert second.state() == whole.state() and read(tmp_path)[1]["weights"] == expected["weights"]


def test_sources_are_known_by_name_after_a_restart(make):
    adaptive = make(data("a", "b"))
    adaptive.after_step(0, sums((2.0, 30), (3.0, 40)), OPENED)
    changed = make(data("new", "b"), json.loads(json.dumps(adaptive.state())))
    assert changed.state()["sums"] == {"new": [0, 0], "b": [round(120 / UNIT), 40]}


def test_a_lost_source_is_left_out_of_the_mean(make):
    adaptive, lost = make(data("a", "b", "c")), OpenedSources({}, {"c": "the disk is gone"})
    adaptive.after_step(0, sums((2.0, 500), (4.0, 500), (30.0, 500)), lost)
    weights = adaptive.weights.weights_at(DELAY_STEPS)
    assert weights == {"a": pytest.approx(2 / 3), "b": pytest.approx(4 / 3), "c": 1.0}
