import pytest

from engine.optim.schedule import CONTINUED_WARMUP, learning_rate

BUDGET = 1_000_000
SHAPE = {"peak": 1e-3, "warmup_fraction": 0.1, "final_fraction": 0.1}


def rates(continued: bool) -> list[float]:
    return [learning_rate(tokens, BUDGET, **SHAPE, continued=continued) for tokens in range(0, BUDGET + 1, 1000)]


def test_a_first_run_warms_up_from_nearly_zero_and_ends_at_its_floor():
    values = rates(continued=False)
    assert values[0] == pytest.approx(1e-5)
    assert max(values) == values[100] == pytest.approx(1e-3)
    assert values[:100] == sorted(values[:100]) and values[100:] == sorted(values[100:], reverse=True)
    assert values[-1] == pytest.approx(1e-4)


def test_a_continued_run_warms_up_briefly_from_the_last_rate():
    values = rates(continued=True)
    assert values[0] == pytest.approx(rates(continued=False)[-1])
    assert values.index(max(values)) == pytest.approx(100 * CONTINUED_WARMUP, abs=1)


def test_the_last_step_may_begin_beyond_nothing():
    assert learning_rate(2 * BUDGET, BUDGET, **SHAPE, continued=False) == pytest.approx(1e-4)
    assert learning_rate(0, BUDGET, **{**SHAPE, "warmup_fraction": 0.0}, continued=False) == pytest.approx(1e-3)
