"""What a page's layout does to a text is undone, shown on books that are set here and read back by the real readers."""

import colorsys
import re
from contextlib import closing
from pathlib import Path

import pytest

from sources.readers.pdf.layout import plain_lines, running_text
from sources.readers.pdf.sandbox import Sandbox
from tests.helpers.pdf_files import LIGATURES, Placed, book, set_lines

PROSE = re.compile(r"[A-Z](?:[A-Za-z ,.;:'()-]|\"\w+\"){150,}\.", re.ASCII)


@pytest.fixture(scope="module")
def sandbox():
    with closing(Sandbox()) as sandbox:
        yield sandbox


@pytest.fixture(scope="session")
def paragraphs(texts) -> list[str]:
    """Return paragraphs of prose, each on one line."""
    joined = [" ".join(paragraph.split()) for text in texts for paragraph in text.split("\n\n")]
    return sorted({text for text in joined if PROSE.fullmatch(text) and "--" not in text and "- " not in text})


def read(sandbox: Sandbox, folder: Path, pages: list[list[Placed]]) -> str:
    path = folder / "a.pdf"
    path.write_bytes(book(pages))
    extract = sandbox.read(path)
    assert extract.status == "text" and extract.read_pages == len(pages)
    return extract.text


def typeset(paragraph: str, width: int) -> list[str]:
    """Break a paragraph into lines, the first one indented, long words cut at line ends."""
    lines = [" "]
    for word in paragraph.split():
        room = width - len(lines[-1]) - 2
        if len(word) <= room + 1:
            lines[-1] += " " + word
        elif word.isalpha() and word.islower() and len(word) >= 9 and 3 <= room <= len(word) - 3:
            lines[-1] += f" {word[:room]}-"
            lines.append(word[room:])
        else:
            lines.append(word)
    return lines


def with_ligatures(line: str) -> str:
    for letters, code in LIGATURES.items():
        line = line.replace(letters, code)
    return line


def test_a_typeset_book_reads_as_it_was_written(sandbox, tmp_path, paragraphs):
    lines = [line for paragraph in paragraphs for line in typeset(paragraph, 72)]
    assert sum(line.endswith("-") for line in lines) > 20 and len(lines) > 200
    pages, per_page = [], 40
    for number, start in enumerate(range(0, len(lines), per_page), start=1):
        side = f"{number}   Python, its words" if number % 2 else f"What they mean   {number}"
        body = set_lines([with_ligatures(line) for line in lines[start : start + per_page]], top=700)
        pages.append([(72, 750, side), *body, (300, 40, f"- {number} -")])
    text = read(sandbox, tmp_path, pages)
    assert text.split() == " ".join(paragraphs).split(), "words whole, headers and numbers gone, nothing else lost"
    whole = sum(paragraph in text.split("\n\n") for paragraph in paragraphs)
    assert whole >= len(paragraphs) - len(pages), "a paragraph is cut at a page's end at most"


def test_two_columns_are_read_one_after_the_other(sandbox, tmp_path, paragraphs):
    lines = [line for paragraph in paragraphs[:8] for line in typeset(paragraph, 45)][:90]
    columns = set_lines(lines[:45], left=30) + set_lines(lines[45:], left=320)
    text = read(sandbox, tmp_path, [columns])
    assert text.split() == " ".join(paragraphs).split()[: len(text.split())]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["This is an exam-", "ple of a word."], "This is an example of a word."),
        (
            ["A well-known thing, and it is a well-", "known thing."],
            "A well-known thing, and it is a well-known thing.",
        ),
        (["We know all too well who is known to be well-", "known in town."], "well-known in town"),
        (["The years were the years from 1990-", "2000 and then the others."], "1990-2000"),
        (["Research is research, and it is re-", "search again."], "it is research again"),
        (["A study of the Black-", "Scholes equation."], "Black-Scholes"),
    ],
)
def test_hyphens_at_line_ends(sandbox, tmp_path, lines, expected):
    assert expected in read(sandbox, tmp_path, [set_lines(lines)]).replace("\n", " ")
    assert expected in running_text([plain_lines("\n".join(lines))]).replace("\n", " ")


def test_ligatures_and_soft_hyphens(sandbox, tmp_path):
    line = with_ligatures("The office floor is stiff, the waffle is fine: flour, fish") + " and co\x07operation."
    assert read(sandbox, tmp_path, [set_lines([line])]) == (
        "The office floor is stiff, the waffle is fine: flour, fish and cooperation."
    )
    assert running_text([plain_lines("\ufb01ve \ufb06eps, x\u00b2 and \u2163")]) == "five steps, x\u00b2 and \u2163"


def test_code_tables_and_lists_keep_their_lines(sandbox, tmp_path):
    source = Path(colorsys.__file__).read_text().splitlines()[40:90]
    table = [
        f"{name:24}{count:8}{count * 3:12}" for count, name in enumerate(("Berlin", "Vienna", "Paris"), start=1990)
    ]
    items = [
        f"{number}. an item of a list that is about as long as the line is wide, {number} of them"
        for number in (1, 2, 3)
    ]
    text = read(sandbox, tmp_path, [set_lines(lines) for lines in (source, table, items)])
    read_lines = [" ".join(line.split()) for line in text.splitlines()]
    for line in [*table, *items]:
        assert " ".join(line.split()) in read_lines
    assert all(" ".join(line.split()) in read_lines for line in source if line.strip())


def test_numbers_that_count_no_pages_stay():
    pages = [f"Definition {7 * n}\nSomething is defined here.\nAnd it goes on.\nThen it ends." for n in range(6)]
    text = running_text([plain_lines(page) for page in pages])
    assert all(f"Definition {7 * n}" in text for n in range(6))
    front = [
        f"Preface   {numeral}\nWhat stands on page {n}.\nMore of it.\nEnd {n * n}.\n{numeral}"
        for n, numeral in enumerate(["i", "ii", "iii", "iv", "v", "vi"])
    ]
    assert not re.search(r"^[ivx]+$", running_text([plain_lines(page) for page in front]), re.M)
