"""Which losses are spikes; and a skipped step in the real engine, which must leave no trace."""

import json
import math
import random
import statistics
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.run.stability import MIN_LOSSES, MIN_SIGMA, SIGMAS, WINDOW, StabilityGuard, Verdict, all_finite
from tests.helpers.processes import run_ranks
from tests.helpers.workers import stability
from tests.helpers.workers.stability import SKIPPED


def guard_after(losses: list[float], on_spike: str = "log") -> StabilityGuard:
    guard = StabilityGuard(on_spike, max_skipped_steps=3)
    for loss in losses:
        guard.after_step(loss, skipped=False)
    return guard


def test_the_threshold_is_six_robust_sigmas_above_the_median():
    losses = [4.0 + 0.1 * (number % 5) for number in range(WINDOW - 3)] + [90.0, 91.0, 92.0]
    # the median is 4.2, the median of the distances from it 0.1, and three outliers move neither
    assert guard_after(losses).threshold() == pytest.approx(4.2 + 6 * 1.4826 * 0.1)


def test_normal_noise_is_no_spike_and_a_jump_is_one():
    noise = random.Random(0)
    losses = [noise.gauss(4.0, 0.1) for _ in range(10 * WINDOW)]
    guard = StabilityGuard("log", max_skipped_steps=3)
    for loss in losses:
        assert guard.judge(loss) is Verdict.OK
        guard.after_step(loss, skipped=False)
    assert guard.threshold() == pytest.approx(4.0 + SIGMAS * statistics.stdev(losses), abs=0.15)
    assert guard.judge(4.9) is Verdict.SPIKE


def test_only_what_rises_is_a_spike():
    assert guard_after([8.0 - 0.01 * number for number in range(200)]).judge(0.1) is Verdict.OK


def test_a_flat_loss_makes_no_spike_of_a_ripple():
    guard = guard_after([2.0] * WINDOW)
    assert guard.judge(2.0 + 0.99 * SIGMAS * MIN_SIGMA) is Verdict.OK
    assert guard.judge(2.0 + 1.01 * SIGMAS * MIN_SIGMA) is Verdict.SPIKE


def test_a_few_losses_tell_nothing():
    assert guard_after([2.0] * (MIN_LOSSES - 1)).judge(1e9) is Verdict.OK
    assert guard_after([2.0] * MIN_LOSSES).judge(1e9) is Verdict.SPIKE


def test_old_losses_are_forgotten():
    assert guard_after([9.0] * 500 + [2.0] * WINDOW).judge(3.0) is Verdict.SPIKE


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_refused_from_the_start(loss: float):
    guard = StabilityGuard("log", max_skipped_steps=3)
    assert guard.judge(loss) is Verdict.LOSS and guard.refuses(Verdict.LOSS)


def test_a_spike_is_refused_only_if_asked():
    assert guard_after([], "skip").refuses(Verdict.SPIKE) and not guard_after([], "log").refuses(Verdict.SPIKE)
    assert guard_after([], "log").refuses(Verdict.GRADIENT) and not guard_after([], "skip").refuses(Verdict.OK)


def test_skips_count_in_a_row_and_their_losses_do_not():
    guard = guard_after([2.0] * MIN_LOSSES)
    before = guard.threshold()
    for skipped in (True, True, False, True, True):
        guard.after_step(2.0 if not skipped else 50.0, skipped)
    assert guard.skipped_in_a_row == 2 and not guard.exhausted and guard.threshold() == before
    guard.after_step(math.nan, skipped=True)
    assert guard.exhausted


@given(st.lists(st.tuples(st.floats(0, 20), st.booleans()), max_size=200), st.lists(st.floats(0, 20), max_size=20))
def test_a_restart_changes_no_verdict(steps: list[tuple[float, bool]], later: list[float]):
    whole = StabilityGuard("skip", max_skipped_steps=3)
    for loss, skipped in steps:
        whole.after_step(loss, skipped)
    resumed = StabilityGuard("skip", max_skipped_steps=3)
    resumed.load(json.loads(json.dumps(whole.state())))
    for loss in later:
        assert resumed.judge(loss) is whole.judge(loss)
        for guard in (whole, resumed):
            guard.after_step(loss, guard.refuses(guard.judge(loss)))
        assert resumed.state() == whole.state() and resumed.exhausted == whole.exhausted


def test_all_finite_finds_a_single_value():
    good = torch.ones(3, 3)
    for value in (math.nan, math.inf, -math.inf):
        bad = good.clone()
        bad[1, 2] = value
        assert all_finite([good, torch.arange(3)]) and not all_finite([good, bad])


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_skipped_step_leaves_no_trace_in_any_stage(processes: int, tmp_path: Path):
    """Bad on the last rank alone, skipped by all: state untouched to the bit, and what follows is as if the batch had
    not been there."""
    output = tmp_path / "told.json"
    run_ranks(Path(stability.__file__), str(output), "0", "1", "2", "3", processes=processes)
    everyone = json.loads(output.read_text())
    assert len(everyone) == processes
    reasons = {"loss": Verdict.LOSS, "gradient": Verdict.GRADIENT, "spike": Verdict.SPIKE}
    for told in everyone:
        assert len(told) == 16
        for name, run in told.items():
            assert run["skipped"] == SKIPPED, name
            assert run["verdicts"] == [reasons[name.split()[-1]] if bad else Verdict.OK for bad in SKIPPED], name
            assert run["counted"] == [not bad for bad in SKIPPED], name
            assert run["untouched"] and run["same_end"], name
            assert run["losses"] == run["losses_without"], name
