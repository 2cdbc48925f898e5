"""Counts and durations as text."""

from datetime import timedelta


def count(number: float) -> str:
    """A count in three digits: 950, 12.3k, 4.56M, 1.20G, 989T."""
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            scaled = number / limit
            return f"{scaled:.{0 if scaled >= 100 else 1 if scaled >= 10 else 2}f}{unit}"
    return f"{number:.0f}"


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss, with days in front where there are some; "?" for infinity, NaN and thousands of years."""
    return str(timedelta(seconds=round(seconds))) if seconds < 1e11 else "?"
