"""PDF files, whole ones and bad ones, all real: written here byte by byte or by pypdf."""

import json

import pypdf
import pytest

from sources.config import PdfSpec
from sources.pdf import PdfSource, chunks
from sources.source import SourceError


def pdf_bytes(pages: list[str]) -> bytes:
    """Write a PDF by hand: one Helvetica text object a page, one line of text after the other."""
    count = len(pages)
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Count {count} /Kids [{' '.join(f'{4 + 2 * n} 0 R' for n in range(count))}] >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for number, page in enumerate(pages):
        escaped = (line.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)") for line in page.splitlines())
        content = "BT /F1 9 Tf 11 TL 40 800 Td " + " ".join(f"({line}) Tj T*" for line in escaped) + " ET"
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 842] /Contents {5 + 2 * number} 0 R "
            "/Resources << /Font << /F1 3 0 R >> >> >>"
        )
        objects.append(f"<< /Length {len(content)} >>\nstream\n{content}\nendstream")
    data, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(data))
        data += f"{number} 0 obj\n{body}\nendobj\n".encode("latin-1")
    table = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
    size = len(objects) + 1
    trailer = f"xref\n0 {size}\n0000000000 65535 f \n{table}trailer\n<< /Size {size} /Root 1 0 R >>\n"
    return data + f"{trailer}startxref\n{len(data)}\n%%EOF\n".encode()


@pytest.fixture
def page(texts) -> str:
    text = next(text for text in texts if len(text.splitlines()) > 70).encode("ascii", "ignore").decode()
    return "\n".join(text.splitlines()[:70])


def open_pdf(path) -> PdfSource:
    return PdfSource(PdfSpec(type="pdf", path=str(path)))


def read_all(source) -> list[tuple[str, dict]]:
    return [document for shard in range(source.num_shards) for document in source.read(shard, None)]


def words(text: str) -> list[str]:
    return text.split()


def test_text_in_chunks_with_exact_cursors(tmp_path, page):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "Book.PDF").write_bytes(pdf_bytes([page] * 8))
    source = open_pdf(tmp_path)
    documents = read_all(source)
    assert words(" ".join(text for text, _ in documents)) == words("\n".join([page] * 8))
    assert len(documents) > 3 and all(len(text) <= 5000 for text, _ in documents)
    assert all(len(text) >= 2900 for text, _ in documents[:-1])
    for number, (_, cursor) in enumerate(documents):
        assert list(source.read(0, json.loads(json.dumps(cursor)))) == documents[number + 1 :]
    single = read_all(open_pdf(tmp_path / "deep" / "er" / "Book.PDF"))
    assert [text for text, _ in single] == [text for text, _ in documents]


def test_bad_files_are_skipped_counted_and_named(tmp_path, page):
    good = pdf_bytes([page])
    (tmp_path / "good.pdf").write_bytes(good)
    (tmp_path / "page.pdf").write_bytes(b"<!DOCTYPE html><html><body>Please log in</body></html>")
    (tmp_path / "cut.pdf").write_bytes(good[:300])
    (tmp_path / "notes.txt").write_text("not looked at")
    blank = pypdf.PdfWriter()
    blank.add_blank_page(600, 800)
    blank.write(tmp_path / "scan.pdf")
    locked = pypdf.PdfWriter(clone_from=str(tmp_path / "good.pdf"))
    locked.encrypt("secret")
    locked.write(tmp_path / "locked.pdf")
    source = open_pdf(tmp_path)
    (document,) = read_all(source)
    assert words(document[0]) == words(page)
    assert source.counts == {
        "files that are not PDF": 1,
        "PDFs without text": 1,
        "encrypted PDFs": 1,
        "damaged PDFs": 1,
    }
    notices = "\n".join(source.notices)
    for sentence in ("page.pdf: it is not a PDF", "scan.pdf: it holds no text", "OCR", "locked.pdf: it is encrypted"):
        assert sentence in notices
    read_all(source)
    assert sum(source.counts.values()) == 4, "counted once per file"


def test_a_broken_cross_reference_is_no_obstacle(tmp_path, page):
    data = pdf_bytes([page])
    (tmp_path / "a.pdf").write_bytes(data[: data.rindex(b"startxref")] + b"startxref\n7\n%%EOF\n")
    assert words(read_all(open_pdf(tmp_path))[0][0]) == words(page)


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
