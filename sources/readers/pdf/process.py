"""The processes that read PDFs for `sandbox.py`: a server that forks one child a file.

The parent writes a request to the server's standard input: a line of JSON with the file's path, the reader and the
`Limits`. The server forks a child, takes its answer from a pipe, and writes it to standard output: eight bytes of
length and a packed `Extract`. The server itself touches no file's content. A child gives up what it could do harm with
before it looks at the file: it keeps one pipe, can open nothing more (pypdfium2) and write nothing, and has limits on
its memory and its processor time. The server ends when its input does, and takes the child with it.
"""

import contextlib
import ctypes
import json
import logging
import mmap
import os
import re
import resource
import select
import signal
import sys
from collections.abc import Callable, Iterator
from typing import BinaryIO

import pypdfium2
import pypdfium2.raw as pdfium

from sources.readers.pdf.layout import SOFT_HYPHEN, Line, clean, plain_lines, running_text
from sources.readers.pdf.sandbox import Extract, Limits

LOST_IN_A_ROW = 100  # pages; a page tree that invents its pages is left here
PIPE = 1  # the descriptor that server and child write their answers to
PIECE = 1 << 20
_CUT = re.compile(r"[\ufffe\x02]")
_LINE = re.compile(r"[^\r\n\ufffe\x02]+")


def serve(requests: BinaryIO) -> None:
    """Answer requests until there are no more."""
    "".encode("utf-16-le")  # loads what a child that can open no file needs
    for line in iter(requests.readline, b""):
        request = json.loads(line)
        answer = _read_in_child(request["path"], request["reader"], Limits(**request["limits"]))
        _write(len(answer).to_bytes(8) + answer)


def _read_in_child(path: str, reader: str, limits: Limits) -> bytes:
    """Return the packed Extract that a child makes of the file, or the one that says why it made none."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            os.dup2(write_end, PIPE)
            os.close(0)
            os.closerange(3, max(read_end, write_end) + 1)
            _write(_read(path, reader, limits).pack())
        os._exit(0)
    os.close(write_end)
    answer = bytearray()
    try:
        while piece := _piece_from_child(read_end):
            answer += piece
            if len(answer) > limits.characters * 4 + PIECE:
                return Extract("size").pack()
    finally:
        os.close(read_end)
        os.kill(child, signal.SIGKILL)
        _, status, usage = os.wait4(child, 0)
    if os.WIFSIGNALED(status) and not answer:
        hungry = usage.ru_maxrss * 1024 > limits.memory / 2
        return Extract(_cause_of_death(os.WTERMSIG(status), hungry)).pack()
    return bytes(answer)


def _piece_from_child(pipe: int) -> bytes:
    if 0 in select.select([pipe, 0], [], [])[0]:
        raise SystemExit  # nobody asks for a second file before the first is answered: the parent is gone
    return os.read(pipe, PIECE)


def _cause_of_death(number: int, hungry: bool) -> str:
    """Return what the signal that ended a child says about its file: pdfium aborts where memory ends."""
    if number == signal.SIGXCPU:
        return "time"
    return "memory" if hungry or number == signal.SIGKILL else "damaged"


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
    page = document[number]
    text_page = page.get_textpage()
    text = text_page.get_text_range()
    in_step = len(text) == text_page.count_chars()  # else a place in the text says nothing about the page
    lines = list(_places(text_page, text)) if in_step else plain_lines(_CUT.sub(f"{SOFT_HYPHEN}\n", text))
    text_page.close()
    page.close()
    return lines


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
            return _collect(len(pages), lambda number: plain_lines(pages[number].extract_text()), limits)
    except (FileNotDecryptedError, DependencyError):
        return Extract("locked")


def _collect(num_pages: int, lines_of: Callable[[int], list[Line]], limits: Limits) -> Extract:
    """Read the pages within the limits, damaged ones left out, and make one text of them."""
    pages: list[list[Line] | None] = []  # None: damaged
    characters = 0
    for number in range(min(num_pages, limits.pages)):
        try:
            page = lines_of(number)
            characters += sum(len(line.text) for line in page)
        except MemoryError:
            raise
        except Exception:  # as in _read, but the other pages may be whole
            page = None
        pages.append(page)
        if pages[-LOST_IN_A_ROW:] == [None] * LOST_IN_A_ROW or characters > limits.characters:
            break
    num_lost = pages.count(None)
    if num_lost == len(pages):
        return Extract("damaged")
    text = running_text([page or [] for page in pages])
    return Extract("text", text[: limits.characters], num_pages, len(pages), num_lost)


def _give_up(limits: Limits, can_open_files: bool) -> None:
    """Give up for good what reading a file does not need."""
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, 0)
    _limit(resource.RLIMIT_CPU, limits.cpu_seconds, limits.cpu_seconds + 1)  # the first limit names the cause
    if sys.platform == "linux":  # macOS has this limit in name only
        with open("/proc/self/statm") as stream:
            pages_in_use = int(stream.read().split()[0])
        _limit(resource.RLIMIT_AS, pages_in_use * resource.getpagesize() + limits.memory)
    if not can_open_files:
        _limit(resource.RLIMIT_NOFILE, 0)


def _limit(kind: int, soft: int, hard: int | None = None) -> None:
    hard = soft if hard is None else hard
    highest = resource.getrlimit(kind)[1]
    if highest != resource.RLIM_INFINITY:
        soft, hard = min(soft, highest), min(hard, highest)
    resource.setrlimit(kind, (soft, hard))


def _write(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(PIPE, view) :]


if __name__ == "__main__":
    with open(0, "rb", buffering=0) as standard_input:
        serve(standard_input)
