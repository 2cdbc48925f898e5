"""Text for a terminal or a page: counts, durations, and names and samples with nothing secret or hostile."""

import html
from datetime import timedelta

from rich.markup import escape

from sources.redact import redact

# All C0 and C1 controls but newline and tab: an escape sequence in a model's sample could write to a terminal's title.
_CONTROLS = dict.fromkeys({*range(32), *range(127, 160)} - {ord("\n"), ord("\t")}, "\N{REPLACEMENT CHARACTER}")


def printable(text: str) -> str:
    """`text` without secrets and control characters."""
    return redact(text).translate(_CONTROLS)


def literal(text: str) -> str:
    """Rich markup that shows `text` as it is, printable."""
    return escape(printable(text))


def as_html(value: object) -> str:
    """Any value's printable text, escaped for HTML and its attributes."""
    return html.escape(printable(str(value)))


def count(number: float) -> str:
    """A count in three digits: 950, 12.3k, 4.56M, 1.20G, 989T."""
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            scaled = number / limit
            return f"{scaled:.{0 if scaled >= 100 else 1 if scaled >= 10 else 2}f}{unit}"
    return f"{number:.0f}"


def plural(number: int, noun: str) -> str:
    """A number and its noun: 1 row, 2 rows, 3 micro-batches."""
    ending = "es" if noun.endswith(("s", "ch")) else "s"
    return f"{number:,} {noun}{'' if number == 1 else ending}"


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss, with days in front where there are some; "?" for infinity, NaN and thousands of years."""
    return str(timedelta(seconds=round(seconds))) if seconds < 1e11 else "?"
