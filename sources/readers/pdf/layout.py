"""Turns the lines of a document's pages into running text; `process.py` calls it in the child.

Removes running headers, footers and page numbers, joins words that are cut at line ends and the lines of a paragraph,
and separates paragraphs by blank lines. Lines are joined only where they look like prose that fills its column; code,
tables, formulas and lists keep their lines. The text depends on the lines alone: the same file always gives the same
text.
"""

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

EDGE_LINES = 2  # lines at a page's top and at its bottom that may be running ones
RUNNING_PAGES = 3  # a running line is on this many pages at least, one of them at most NEAR pages away
NEAR = 2  # left and right pages may have headers of their own
WINDOW = 5  # lines that, with as many before and after them, show how wide their column is
FULL = 0.9  # of the column's width: a line that ends although the next word fits into this was ended on purpose
FULL_AT_SENTENCE_END = 0.97  # a paragraph may end there too
LONG = 0.6  # of the column's width: a line this long may continue in one that begins with a small letter
PROSE_WIDTH = 38  # characters; narrower columns (indexes, tables) keep their lines
SYMBOLS_IN_PROSE = 0.2  # more digits and punctuation than this are a table, code or a formula

SOFT_HYPHEN = "\u00ad"
_LIGATURES = {chr(code): unicodedata.normalize("NFKC", chr(code)) for code in range(0xFB00, 0xFB07)}
_REPLACED = _LIGATURES | {"\u00a0": " ", "\u2010": "-", "\u2011": "-"}
_ODD = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\ufffd-\uffff\ud800-\udfff" + "".join(_REPLACED) + "]")
_NUMBER = re.compile(r"\d{1,9}")
_ROMAN = {"i": 1, "v": 5, "x": 10, "l": 50, "c": 100}
_SYMBOL = re.compile(r"[!-@\[-`{-~]")
_LIST_ITEM = re.compile(r"(?:[\u2022\u2023\u25e6\u25aa\u25cf*\u2013\u2014-]|\(?(?:\d{1,3}|[a-zA-Z]|[ivx]{1,4})[.)])\s")
_WORD = re.compile(r"[^\W\d_]+")
_LAST_WORD = re.compile(r"[^\W\d_]+$")
_SENTENCE_ENDS = tuple(".!?:;\u2026\u3002\uff01\uff1f\u061f\u06d4")
_CLOSING = "\"')]\u2019\u201d\u201c\u00bb\u00ab"
_SPACELESS = re.compile("[\u3040-\u30ff\u3400-\u9fff\uff00-\uff60\u3000-\u303f]")

Shape: TypeAlias = tuple[str, tuple[int, ...]]  # a line without its numbers; its numbers


@dataclass(slots=True)
class Line:
    """One line as a reader found it, in any unit of length; `bottom` grows upwards, as in a PDF's own coordinates.

    Its text ends with a soft hyphen where the reader knows that a word was cut there.
    """

    text: str
    left: float
    right: float
    bottom: float
    height: float


def plain_lines(text: str) -> list[Line]:
    """Return the lines of a page of which only the text is known: placed as a typewriter would."""
    lines = []
    for number, line in enumerate(text.split("\n")):
        tidy = clean(line).rstrip()
        if content := tidy.lstrip():
            lines.append(Line(content, len(tidy) - len(content), len(tidy), -3 * number, 2.4))
    return lines


def clean(text: str) -> str:
    """Return `text` with ligatures spelt out and without control and other meaningless characters."""
    return _ODD.sub(lambda match: _REPLACED.get(match[0], ""), text)


def running_text(pages: list[list[Line]]) -> str:
    """Return a document's text: paragraphs, separated by blank lines."""
    pages = [_whole_rows(page) for page in pages]
    words = Counter(word for page in pages for line in page for word in line.text.lower().split())
    _drop_running_lines(pages)
    paragraphs: list[Paragraph] = []
    for page in pages:
        for column in _columns(page):
            _add_column(paragraphs, column, words)
    text = "".join(paragraph.separator + "".join(paragraph.texts) for paragraph in paragraphs)
    return text.replace(SOFT_HYPHEN, "").strip()


def _whole_rows(lines: list[Line]) -> list[Line]:
    """Join lines that stand side by side on the page, such as a letter and its exponent."""
    rows: list[Line] = []
    for line in lines:
        if rows and _continues_row(row := rows[-1], line):
            row.text += (" " if line.left - row.right > 0.12 * row.height else "") + line.text
            row.right = line.right
            if line.height > row.height:
                row.bottom, row.height = line.bottom, line.height
        else:
            rows.append(line)
    return rows


def _continues_row(row: Line, line: Line) -> bool:
    overlap = min(row.bottom + row.height, line.bottom + line.height) - max(row.bottom, line.bottom)
    near = -0.3 * row.height < line.left - row.right < 2 * row.height
    return near and overlap > 0.5 * min(row.height, line.height)


def _drop_running_lines(pages: list[list[Line]]) -> None:
    """Remove lines at the edges of pages that near pages have too, alike but for numbers that count the pages."""
    for step in (1, -1):
        edges = [[_shape(line.text) for line in page[::step][:EDGE_LINES]] for page in pages]
        totals = Counter(shape for edge in edges for shape in {shape for shape, _ in edge})
        for number, page in enumerate(pages):
            running = 0
            for line in edges[number]:
                if totals[line[0]] < RUNNING_PAGES or not _is_near(edges, number, line):
                    break
                running += 1
            pages[number] = page[running:] if step == 1 else page[: len(page) - running]


