"""The text of PDF files: a single file, or every one below a folder.

Each file is read in a process of its own under limits (`sandbox.py`), and given in chunks of a few thousand characters
that end with paragraphs. What cannot be read (encrypted, damaged, pictures of text, too large, not a PDF at all) is
skipped, counted and announced by name.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from sources.config import PdfSpec
from sources.readers.folder import File, FolderPin, FolderSource, list_files
from sources.readers.pdf.sandbox import Extract, Limits, Sandbox
from sources.source import SourceError, SourceGone
from storage import open_regular

SHORTEST, LONGEST = 3000, 5000  # characters of a chunk
SCAN_CHARACTERS = 16  # a page with fewer on average is a picture
LIMITS = Limits()
READING = 2  # raised when the same files give another text, so that what is cached of them is made again
# What a file without text is counted under, and its notice, by the status of its Extract.
SKIPPED = {
    "locked": ("encrypted PDFs", "it is encrypted; save a copy without a password"),
    "damaged": ("damaged PDFs", "it is damaged and cannot be read"),
    "memory": ("PDFs that need too much memory", "reading it takes more memory than a PDF may have; split it"),
    "time": ("PDFs that take too long", "reading it takes longer than a PDF may; split it or save a plain copy"),
    "size": ("PDFs that are too large", "it is larger than a PDF may be; split it"),
    "foreign": ("files that are not PDF", "it is not a PDF, whatever its name says"),
    "scanned": ("PDFs without text", "it holds no text, only pictures; it needs OCR"),
    "illegible": ("PDFs with fonts that give no text", "its fonts give symbols in place of its text; it needs OCR"),
}


class PdfSource(FolderSource):
    """PDF files as documents. Raises SourceError when none of them can be read."""

    def __init__(self, spec: PdfSpec, pin: FolderPin | None = None):
        files = [file for file in list_files(spec.path) if file.path.suffix.lower() == ".pdf"]
        if not files:
            raise SourceGone(f'{spec.path} holds no PDF file; correct "path" or put PDF files there.')
        super().__init__(spec.source_name, spec.path, files, pin)
        self.sandbox = Sandbox(LIMITS)
        # Stops at the first that can be read.
        if not any(next(self.read(shard, None), None) for shard in range(self.num_shards)):
            raise SourceError(f"no PDF in {spec.path} can be read: {'; '.join(self.notices)}.")

    def documents(self, file: File, start: int) -> Iterator[tuple[str, int]]:
        """Yield (chunk, number of chunks up to its end) from chunk `start`."""
        extract = extract_text(file.path, self.sandbox)
        if extract.status != "text":
            self.skip(file.key, *SKIPPED[extract.status])
            return
        if extract.lost_pages:
            self.announce(file.key, f"{extract.lost_pages} of its {extract.num_pages} pages are damaged and left out")
        if extract.illegible_pages:
            some = f"{extract.illegible_pages} of its {extract.num_pages} pages have"
            self.announce(file.key, f"{some} fonts that give symbols in place of text and are left out; they need OCR")
        if extract.read_pages < extract.num_pages:
            self.announce(file.key, f"only the first {extract.read_pages} of its {extract.num_pages} pages are read")
        for number, chunk in enumerate(chunks(extract.text), start=1):
            if number > start:
                yield chunk, number

    def fingerprint(self) -> dict[str, object]:
        """Return a digest of every file's name and bytes."""
        digest = hashlib.sha256()
        for file in self.files:
            try:
                with open_regular(file.path) as stream:
                    content = hashlib.file_digest(stream, "sha256").hexdigest()
            except OSError:  # skipped when it is read, too
                content = "-"
            digest.update(f"{content} {file.key}\n".encode("utf-8", "surrogateescape"))
        return {"type": "pdf", "sha256": digest.hexdigest(), "num_shards": self.num_shards, "reading": READING}


def extract_text(path: Path, sandbox: Sandbox) -> Extract:
    """Read a PDF in the sandbox; files that are no PDF or hold pictures only have a status of their own.

    Raises OSError for a file that cannot be opened.
    """
    with open_regular(path) as stream:
        if b"%PDF-" not in stream.read(1024):
            return Extract("foreign")
    extract = sandbox.read(path)
    pages = extract.read_pages - extract.lost_pages - extract.illegible_pages
    if extract.status == "text" and sum(map(len, extract.text.split())) < SCAN_CHARACTERS * max(1, pages):
        return Extract("illegible" if extract.illegible_pages else "scanned")
    return extract


def chunks(text: str) -> Iterator[str]:
    """Cut a text into chunks of SHORTEST to LONGEST characters, at a paragraph's, sentence's, line's or word's end."""
    start = 0
    while len(text) - start > LONGEST:
        first, last = start + SHORTEST, start + LONGEST
        cuts = (text.rfind(mark, first, last) + len(mark) for mark in ("\n\n", ".\n", ". ", "\n", " "))
        cut = next((cut for cut in cuts if cut > first), last)
        yield text[start:cut].strip()
        start = cut
    if text[start:].strip():
        yield text[start:].strip()
