import pytest

from engine.config import TrainConfig
from engine.optim.schedule import (
    CONTINUED_WARMUP,
    FITTING_SHARE,
    batch_multiple,
    hyperparameters,
    learning_rate,
    row_length,
    steps_of_a_run,
)

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
    assert values[1:] == (1.0, None, None, False)


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


GROWING = TrainConfig(seq_length_schedule=((0.0, 256), (0.5, 512), (0.85, 1024)), learning_rate=1e-3)


def test_rows_grow_at_their_shares():
    lengths = [row_length(GROWING, 1024, tokens, BUDGET) for tokens in (0, 499_999, 500_000, 849_999, 850_000, 10**7)]
    assert lengths == [256, 256, 512, 512, 1024, 1024]
    assert row_length(TrainConfig(), 128, 500_000, BUDGET) == 128


def rate_at(tokens: int, since: int | None, continued: bool = False, train: TrainConfig = GROWING) -> float:
    return hyperparameters(train, tokens, BUDGET, continued, 1000, since).learning_rate


def test_longer_rows_warm_the_rate_again_to_their_share():
    since = 850_000
    assert rate_at(since, since) == pytest.approx(rate_at(since, None)), "no jump"
    values = [rate_at(tokens, since) for tokens in range(since, BUDGET + 1, 1000)]
    assert max(values) == pytest.approx(3e-4) and values.index(max(values)) == 5  # a quarter of the warm-up
    assert values[5:] == sorted(values[5:], reverse=True) and values[-1] == pytest.approx(1e-4)


def test_a_rate_that_is_higher_goes_on_as_it_was():
    since = 200_000
    assert all(rate_at(tokens, since) == rate_at(tokens, None) for tokens in range(since, BUDGET, 10_000))
    off = GROWING.model_copy(update={"rewarm_fraction": 0.0})
    assert max(rate_at(tokens, 850_000, train=off) for tokens in range(850_000, BUDGET, 1000)) <= rate_at(850_000, None)


def test_a_run_that_begins_with_longer_rows_never_goes_higher():
    values = [rate_at(tokens, 0, continued=True) for tokens in range(0, BUDGET + 1, 1000)]
    assert values[0] == pytest.approx(1e-4) and max(values) == pytest.approx(3e-4)
    assert values[-1] == pytest.approx(1e-4)
    as_before = GROWING.model_copy(update={"rewarm_fraction": 1.0})
    assert max(rate_at(t, 0, True, as_before) for t in range(0, BUDGET, 1000)) == pytest.approx(1e-3)


def test_layers_are_fitted_for_a_tenth_of_what_is_left():
    def fits(tokens: int, since: int | None) -> bool:
        return hyperparameters(GROWING, tokens, BUDGET, False, 1000, since).fits_layers

    end = 850_000 + FITTING_SHARE * 150_000
    assert fits(850_000, 850_000) and fits(int(end) - 1, 850_000) and not fits(int(end), 850_000)
    assert not fits(900_000, None)
