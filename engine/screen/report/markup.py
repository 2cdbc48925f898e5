"""Values as HTML and as JSON inside a page. Names, samples and messages are hostile text: each goes through here."""

import json
import time
from collections.abc import Iterable
from typing import Any

from engine.screen.text import as_html, printable

MAX_NAME = 32  # letters of a source's name in a table or a legend
MAX_TEXT = 2000  # letters of a message or a sample


def shortened(name: str, letters: int = MAX_NAME) -> str:
    """A long name without its middle, so that paths with the same start can be told apart."""
    if len(name) <= letters:
        return name
    end = (letters - 1) * 2 // 3
    return f"{name[: letters - 1 - end]}…{name[-end:]}"


def named(name: str, letters: int = MAX_NAME) -> str:
    """A name as HTML, shortened in the middle; pointing at it shows all of it."""
    short = shortened(printable(name), letters)
    return f'<span title="{as_html(name)}">{as_html(short)}</span>' if short != name else as_html(name)


def text(value: object) -> str:
    """A message or a sample as HTML, cut after MAX_TEXT letters."""
    whole = str(value)
    return as_html(whole if len(whole) <= MAX_TEXT else whole[:MAX_TEXT] + " …")


def as_json(value: Any) -> str:
    """JSON that stands inside a <script>: it holds neither a tag's bracket nor a letter beyond ASCII."""
    plain = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return plain.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def table(rows: Iterable[tuple[str, str]], kind: str = "facts") -> str:
    """Pairs of a label and a value, both HTML; pairs without a value are left out."""
    lines = "".join(f"<tr><th>{label}</th><td>{value}</td></tr>" for label, value in rows if value)
    return f'<table class="{kind}"><tbody>{lines}</tbody></table>' if lines else ""


def section(key: str, title: str, body: str) -> str:
    """A part of the page with its heading; nothing where it has no body."""
    return f'<section id="{key}"><h2>{title}</h2>\n{body}\n</section>' if body else ""


def moment(seconds: Any) -> str:
    """Seconds since 1970 as a date and time in UTC; "?" for what is none."""
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.gmtime(float(seconds)))
    except (TypeError, ValueError, OverflowError, OSError):
        return "?"
