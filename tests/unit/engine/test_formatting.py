from datetime import datetime

import pytest

from engine.formatting import about, brief, clock, count


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


def test_brief_times():
    assert [brief(seconds) for seconds in (0.2, 8.4, 99, 130, 8400)] == ["0 s", "8 s", "99 s", "2 min", "2 h 20 min"]
    assert brief(float("inf")) == brief(float("nan")) == "?"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "under a minute"),
        (44, "under a minute"),
        (46, "about 1 min"),
        (500, "about 8 min"),
        (33 * 60, "about 35 min"),
        (3500, "about 1 h"),
        (8400, "about 2 h 20 min"),
        (15.3 * 3600, "about 15 h"),
        (47 * 3600, "about 47 h"),
        (71 * 3600, "about 3 days"),
        (float("inf"), "?"),
        (float("nan"), "?"),
    ],
)
def test_times_are_rounded(seconds: float, text: str):
    assert about(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (600, "at about 14:12"),
        (5000, "at about 15:25"),
        (4 * 3600, "at about 18:00"),
        (15 * 3600, "tomorrow at about 05:00"),
        (3 * 86400, "Saturday at about 14:00"),
        (30 * 86400, "about 1 January 2027"),
        (8 * 86400, "about 10 December"),
        (float("inf"), "?"),
    ],
)
def test_a_time_to_come_is_a_clock_time_or_a_day(seconds: float, text: str):
    now = datetime(2026, 12, 2, 14, 1, 40).timestamp()
    assert clock(now + seconds, now) == text
