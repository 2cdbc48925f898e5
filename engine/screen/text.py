"""Text for a terminal or a page: names and samples without secrets and control characters."""

import html
import re
from typing import Any

from rich.markup import escape

from sources.redact import redact

Event = dict[str, Any]  # one line of metrics.jsonl: `event` is its kind
FIRST_EPOCHS = 4  # of a source, each of which is said

# All C0 and C1 controls but newline and tab: an escape sequence in a model's sample could write to a terminal's title.
# And what changes the direction of the text after it: a file's name could look like another.
_DIRECTIONS = (0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_CONTROLS = dict.fromkeys(
    {*range(32), *range(127, 160), *_DIRECTIONS} - {ord("\n"), ord("\t")}, "\N{REPLACEMENT CHARACTER}"
)


def printable(text: str) -> str:
    """`text` without secrets and control characters."""
    return redact(text).translate(_CONTROLS)


def literal(text: str) -> str:
    """Rich markup that shows `text` as it is, printable."""
    return escape(printable(text))


def one_line(text: str) -> str:
    """Printable text, with each run of line breaks, tabs and spaces as one space."""
    return printable(re.sub(r"\s+", " ", text))


def as_html(value: object) -> str:
    """Any value's printable text, escaped for HTML and its attributes."""
    return html.escape(printable(str(value)))


def plural(number: int, noun: str) -> str:
    """A number and its noun: 1 row, 2 rows, 3 micro-batches."""
    ending = "es" if noun.endswith(("s", "ch")) else "s"
    return f"{number:,} {noun}{'' if number == 1 else ending}"


def is_news(event: Event) -> bool:
    """Whether an event is worth a line. Of a text that is read a thousand times, not every epoch is: the first few, and
    then the 8th, the 16th and so on."""
    epoch = event.get("pass") if event.get("what") == "next_pass" else None
    return not isinstance(epoch, int) or epoch <= FIRST_EPOCHS or epoch.bit_count() == 1


def lookahead(passage: list[dict[str, Any]]) -> str:
    """What the model predicted in the middle of an evaluation's passage, beside the text itself."""
    middle = len(passage) // 2
    guesses, expected, realised = (passage[middle][key] for key in ("guesses", "expected_nll", "realised_nll"))
    tokens = [place["token"] for place in passage]
    before, after = "".join(tokens[: middle + 1])[-60:], "".join(tokens[middle + 1 :][: len(guesses)])
    sentence = f"after {before!r} it predicts {''.join(place[0][0] for place in guesses)!r}, the text has {after!r}"
    for horizon in list(expected)[-1:]:
        sentence += f"; loss of the next {horizon} tokens: predicted {expected[horizon]:.2f}"
        sentence += f", actual {realised[horizon]:.2f}" if realised.get(horizon) is not None else ""
    return sentence
