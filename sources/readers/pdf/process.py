"""The processes that read PDFs for `sandbox.py`: a server that forks one child a file.

The parent sends the server a file's path, the reader and the `Limits` over a socket, its standard input. The server
forks a child, takes its packed `Extract` from a pipe, and sends that back; it touches no file's content itself. A child
gives up what it could do harm with before it looks at the file: it keeps one pipe, can open nothing more (pypdfium2)
and write nothing, and has limits on its memory and its processor time. The server ends when its input does, and takes
the child with it.
"""

import contextlib
import ctypes
import logging
import mmap
import os
import re
import resource
import select
import signal
import sys
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

import pypdfium2
import pypdfium2.raw as pdfium

from sources.readers.pdf.layout import SOFT_HYPHEN, Line, clean, plain_lines, running_text
from sources.readers.pdf.legible import is_legible
from sources.readers.pdf.sandbox import Extract, Limits

if TYPE_CHECKING:
    import pypdf

LOST_IN_A_ROW = 100  # damaged pages; reading stops there, since a hostile page tree can invent pages
PARENT, PIPE = 0, 1  # descriptors: the server's socket, and the child's pipe to the server
PIECE = 1 << 20
_CUT = re.compile(r"[\ufffe\x02]")
_CUT_MARKS = re.compile(r"[\ufffe\x02]\s?")
_LINE = re.compile(r"[^\r\n\ufffe\x02]+")


class Illegible(Exception):
    """A page whose fonts give no text."""


def serve(parent: Connection) -> None:
    """Answer requests until there are no more."""
    "".encode("utf-16-le")  # loads what a child that can open no file needs
    with contextlib.suppress(EOFError):
        while True:
            parent.send_bytes(_read_in_child(*parent.recv()))


def _read_in_child(path: str, reader: str, limits: Limits) -> bytes:
    """Return the packed Extract that a child makes of the file, or the one that says why it made none."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            os.dup2(write_end, PIPE)
            os.close(PARENT)
            os.closerange(3, max(read_end, write_end) + 1)
            with open(PIPE, "wb") as pipe:
                pipe.write(_read(path, reader, limits).pack())
        os._exit(0)
    os.close(write_end)
    answer = bytearray()
    try:
        while True:
            if PARENT in select.select([read_end, PARENT], [], [])[0]:
                raise SystemExit  # nobody asks for a second file before the first is answered: the parent is gone
            if not (piece := os.read(read_end, PIECE)):
                break
            answer += piece
            if len(answer) > limits.characters * 4 + PIECE:
                return Extract("size").pack()
    finally:
        os.close(read_end)
        os.kill(child, signal.SIGKILL)
        _, status, usage = os.wait4(child, 0)
    if answer or not os.WIFSIGNALED(status):
        return bytes(answer)
    if os.WTERMSIG(status) == signal.SIGXCPU:
        return Extract("time").pack()
    hungry = usage.ru_maxrss * 1024 > limits.memory / 2  # pdfium aborts where memory ends
    return Extract("memory" if hungry or os.WTERMSIG(status) == signal.SIGKILL else "damaged").pack()


def _read(path: str, reader: str, limits: Limits) -> Extract:
    try:
        return _read_by_pdfium(path, limits) if reader == "pdfium" else _read_by_pypdf(path, limits)
    except MemoryError:
        return Extract("memory")
    except Exception:  # whatever a damaged file breaks in a reader
        return Extract("damaged")


def _read_by_pdfium(path: str, limits: Limits) -> Extract:
    with open(path, "rb") as stream:
        content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)  # ctypes takes no read-only buffer
    _give_up(limits, can_open_files=False)
    try:
        document = pypdfium2.PdfDocument((ctypes.c_char * len(content)).from_buffer(content))
    except pypdfium2.PdfiumError as error:
        return Extract("locked" if error.err_code == pdfium.FPDF_ERR_PASSWORD else "damaged")
    return _collect(len(document), lambda number: _lines_by_pdfium(document, number), limits)


def _lines_by_pdfium(document: pypdfium2.PdfDocument, number: int) -> list[Line]:
    text_page = document[number].get_textpage()
    text = text_page.get_text_range()
    _check_legible(_CUT_MARKS.sub("", text))
    if len(text) == text_page.count_chars():
        return list(_places(text_page, text))
    return plain_lines(_CUT.sub(f"{SOFT_HYPHEN}\n", text))  # a place in the text says nothing about the page


def _places(text_page: pypdfium2.PdfTextPage, text: str) -> Iterator[Line]:
    """Yield a page's lines with their places; pdfium writes U+FFFE for a hyphen and the line end after it."""
    first, last = pdfium.FS_RECTF(), pdfium.FS_RECTF()
    for match in _LINE.finditer(text):
        content = match[0].strip()
        tidy = clean(content)
        if tidy and not tidy.isspace():
            start = match.start() + match[0].index(content)
            pdfium.FPDFText_GetLooseCharBox(text_page.raw, start, first)
            pdfium.FPDFText_GetLooseCharBox(text_page.raw, start + len(content) - 1, last)
            tidy += SOFT_HYPHEN if _CUT.match(text, match.end()) else ""
            left, right = min(first.left, last.left), max(first.right, last.right)  # either may be the first to read
            yield Line(tidy, left, right, first.bottom, first.top - first.bottom)


