"""PDF files, as a source: chunks and cursors, what is skipped and counted, what the documents depend on."""

import json
import pickle
import string
import subprocess
import sys

import pypdf
import pytest

from sources.config import PdfSpec
from sources.readers.pdf.reader import PdfSource, chunks
from sources.readers.pdf.sandbox import Limits
from sources.source import SourceError
from tests.helpers.pdf_files import book_with_fonts, one_page, page_tree, plain_book, stream
from tests.helpers.text import REPOSITORY


@pytest.fixture(scope="module")
def pages(texts) -> list[str]:
    """Eight pages of real text, no two of them with the same edges."""
    lines = [line for text in texts for line in text.encode("ascii", "ignore").decode().splitlines()]
    lines = [line for line in lines if line.strip() and line[-1] != "-"]  # hyphens are another test's
    return ["\n".join(lines[start : start + 50]) for start in range(0, 400, 50)]


def open_pdf(path) -> PdfSource:
    return PdfSource(PdfSpec(type="pdf", path=str(path)))


def read_all(source) -> list[tuple[str, dict]]:
    return [document for shard in range(source.num_shards) for document in source.read(shard, None)]


def words(text: str) -> list[str]:
    return text.split()


def test_text_in_chunks_with_exact_cursors(tmp_path, pages):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "Book.PDF").write_bytes(plain_book(pages))
    source = open_pdf(tmp_path)
    documents = read_all(source)
    assert words(" ".join(text for text, _ in documents)) == words("\n".join(pages))
    assert len(documents) > 3 and all(len(text) <= 5000 for text, _ in documents)
    assert all(len(text) >= 2900 for text, _ in documents[:-1])
    for number, (_, cursor) in enumerate(documents):
        assert list(source.read(0, json.loads(json.dumps(cursor)))) == documents[number + 1 :]
    single = read_all(open_pdf(tmp_path / "deep" / "er" / "Book.PDF"))
    assert [text for text, _ in single] == [text for text, _ in documents]


def test_a_source_reads_the_same_in_a_fresh_process(tmp_path, pages):
    (tmp_path / "a.pdf").write_bytes(plain_book(pages))
    source = open_pdf(tmp_path)
    documents = read_all(source)
    script = "import json, pickle, sys; s = pickle.load(sys.stdin.buffer); print(json.dumps(list(s.read(0, None))))"
    there = subprocess.run(
        [sys.executable, "-c", script], input=pickle.dumps(source), capture_output=True, cwd=REPOSITORY, check=True
    )
    assert [tuple(document) for document in json.loads(there.stdout)] == documents


def test_the_fingerprint_is_of_names_and_bytes(tmp_path, pages):
    path = tmp_path / "a.pdf"
    path.write_bytes(plain_book(pages))
    fingerprint = open_pdf(tmp_path).fingerprint()
    path.touch()
    assert open_pdf(tmp_path).fingerprint() == fingerprint == json.loads(json.dumps(fingerprint))
    path.write_bytes(path.read_bytes().replace(b"the", b"teh", 1))
    changed = open_pdf(tmp_path).fingerprint()
    path.rename(tmp_path / "b.pdf")
    assert fingerprint != changed != open_pdf(tmp_path).fingerprint()


def test_bad_files_are_skipped_counted_and_named(tmp_path, pages, monkeypatch):
    good = plain_book(pages[:1])
    (tmp_path / "good.pdf").write_bytes(good)
    (tmp_path / "page.pdf").write_bytes(b"<!DOCTYPE html><html><body>Please log in</body></html>")
    (tmp_path / "empty.pdf").write_bytes(b"")
    (tmp_path / "cut.pdf").write_bytes(good[:300])
    (tmp_path / "notes.txt").write_text("not looked at")
    image = stream(
        bytes(300), b"/Type /XObject /Subtype /Image /Width 10 /Height 10 /BitsPerComponent 8 /ColorSpace /DeviceRGB"
    )
    picture = one_page(stream(b"600 0 0 700 0 0 cm /X Do"), image, resources=b"/XObject << /X 6 0 R >>")
    (tmp_path / "scan.pdf").write_bytes(picture)
    (tmp_path / "half.pdf").write_bytes(page_tree(b"<< /Type /Pages /Count 2 /Kids [4 0 R 2 0 R] >>"))
    (tmp_path / "large.pdf").write_bytes(good + bytes(1_000_000))
    locked = pypdf.PdfWriter(clone_from=str(tmp_path / "good.pdf"))
    locked.encrypt("secret", algorithm="RC4-128")
    locked.write(tmp_path / "locked.pdf")
    monkeypatch.setattr("sources.readers.pdf.reader.LIMITS", Limits(file_bytes=1_000_000))
    source = open_pdf(tmp_path)
    documents = read_all(source)
    assert sorted(len(words(text)) for text, _ in documents) == [5, len(words(pages[0]))]
    assert source.counts == {
        "files that are not PDF": 2,
        "PDFs without text": 1,
        "encrypted PDFs": 1,
        "damaged PDFs": 1,
        "PDFs that are too large": 1,
    }
    notices = "\n".join(source.notices)
    for sentence in (
        "page.pdf: it is not a PDF",
        "scan.pdf: it holds no text",
        "OCR",
        "locked.pdf: it is encrypted",
        "large.pdf: it is larger than",
        "half.pdf: 1 of its 2 pages are damaged",
    ):
        assert sentence in notices
    read_all(source)
    assert sum(source.counts.values()) == 6, "counted once per file"


