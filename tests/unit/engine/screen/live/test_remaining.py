"""When the time left is known, and from what."""

import pytest

from engine.screen.live.remaining import WARM_SECONDS, WARM_STEPS, WINDOW, Remaining
from tests.helpers.run_view import BUDGET, step_event


def after(steps: int, seconds: float, first: float = 0.0) -> Remaining:
    """Steps of so many seconds each, the first of which took longer."""
    remaining = Remaining(BUDGET)
    for step in range(1, steps + 1):
        event = step_event(step, seconds=seconds)
        remaining.add(event | {"time": event["time"] + first})
    return remaining


def test_nothing_is_said_before_it_is_warm():
    for steps in range(WARM_STEPS + 1):
        assert after(steps, 60.0).seconds() is None
    assert after(WARM_STEPS + 1, 60.0).seconds() is not None
    fast = WARM_SECONDS / (2 * WARM_STEPS)  # seconds a step: many steps, and too short a time
    assert after(WARM_STEPS + 1, fast).seconds() is None
    assert after(2 * WARM_STEPS + 2, fast).seconds() is not None


def test_a_slow_first_step_counts_for_nothing():
    quick, slow = after(30, 10.0), after(30, 10.0, first=3600.0)
    assert slow.seconds() == quick.seconds() == pytest.approx((BUDGET - 3_000_000) / 10_000)


def test_the_latest_events_count():
    remaining = after(WINDOW, 10.0)
    last = step_event(WINDOW, seconds=10.0)
    for step in range(1, WINDOW + 2):  # from now on a step takes half as long
        remaining.add(step_event(WINDOW + step) | {"time": last["time"] + 5.0 * step})
    assert remaining.seconds() == pytest.approx((BUDGET - (2 * WINDOW + 1) * 100_000) / 20_000)


@pytest.mark.parametrize("event", [step_event(3), step_event(31) | {"time": 0.0}], ids=["a rollback", "another clock"])
def test_what_goes_back_begins_again(event):
    remaining = after(30, 10.0)
    remaining.add(event)
    assert remaining.seconds() is None


def test_a_run_over_its_budget_takes_no_time():
    assert after(1100, 10.0).seconds() == 0
