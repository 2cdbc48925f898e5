"""The figures of step, spike and skip events, from steps whose figures are known."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.data.source_losses import UNIT
from engine.events import EventLog, read
from engine.run.stability import MIN_LOSSES, StabilityGuard, Verdict
from engine.run.state import Progress
from engine.run.step import FIGURES, StepResult
from engine.run.telemetry import RunFigures, Telemetry, mean_figures
from engine.screen.console import Console

SOURCES = ["a", "b", "c"]
PROGRESS = Progress(step=12, tokens_in_run=1000, tokens_total=5000)


def step(by_source: list[tuple[float, int]], grad_norm: float, **changes) -> StepResult:
    """A step with the summed NLL (nats) and the labels of each source."""
    sums = torch.tensor([[round(nll / UNIT) for nll, _ in by_source], [labels for _, labels in by_source]])
    values = {
        "loss": sum(nll for nll, _ in by_source) / sum(labels for _, labels in by_source),
        "loss_sums": sums,
        "auxiliary": torch.zeros(len(FIGURES), 2, dtype=torch.float64),
        "grad_norm": grad_norm,
        "core_grad_norm": 0.0,
        "verdict": Verdict.OK,
        "skipped": False,
    }
    return StepResult(**values | changes)


FIRST = step([(600.0, 200), (100.0, 100), (0.0, 0)], 2.0)
SECOND = step([(200.0, 100), (500.0, 100), (0.0, 0)], 0.5)


@pytest.fixture
def make(tmp_path: Path) -> Iterator:
    """Makes a Telemetry for a budget of 4000 tokens; a token costs 10 FLOP."""
    log = EventLog(tmp_path, Console(enabled=False))

    def telemetry(peak: float | None = None, has_core: bool = False, interval: float = 10.0) -> Telemetry:
        return Telemetry(SOURCES, RunFigures(4000, 10.0, peak, has_core), interval, log, torch.device("cpu"))

    yield telemetry
    log.close()


def test_two_steps_make_one_event(make, tmp_path: Path):
    telemetry = make(peak=5000.0)
    for one, seconds in ((FIRST, 1.5), (SECOND, 0.5)):
        telemetry.add(one)
        telemetry.add_time(0.1, seconds)
    telemetry.log_steps(PROGRESS, 1e-3)
    (event,) = read(tmp_path)
    assert event.pop("time") and event.pop("event") == "step" and event.pop("memory_bytes") > 2**20
    assert event == {
        "step": 12,
        "tokens": 1000,
        "tokens_total": 5000,
        "share": 0.25,
        "loss": pytest.approx(1400 / 500),
        "lr": 1e-3,
        "grad_norm": 0.5,
        "tokens_per_second": pytest.approx(500 / 2.0),
        "mfu": pytest.approx(250 * 10 / 5000),
        "data_wait": pytest.approx(0.2 / 2.0),
        "eta_seconds": pytest.approx(3000 / 250),
        "sources": {"a": pytest.approx(800 / 300), "b": pytest.approx(600 / 200)},
        "source_shares": {"a": pytest.approx(300 / 500), "b": pytest.approx(200 / 500)},
        "auxiliary": {},
        "steps": 2,
    }
    assert telemetry.train_seconds == 2.0


def test_a_window_begins_behind_its_event(make, tmp_path: Path):
    telemetry = make()
    telemetry.log_steps(PROGRESS, 1e-3)
    assert not read(tmp_path), "nothing without steps"
    for one in (FIRST, SECOND):
        telemetry.add(one)
        telemetry.add_time(0.0, 1.0)
        telemetry.log_steps(PROGRESS, 1e-3)
    first, second = read(tmp_path)
    assert (first["steps"], first["loss"]) == (1, pytest.approx(700 / 300)) and first["mfu"] is None
    assert (second["steps"], second["loss"]) == (1, pytest.approx(700 / 200)) and second["tokens_per_second"] == 200
    assert telemetry.train_seconds == 2.0


def test_a_skipped_step_only_takes_time(make, tmp_path: Path):
    telemetry = make()
    telemetry.add(FIRST)
    for seconds in (1.0, 2.0):  # the second one's step is not added
        telemetry.add_time(0.0, seconds)
    telemetry.log_steps(PROGRESS, 1e-3)
    (event,) = read(tmp_path)
    assert event["steps"] == 1 and event["tokens_per_second"] == pytest.approx(100.0)


def test_the_cores_figures_stand_where_there_is_a_core(make, tmp_path: Path):
    telemetry, auxiliary = make(has_core=True), torch.zeros(len(FIGURES), 2, dtype=torch.float64)
    auxiliary[0], auxiliary[2] = torch.tensor([6.0, 4.0]), torch.tensor([1.0, 2.0])
    for norm in (math.nan, 3.0, math.nan, 0.25):
        telemetry.add(step([(1.0, 1), (1.0, 1), (0.0, 0)], 1.0, auxiliary=auxiliary, core_grad_norm=norm))
    telemetry.log_steps(PROGRESS, 1e-3)
    (event,) = read(tmp_path)
    assert (event["core_grad_norm"], event["core_left_out"]) == (0.25, 2)
    first, _, third, *_ = FIGURES
    assert event["auxiliary"] == mean_figures(auxiliary) == {first: 1.5, third: 0.5}


def test_loads_of_experts_are_means_over_the_steps(make, tmp_path: Path):
    telemetry = make()
    telemetry.figures = replace(telemetry.figures, expert_blocks=(1, 3))
    for load in ([0.5, 1.0], [1.5, 0.0]):
        telemetry.add(replace(FIRST, max_violation=torch.tensor(load, dtype=torch.float64)))
    telemetry.log_steps(PROGRESS, 1e-3)
    telemetry.add(FIRST)
    telemetry.log_steps(PROGRESS, 1e-3)
    first, second = read(tmp_path)
    assert first["auxiliary"] == {"block_1_max_violation": 1.0, "block_3_max_violation": 0.5}
    assert second["auxiliary"] == {}


def test_a_run_over_its_budget_is_done(make, tmp_path: Path):
    telemetry = make()
    telemetry.add(FIRST)
    telemetry.log_steps(Progress(tokens_in_run=4100, tokens_total=4100), 1e-3)
    (event,) = read(tmp_path)
    assert event["share"] == 1.0 and event["eta_seconds"] == 0


def test_spikes_and_skips_are_logged_under_their_step(make, tmp_path: Path):
    telemetry, guard = make(), StabilityGuard("skip", 10)
    for _ in range(MIN_LOSSES):
        guard.after_step(2.0, skipped=False)
    telemetry.log_verdict(FIRST, PROGRESS, guard)
    assert not read(tmp_path), "a step like any other"
    telemetry.log_verdict(step([(90.0, 9)], 7.0, verdict=Verdict.SPIKE), PROGRESS, guard)
    guard.after_step(10.0, skipped=True)
    bad = step([(90.0, 9)], math.nan, verdict=Verdict.GRADIENT, skipped=True)
    telemetry.log_verdict(bad, Progress(step=12, skipped=4), guard)
    spike, skip = [{key: value for key, value in event.items() if key != "time"} for event in read(tmp_path)]
    figures = {"step": 13, "loss": 10.0}
    assert spike == {"event": "spike", "grad_norm": 7.0, "threshold": pytest.approx(guard.threshold())} | figures
    reason = {"reason": str(Verdict.GRADIENT), "in_a_row": 2, "total": 5}
    assert skip == {"event": "skip", "grad_norm": None} | reason | figures


@pytest.mark.parametrize(("interval", "due"), [(1e-9, True), (3600.0, False)])
def test_an_event_is_due_after_its_interval(make, interval: float, due: bool):
    telemetry = make(interval=interval)
    assert telemetry.due is due
    telemetry.log.enabled = False
    assert not telemetry.due, "by rank 0's clock"


def test_a_slow_rank_is_in_the_event_of_several_ranks_alone(make, tmp_path: Path):
    telemetry, found = make(), {"rank": 1, "host": "beta", "times_median": 2.0}
    for slow_rank in ({}, {"slow_rank": None}, {"slow_rank": found}):
        telemetry.add(FIRST)
        telemetry.log_steps(PROGRESS, 1e-3, slow_rank)
    events = read(tmp_path)
    assert "slow_rank" not in events[0] and events[1]["slow_rank"] is None and events[2]["slow_rank"] == found