@pytest.mark.parametrize("kind", ["exchanged letters", "glyph numbers", "private use", "symbols"])
def test_pages_in_fonts_that_give_no_text_are_left_out(tmp_path, pages, kind):
    """By pdfium, and by pypdf where that fails; the page itself looks as it should."""
    letters = string.ascii_letters
    maps = {
        "exchanged letters": dict(
            zip(letters, letters[3:26] + letters[:3] + letters[29:] + letters[26:29], strict=True)
        ),
        "glyph numbers": {chr(code): chr(code - 29) for code in range(32, 127)},
        "private use": {letter: chr(0xF000 + ord(letter)) for letter in letters},
        "symbols": {letter: "!#$%&*+/=?@"[ord(letter) % 11] for letter in letters},
    }
    content = book_with_fonts([(pages[0], None), (pages[1], maps[kind]), (pages[2], None)])
    (tmp_path / "part.pdf").write_bytes(content)
    (tmp_path / "whole.pdf").write_bytes(book_with_fonts([(page, maps[kind]) for page in pages[:2]]))
    (tmp_path / "no_start.pdf").write_bytes(content.replace(b"startxref", b"startxfer"))
    source = open_pdf(tmp_path)
    documents = read_all(source)
    expected = words(pages[0] + "\n" + pages[2])
    assert words(" ".join(text for text, _ in documents)) == 2 * expected
    assert source.counts == {"PDFs with fonts that give no text": 1}
    left_out = "1 of its 3 pages have fonts that give symbols in place of text and are left out; they need OCR"
    whole = "whole.pdf: its fonts give symbols in place of its text; it needs OCR"
    assert sorted(source.notices) == [f"no_start.pdf: {left_out}", f"part.pdf: {left_out}", whole]
    by_pypdf = source.sandbox._ask(tmp_path / "part.pdf", "pypdf")
    assert (by_pypdf.illegible_pages, by_pypdf.lost_pages) == (1, 0)


def test_an_unreadable_file_is_skipped_at_any_place(tmp_path, pages):
    for number in range(4):  # reading a process's memory at 0 fails for every user
        (tmp_path / f"unreadable{number}.pdf").symlink_to("/proc/self/mem")
    with pytest.raises(SourceError, match=r"unreadable0\.pdf: cannot be opened"):
        open_pdf(tmp_path)
    (tmp_path / "book.pdf").write_bytes(plain_book(pages[:1]))
    source = open_pdf(tmp_path)
    assert source.files[0].key != "book.pdf"
    assert words(" ".join(text for text, _ in read_all(source))) == words(pages[0])
    assert source.counts == {"files that cannot be opened": 4}


def test_nothing_readable_is_an_error_that_says_why(tmp_path):
    with pytest.raises(SourceError, match="does not exist"):
        open_pdf(tmp_path / "none")
    with pytest.raises(SourceError, match="holds no PDF"):
        open_pdf(tmp_path)
    (tmp_path / "a.pdf").write_bytes(b"<html>")
    with pytest.raises(SourceError, match=r"can be read: a\.pdf: it is not a PDF"):
        open_pdf(tmp_path)


def test_chunks_end_with_paragraphs(texts):
    whole = "\n\n".join(texts[:12])
    pieces = list(chunks(whole))
    assert words(" ".join(pieces)) == words(whole)
    assert all(piece + "\n\n" in whole or piece.endswith(whole[-50:].strip()) for piece in pieces)


def test_long_paragraphs_are_cut_after_sentences():
    sentences = "This is a sentence of a paragraph. " * 400
    assert all(piece.endswith("paragraph.") and len(piece) <= 5000 for piece in chunks(sentences))
    assert "".join(chunks("x" * 12_000)) == "x" * 12_000
