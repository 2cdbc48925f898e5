"""Counts and durations as text."""

from datetime import datetime


def count(number: float) -> str:
    """A count in three digits: 950, 12.3k, 4.56M, 1.20G, 989T."""
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            scaled = number / limit
            return f"{scaled:.{0 if scaled >= 100 else 1 if scaled >= 10 else 2}f}{unit}"
    return f"{number:.0f}"


def about(seconds: float) -> str:
    """Seconds as a person says them: under a minute, about 8 min, about 2 h 20 min, about 15 h, about 3 days; "?" for
    infinity, NaN and thousands of years."""
    if not seconds < 1e11:
        return "?"
    minutes = seconds / 60
    if minutes < 0.75:
        return "under a minute"
    if minutes < 57.5:
        return f"about {max(1, round(minutes) if minutes < 20 else 5 * round(minutes / 5))} min"
    if minutes < 295:
        hours, rest = divmod(10 * round(minutes / 10), 60)
        return f"about {hours} h" + (f" {rest} min" if rest else "")
    hours = round(minutes / 60)
    return f"about {hours} h" if hours < 48 else f"about {round(hours / 24)} days"


def brief(seconds: float) -> str:
    """Seconds in as few letters as can be, for what has no room: 8 s, 95 s, 2 min, 2 h 20 min."""
    return f"{seconds:.0f} s" if seconds < 99.5 else about(seconds).removeprefix("about ")


def clock(moment: float, now: float) -> str:
    """A time in the future (seconds since 1970) as a person says it: at about 18:40, tomorrow at about 09:00, Friday at
    about 17:00, about 3 December. The further away it is, the rounder."""
    if not moment - now < 1e9:
        return "?"
    unit = 60 if moment - now < 1200 else 300 if moment - now < 7200 else 600 if moment - now < 43200 else 3600
    then, today = (datetime.fromtimestamp(when) for when in (unit * round(moment / unit), now))
    days, time = (then.date() - today.date()).days, f"at about {then:%H:%M}"
    if days < 1:
        return time
    if days < 7:
        return f"tomorrow {time}" if days == 1 else f"{then:%A} {time}"
    return f"about {then.day} {then:%B}" + ("" if then.year == today.year else f" {then.year}")
