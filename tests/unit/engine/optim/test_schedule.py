import pytest

from engine.config import TrainConfig
from engine.optim.schedule import CONTINUED_WARMUP, batch_multiple, hyperparameters, learning_rate, steps_of_a_run

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


def test_a_short_cool_down_keeps_the_peak_until_it_begins():
    values = [
        learning_rate(tokens, BUDGET, **SHAPE, continued=False, shape="linear", cooldown_fraction=0.4)
        for tokens in range(0, BUDGET + 1, 1000)
    ]
    assert values[100] == values[350] == values[600] == pytest.approx(1e-3)
    assert values[800] == pytest.approx((1e-3 + 1e-4) / 2) and values[1000] == pytest.approx(1e-4)
    cosine = learning_rate(900_000, BUDGET, **SHAPE, continued=False, cooldown_fraction=0.4)
    assert 1e-4 < cosine < values[900]
    whole = [learning_rate(t, BUDGET, **SHAPE, continued=False, cooldown_fraction=1.0) for t in range(0, BUDGET, 999)]
    assert whole == [learning_rate(t, BUDGET, **SHAPE, continued=False) for t in range(0, BUDGET, 999)]


def test_steps_double_at_their_shares_and_rates_grow_with_the_root():
    train = TrainConfig(batch_doublings=(0.2, 0.5), beta2_half_life_tokens=8_000, warmup_fraction=0.0)
    assert [batch_multiple(train, tokens, BUDGET) for tokens in (0, 199_999, 200_000, 500_000, 10**7)] == [
        1,
        1,
        2,
        4,
        4,
    ]
    plain = TrainConfig(warmup_fraction=0.0)
    for tokens, multiple in ((0, 1), (200_000, 2), (700_000, 4)):
        values = hyperparameters(train, tokens, BUDGET, continued=False, step_tokens=1_000)
        expected = hyperparameters(plain, tokens, BUDGET, continued=False, step_tokens=1_000)
        assert values.learning_rate == pytest.approx(multiple**0.5 * expected.learning_rate)
        assert values.beta2 == pytest.approx(0.5 ** (multiple / 8))


@pytest.mark.parametrize("doublings", [(), (0.2, 0.5), (0.5, 0.5), (0.0,), (1.0,)])
@pytest.mark.parametrize("step_tokens", [1_000, 7_777, 300_000])
def test_the_steps_of_a_run_are_counted(doublings: tuple[float, ...], step_tokens: int):
    train = TrainConfig(batch_doublings=doublings)
    steps = tokens = 0
    while tokens < BUDGET:
        tokens += step_tokens * batch_multiple(train, tokens, BUDGET)
        steps += 1
    assert steps_of_a_run(train, BUDGET, step_tokens) == steps


def test_what_is_off_leaves_the_optimizers_own_values():
    values = hyperparameters(TrainConfig(), 10, BUDGET, continued=False, step_tokens=4096)
    assert values[1:] == (1.0, None, None)


def test_momentum_rises_decay_falls_and_beta2_forgets_by_tokens():
    train = TrainConfig(
        optimizer="muon",
        muon_momentum_warmup_fraction=0.1,
        weight_decay_schedule="linear",
        beta2_half_life_tokens=40_000,
    )
    at = {
        tokens: hyperparameters(train, tokens, BUDGET, continued=False, step_tokens=4_000)
        for tokens in (0, 50_000, 100_000, 999_000, 1_200_000)
    }
    assert [at[tokens].momentum for tokens in at] == pytest.approx([0.85, 0.9, 0.95, 0.95, 0.95])
    assert [at[tokens].decay_share for tokens in at] == pytest.approx([1.0, 0.95, 0.9, 0.001, 0.0])
    assert at[0].beta2 ** 10 == pytest.approx(0.5)
    assert hyperparameters(train, 0, BUDGET, continued=True, step_tokens=4_000).momentum is None
