"""What the `datasets` library lacks when it streams: a bound on the length of lines, and zstandard.

The library reads JSON lines and text a chunk at a time, each up to the end of its last line, and a line may have any
length. Its own `open` of a file gets a stream without the lines that are too long; other files are as they were.
"""

import io
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

import fsspec
import pyarrow as pa

from sources.readers.base import Reader
from sources.readers.packed import Unpacked
from sources.source import LONGEST_TEXT, SourceError

LARGEST_VALUE = 512 * 1024**2  # bytes or characters of a JSON file that is one value, which has to be read whole
PIECE = 1024**2
# The library's modules that read lines; whether a file that begins with "[" is one value there.
LINE_READERS = {"datasets.packaged_modules.json.json": True, "datasets.packaged_modules.text.text": False}


class _Current(threading.local):
    """The reader for whom the library reads in this thread, if any."""

    reader: Reader | None = None


_current = _Current()


def register_zstd() -> None:
    """Let fsspec, by which the library opens files, unpack zstandard; by itself it needs one more package for that."""
    if "zstd" not in fsspec.compression.compr:
        fsspec.compression.register_compression("zstd", _unpack_zstd, "zst")


@contextmanager
def bounded_lines(reader: Reader, builder: Any = None) -> Iterator[None]:
    """Let the library skip lines that are too long, and count them for `reader`, while this lasts."""
    if builder is not None:
        from datasets.streaming import extend_dataset_builder_for_streaming

        extend_dataset_builder_for_streaming(builder)
    for name, values in LINE_READERS.items():
        module = sys.modules.get(name)
        library_open = vars(module).get("open") if module else None  # there once the library has changed it
        if library_open is not None and not isinstance(library_open, _BoundedOpen):
            vars(module)["open"] = _BoundedOpen(library_open, values)
    before, _current.reader = _current.reader, reader
    try:
        yield
    finally:
        _current.reader = before


class _BoundedOpen:
    """The library's `open`, of which the streams are BoundedLines."""

    def __init__(self, library_open: Any, values: bool):
        self._open, self._values = library_open, values

    def __call__(self, file: Any, *arguments: Any, **options: Any) -> "BoundedLines":
        return BoundedLines(self._open(file, *arguments, **options), str(file).split("::")[-1], self._values)


class BoundedLines:
    """A stream of bytes or text without the lines over LONGEST_TEXT.

    `read` gives whole lines, one at least, of LONGEST_TEXT together at most. A file that is one JSON value is read
    as it is, up to LARGEST_VALUE.
    """

    def __init__(self, stream: Any, name: str, values: bool):
        self._stream, self._name = stream, name
        self._rest = stream.read(0)
        self._newline = b"\n" if isinstance(self._rest, bytes) else "\n"
        self._ended = False
        self._fill(1)
        self._is_value = values and self._rest[:1] in (b"[", "[")
        self._given = 0

    def __enter__(self) -> "BoundedLines":
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def __iter__(self) -> Iterator[Any]:
        while line := self.readline():
            yield line

    def readline(self) -> Any:
        return self.read(1)

    def read(self, size: int = -1) -> Any:
        if size < 0 or self._is_value:
            return self._read_value(size)
        size = min(size, LONGEST_TEXT)
        while True:
            self._fill(size)
            end = self._rest.rfind(self._newline, 0, size) + 1
            while not end and not self._ended and len(self._rest) <= LONGEST_TEXT:
                searched = len(self._rest)
                self._fill(searched + PIECE)
                end = self._rest.find(self._newline, searched) + 1
            end = end or self._rest.find(self._newline) + 1 or len(self._rest)
            if end <= LONGEST_TEXT or not self._rest:
                return self._take(end)
            self._skip_line()

    def _read_value(self, size: int) -> Any:
        self._fill(LARGEST_VALUE + 1 if size < 0 else size)
        self._given += min(len(self._rest), size) if size >= 0 else len(self._rest)
        if self._given > LARGEST_VALUE:
            raise SourceError(
                f"{self._name} is one JSON value of more than {LARGEST_VALUE // 1024**2} MiB; write it as JSON lines"
            )
        return self._take(len(self._rest) if size < 0 else size)

    def _take(self, size: int) -> Any:
        data, self._rest = self._rest[:size], self._rest[size:]
        return data

    def _fill(self, size: int) -> None:
        """Read until `size` are there, or the end is."""
        pieces = [self._rest]
        missing = size - len(self._rest)
        while missing > 0 and not self._ended:
            piece = self._stream.read(min(missing, 16 * PIECE))
            self._ended = not piece
            pieces.append(piece)
            missing -= len(piece)
        if len(pieces) > 1:
            self._rest = self._rest[:0].join(pieces)

    def _skip_line(self) -> None:
        if _current.reader is not None:
            _current.reader.skip_long(self._name, "line")
        while not (end := self._rest.find(self._newline) + 1) and not self._ended:
            self._rest = self._rest[:0]
            self._fill(PIECE)
        self._take(end or len(self._rest))


def _unpack_zstd(stream: BinaryIO, mode: str = "rb", **_: Any) -> BinaryIO:
    def begin() -> BinaryIO:
        stream.seek(0)
        return cast(BinaryIO, pa.CompressedInputStream(pa.PythonFile(stream), "zstd"))

    return cast(BinaryIO, io.BufferedReader(Unpacked(begin)))
