"""The text of PDF files: a single file, or every one below a folder.

pypdfium2 reads a file and pypdf those that it cannot; the text is given in chunks of a few thousand characters that end
with paragraphs. A file's text is extracted when it is read. What cannot be read (encrypted, damaged, pictures of text,
not a PDF at all) is skipped, counted and announced by name.
"""

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pypdf
import pypdfium2
from pypdf.errors import DependencyError, FileNotDecryptedError, PdfReadError

from sources.config import PdfSpec
from sources.folder import File, FolderSource, list_files
from sources.source import JSON, SourceError

SHORTEST, LONGEST = 3000, 5000  # characters of a chunk
SCAN_CHARACTERS = 16  # a page with fewer on average is a picture
ENCRYPTED = "it is encrypted; save a copy without a password"


class Unreadable(Exception):
    """A file gives no text: `reason` is what it is counted under, the message is for its notice."""

    def __init__(self, reason: str, message: str):
        self.reason = reason
        super().__init__(message)


class PdfSource(FolderSource):
    """See the module's docstring. Raises SourceError when there is nothing to read."""

    def __init__(self, spec: PdfSpec, pin: dict[str, JSON] | None = None):
        files = [file for file in list_files(spec.path) if file.path.suffix.lower() == ".pdf"]
        if not files:
            raise SourceError(f'{spec.path} holds no PDF file; correct "path" or put PDF files there.')
        super().__init__(spec.source_name, spec.path, files, pin)
        if not any(next(self.documents(file, 0), None) for file in self.files):  # stops at the first that can be read
            raise SourceError(f"no PDF in {spec.path} can be read: {'; '.join(self.notices)}.")

    def documents(self, file: File, start: int) -> Iterator[tuple[str, int]]:
        try:
            text = extract_text(file.path)
        except Unreadable as error:
            self.skip(file, error.reason, str(error))
            return
        for number, chunk in enumerate(chunks(text), start=1):
            if number > start:
                yield chunk, number


def extract_text(path: Path) -> str:
    """Return a PDF's text, pages separated by blank lines; raises Unreadable."""
    with path.open("rb") as stream:
        if b"%PDF-" not in stream.read(1024):
            raise Unreadable("files that are not PDF", "it is not a PDF, whatever its name says")
    try:
        pages = _pages_by_pdfium(path)
    except pypdfium2.PdfiumError as error:
        if "password" in str(error).lower():
            raise Unreadable("encrypted PDFs", ENCRYPTED) from error
        pages = _pages_by_pypdf(path)
    text = "\n\n".join(_tidy(page) for page in pages).strip()
    if sum(not character.isspace() for character in text) < SCAN_CHARACTERS * len(pages):
        raise Unreadable("PDFs without text", "it holds no text, only pictures; it needs OCR")
    return text


def _pages_by_pdfium(path: Path) -> list[str]:
    with pypdfium2.PdfDocument(path) as document:
        pages = []
        for number in range(len(document)):
            page = document[number]
            text_page = page.get_textpage()
            pages.append(text_page.get_text_bounded())
            text_page.close()
            page.close()
        return pages


def _pages_by_pypdf(path: Path) -> list[str]:
    logging.getLogger("pypdf").setLevel(logging.ERROR)  # it warns about every oddity it repairs
    try:
        return [page.extract_text() for page in pypdf.PdfReader(path).pages]
    except (FileNotDecryptedError, DependencyError) as error:
        raise Unreadable("encrypted PDFs", ENCRYPTED) from error
    except (PdfReadError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        # A damaged file can break pypdf almost anywhere.
        raise Unreadable("damaged PDFs", "it is damaged and cannot be read") from error


def _tidy(page: str) -> str:
    """Undo what a page's layout did to its text: line ends, hyphens at line ends, characters that stand for nothing."""
    page = page.replace("\r\n", "\n").replace("\r", "\n")
    page = re.sub("[\ufffe\u00ad\u0002]\n?", "", page)  # hyphens that only the line break needed
    page = re.sub("[\0\ufffd\uffff]", "", page)
    return re.sub(r"[ \t]+\n", "\n", page)


def chunks(text: str) -> Iterator[str]:
    """Cut a text into chunks of SHORTEST to LONGEST characters, at a paragraph's, sentence's, line's or word's end."""
    while len(text) > LONGEST:
        cuts = (text.rfind(mark, SHORTEST, LONGEST) + len(mark) for mark in ("\n\n", ".\n", ". ", "\n", " "))
        cut = next((cut for cut in cuts if cut > SHORTEST), LONGEST)
        yield text[:cut].strip()
        text = text[cut:].lstrip()
    if text.strip():
        yield text.strip()
