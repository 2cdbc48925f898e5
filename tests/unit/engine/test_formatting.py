import pytest

from engine.formatting import count, duration


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (950, "950"),
        (12_345, "12.3k"),
        (4_560_000, "4.56M"),
        (1.2e9, "1.20G"),
        (1e8, "100M"),
        (989e12, "989T"),
    ],
)
def test_counts_have_three_digits(number: float, text: str):
    assert count(number) == text


def test_durations():
    assert duration(59.6) == "0:01:00" and duration(90_061) == "1 day, 1:01:01"
    assert duration(float("inf")) == duration(float("nan")) == "?"