def _read_by_pypdf(path: str, limits: Limits) -> Extract:
    import pypdf  # takes longer to load than most files take to read, and few files need it
    from pypdf.errors import DependencyError, FileNotDecryptedError

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it warns about every oddity it repairs
    _give_up(limits, can_open_files=True)  # it loads parts of itself when a file needs them
    try:
        with open(path, "rb") as stream:
            pages = pypdf.PdfReader(stream).pages
            return _collect(len(pages), lambda number: _lines_by_pypdf(pages[number]), limits)
    except (FileNotDecryptedError, DependencyError):
        return Extract("locked")


def _lines_by_pypdf(page: "pypdf.PageObject") -> list[Line]:
    text = page.extract_text()
    _check_legible(text)
    return plain_lines(text)


def _check_legible(text: str) -> None:
    """Raise Illegible for a page of which the fonts give no text."""
    if not is_legible(text):
        raise Illegible


def _collect(num_pages: int, lines_of: Callable[[int], list[Line]], limits: Limits) -> Extract:
    """Read the pages within the limits, damaged and illegible ones left out, and make one text of them."""
    pages: list[list[Line] | None] = []  # None: damaged
    characters = num_illegible = 0
    for number in range(min(num_pages, limits.pages)):
        try:
            page = lines_of(number)
            characters += sum(len(line.text) for line in page)
        except MemoryError:
            raise
        except Illegible:
            page = []
            num_illegible += 1
        except Exception:  # as in _read, but the other pages may be whole
            page = None
        pages.append(page)
        if pages[-LOST_IN_A_ROW:] == [None] * LOST_IN_A_ROW or characters > limits.characters:
            break
    num_lost = pages.count(None)
    if num_lost == len(pages):
        return Extract("damaged")
    text = running_text([page or [] for page in pages])
    return Extract("text", text[: limits.characters], num_pages, len(pages), num_lost, num_illegible)


def _give_up(limits: Limits, can_open_files: bool) -> None:
    """Drop, for good, the rights that reading a file does not need."""
    wanted = {resource.RLIMIT_CORE: (0, 0), resource.RLIMIT_FSIZE: (0, 0)}
    wanted[resource.RLIMIT_CPU] = limits.cpu_seconds, limits.cpu_seconds + 1  # the first limit names the cause
    if sys.platform == "linux":  # macOS has this limit in name only
        with open("/proc/self/statm") as stream:
            in_use = int(stream.read().split()[0]) * resource.getpagesize()
        wanted[resource.RLIMIT_AS] = in_use + limits.memory, in_use + limits.memory
    if not can_open_files:
        wanted[resource.RLIMIT_NOFILE] = 0, 0
    for kind, (soft, hard) in wanted.items():
        highest = resource.getrlimit(kind)[1]
        if highest != resource.RLIM_INFINITY:
            soft, hard = min(soft, highest), min(hard, highest)
        resource.setrlimit(kind, (soft, hard))


if __name__ == "__main__":
    serve(Connection(PARENT))
