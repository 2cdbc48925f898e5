"""Text, Markdown, source code, JSON lines and parquet files below a folder; `.gz` of the first four too.

A text file is one document; above a megabyte it is read in pieces that end at paragraphs or lines. A position inside a
file is a byte offset (of what is unpacked, for `.gz`), or a number of rows (parquet), so resuming late in a file reads
none of its beginning unless it is packed. Binary files are skipped and counted; damaged ones and JSON lines over 32 MiB
are named as well.
"""

import gzip
import json
import zlib
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import PurePosixPath

import pyarrow.parquet as pq
from pyarrow import ArrowException

from sources.config import FilesSpec
from sources.readers.fields import compile_template
from sources.readers.folder import File, FolderPin, FolderSource, list_files
from sources.readers.parquet import columns_of, read_columns
from sources.source import SourceError, SourceGone, first_line

LARGE = 1_000_000  # bytes; a text file above this is read in pieces
PIECE = 64 * 1024  # bytes
LONGEST_LINE = 32 * 1024**2  # bytes of a JSON line; a file can be one line of gigabytes, packed into a few megabytes


class FilesSource(FolderSource):
    """Documents of all kinds of files, chosen by their extension."""

    def __init__(self, spec: FilesSpec, pin: FolderPin | None = None):
        listed = list_files(spec.path, spec.glob)
        files = [file for file in listed if file.size > 0]
        if not files:
            kind = SourceError if listed else SourceGone
            raise kind(f'{spec.path} holds no file that matches "{spec.glob}"; correct "path" or "glob".')
        super().__init__(spec.source_name, spec.path, files, pin)
        self.text_field = spec.text_field
        self.template = compile_template(None, [spec.text_field])

    def fingerprint(self) -> dict[str, object]:
        return {**super().fingerprint(), "text_field": self.text_field}

    def documents(self, file: File, start: int) -> Iterator[tuple[str, int]]:
        packed = file.key.lower().endswith(".gz")
        kind = PurePosixPath(file.key.lower().removesuffix(".gz")).suffix
        try:
            if kind == ".parquet" and not packed:
                yield from self._parquet_rows(file, start)
                return
            with gzip.open(file.path) if packed else file.path.open("rb") as stream:
                binary = b"\0" in stream.read(8192)
                stream.seek(0)
                if binary:
                    self.skip(file.key, "binary files")
                elif kind in (".jsonl", ".ndjson") or (kind == ".json" and _is_json_lines(stream)):
                    yield from self._json_rows(file, stream, start)
                else:
                    yield from self._pieces(file, stream, start)
        # ValueError: a text in a parquet file that is not UTF-8
        except (EOFError, gzip.BadGzipFile, zlib.error, ArrowException, ValueError, OverflowError) as error:
            self.skip(file.key, "damaged files", f"is damaged ({first_line(error)}); what follows is skipped")

    def _pieces(self, file: File, stream: BufferedIOBase, start: int) -> Iterator[tuple[str, int]]:
        stream.seek(start)
        data = stream.read(LARGE + 1)
        if start == 0 and 0 < len(data) <= LARGE:
            yield self._decode(file, data), len(data)
            return
        while data:
            if len(data) <= PIECE:
                data += stream.read(LARGE)
            end = _piece_end(data)
            start += end
            yield self._decode(file, data[:end]), start
            data = data[end:]

    def _decode(self, file: File, data: bytes) -> str:
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError:
            self.skip(file.key, "files with bytes that are not UTF-8 (left out)")
            return data.decode("utf-8", errors="ignore")

    def _json_rows(self, file: File, stream: BufferedIOBase, start: int) -> Iterator[tuple[str, int]]:
        stream.seek(start)
        columns, template = None, None
        while line := stream.readline(LONGEST_LINE + 1):
            if len(line) > LONGEST_LINE:
                self.counts["lines that are too long"] += 1
                self.announce(file.key, f"holds a line of more than {LONGEST_LINE // 1024**2} MiB, which is skipped")
                while line and not line.endswith(b"\n"):
                    line = stream.readline(LARGE)
                continue
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):  # RecursionError: nested too deeply
                self.counts["lines that are not JSON"] += 1
                continue
            if isinstance(row, dict) and list(row) != columns:
                columns = list(row)
                template = self.bind(self.template, dict.fromkeys(columns), file.key)
            text = template.render(row) if isinstance(row, dict) and template else None
            if text is None:
                self.counts["rows without text"] += 1
            else:
                yield text, stream.tell()

    def _parquet_rows(self, file: File, start: int) -> Iterator[tuple[str, int]]:
        with pq.ParquetFile(file.path) as parquet:
            if template := self.bind(self.template, columns_of(parquet.schema_arrow), file.key):
                yield from self.texts(template, read_columns(parquet, template.columns, start))
            else:
                self.skip(file.key, "files without the text field")


def _is_json_lines(stream: BufferedIOBase) -> bool:
    """Return whether the first line is an object by itself, not the start of a longer one; rewinds the stream."""
    first = stream.readline(LONGEST_LINE + 1)
    stream.seek(0)
    if len(first) > LONGEST_LINE:
        return first.lstrip().startswith(b"{")
    try:
        return isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _piece_end(data: bytes) -> int:
    """Return where to cut `data`: after the last paragraph (else line, else character) of its first PIECE bytes."""
    if len(data) <= PIECE:
        return len(data)
    for mark in (b"\n\n", b"\n"):
        end = data.rfind(mark, PIECE // 2, PIECE)
        if end >= 0:
            return end + len(mark)
    end = PIECE
    while end > PIECE - 4 and data[end] & 0xC0 == 0x80:  # a continuation byte belongs to the character before
        end -= 1
    return end