def _shape(text: str) -> Shape:
    """Return a line without its numbers, and the numbers; roman ones where they are the whole line."""
    values = [_ROMAN.get(letter, 0) for letter in text.lower()]
    if len(values) <= 7 and all(values):
        pairs = pairwise([*values, 0])
        return "#", (sum(value if value >= following else -value for value, following in pairs),)
    return _NUMBER.sub("#", text), tuple(int(number) for number in _NUMBER.findall(text))


def _is_near(edges: list[list[Shape]], number: int, line: Shape) -> bool:
    """Return whether a near page has the line too, with the same numbers or numbers that count the pages."""
    shape, counters = line
    return any(
        other != number
        and other_shape == shape
        and all(theirs - ours in (0, other - number) for theirs, ours in zip(other_counters, counters, strict=False))
        for other in range(max(0, number - NEAR), min(len(edges), number + NEAR + 1))
        for other_shape, other_counters in edges[other]
    )


def _columns(page: list[Line]) -> list[list[Line]]:
    """Split a page where its lines jump upwards, which is where the next column begins."""
    columns: list[list[Line]] = []
    for line in page:
        if not columns or line.bottom > columns[-1][-1].bottom + 0.5 * line.height:
            columns.append([])
        columns[-1].append(line)
    return columns


@dataclass(slots=True)
class Paragraph:
    """A paragraph's lines, or a line that belongs to none; `separator` stands before it."""

    separator: str
    texts: list[str]
    last: Line


def _add_column(paragraphs: list[Paragraph], column: list[Line], words: Counter[str]) -> None:
    pitches = sorted(above.bottom - below.bottom for above, below in pairwise(column))
    usual_pitch = pitches[len(pitches) // 2] if pitches else 0.0
    starts = range(0, len(column), WINDOW)
    frames = [_frame(column[max(0, start - WINDOW) : start + 2 * WINDOW]) for start in starts]
    for number, line in enumerate(column):
        paragraph = paragraphs[-1] if paragraphs else None
        apart = paragraph is None or number == 0 or paragraph.last.bottom - line.bottom > 1.4 * usual_pitch
        if paragraph and _continues(paragraph.last, line, None if apart else frames[number // WINDOW]):
            paragraph.texts[-1] = _joint(paragraph.texts[-1], line.text, words)
            paragraph.texts.append(line.text)
            paragraph.last = line
        else:
            after_single_line = paragraph is not None and not apart and len(paragraph.texts) == 1
            paragraphs.append(Paragraph("\n" if after_single_line else "\n\n", [line.text], line))


def _frame(lines: list[Line]) -> tuple[float, float]:
    """Return the left edge and the width of some lines' column; one line may stick out."""
    left = min([line.left for line in lines])
    return left, sorted([line.right for line in lines])[-2:][0] - left


def _continues(previous: Line, line: Line, frame: tuple[float, float] | None) -> bool:
    """Return whether `line` continues the word or the sentence of the one before it.

    `frame` is the left edge and the width of their column; None over the end of a column, a page or a paragraph.
    """
    if _is_cut(previous.text, line.text):
        return True
    ends = previous.text.rstrip(_CLOSING).endswith(_SENTENCE_ENDS)
    resumes = line.text[0].islower() and not ends
    if abs(previous.height - line.height) > 0.15 * line.height or not _is_prose(previous.text):
        return False
    if frame is None:
        return resumes and min(len(previous.text), len(line.text)) >= PROSE_WIDTH
    left, width = frame
    if _LIST_ITEM.match(line.text) or (ends and line.left - previous.left > 0.8 * line.height):
        return False
    character = (previous.right - previous.left) / len(previous.text)
    if width < PROSE_WIDTH * character or not _is_prose(line.text):
        return False
    with_next_word = previous.right - left + (len(line.text.split(maxsplit=1)[0]) + 1) * character
    if with_next_word >= (FULL_AT_SENTENCE_END if ends else FULL) * width:
        return True
    return resumes and previous.right - left >= LONG * width


def _is_cut(text: str, line: str) -> bool:
    """Return whether a word, or a number with a hyphen, continues in the next line."""
    if text[-1] != "-":
        return text[-1] == SOFT_HYPHEN
    before, after = text[-2:-1], line[0]
    return (before.isalpha() and after.isalpha()) or (before.isdigit() and after.isdigit())


def _is_prose(text: str) -> bool:
    dotted = ". . ." in text or "...." in text  # the leaders of a table of contents
    return not dotted and len(_SYMBOL.findall(text)) <= max(SYMBOLS_IN_PROSE * len(text), 3)


def _joint(text: str, line: str, words: Counter[str]) -> str:
    """Return a line with what joins it to the next one: a space, or nothing and without the hyphen of a cut word.

    The `words` of the whole document show whether a word is cut or has a hyphen anyway.
    """
    if not _is_cut(text, line):
        spaceless = _SPACELESS.match(text[-1]) and _SPACELESS.match(line)
        return text + ("" if spaceless else " ")
    head, tail = _LAST_WORD.search(text[:-1]), _WORD.match(line)
    whole = head and tail and not _has_hyphen(head[0].lower(), tail[0], words)
    return text[:-1] + ("" if whole else "-")


def _has_hyphen(head: str, tail: str, words: Counter[str]) -> bool:
    if not tail[0].islower():
        return True
    whole, parted = words[head + tail.lower()], words[f"{head}-{tail.lower()}"]
    if whole or parted:
        return parted > whole
    both_are_words = words[head] and words[tail] > 1  # the tail itself was counted once
    return bool(both_are_words) and min(len(head), len(tail)) >= 4
