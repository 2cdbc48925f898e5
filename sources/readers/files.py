"""Text, Markdown, source code, JSON lines and parquet files below a folder; the first four packed, too (`packed.py`).

A text file is one document; above a megabyte it is read in pieces that end at paragraphs or lines. A position inside a
file is a byte offset (of what is unpacked), or a number of rows (parquet), so resuming late in a file reads none of its
beginning unless it is packed. Binary files are skipped and counted; damaged ones, those without rows, and texts over
32 MiB are named as well.
"""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import BinaryIO

from sources.config import FilesSpec
from sources.readers.damage import is_damage
from sources.readers.fields import compile_template
from sources.readers.folder import File, FolderPin, FolderSource, list_files
from sources.readers.packed import PACKED, open_file
from sources.readers.parquet import ParquetFile, columns_of, read_columns
from sources.source import LONGEST_TEXT, SourceError, SourceGone, first_line
from storage import open_regular

LARGE = 1_000_000  # bytes; a text file above this is read in pieces
PIECE = 64 * 1024  # bytes
ARCHIVES = (".xz", ".7z", ".zip", ".tar", ".tgz", ".rar", ".lz4", ".br")  # which somebody may take for read


class FilesSource(FolderSource):
    """Documents of all kinds of files, chosen by their extension."""

    def __init__(self, spec: FilesSpec, pin: FolderPin | None = None):
        found = list_files(spec.path, spec.glob)
        files = [file for file in found if file.size > 0]
        if not files:
            empty = f'{spec.path} holds no file but empty ones; put text there or correct "path".'
            others = "" if found else _kinds(list_files(spec.path))
            none = f'{spec.path} holds no file that matches "{spec.glob}"{others}; correct "path" or "glob".'
            raise SourceError(empty) if found else SourceGone(none)
        super().__init__(spec.source_name, spec.path, files, pin)
        self.join_rows = spec.join_rows
        self.text_field = spec.text_field
        self.template = compile_template(None, [spec.text_field])

    def fingerprint(self) -> dict[str, object]:
        joined = {"join_rows": self.join_rows} if self.join_rows else {}
        newly_read = sorted({_suffix(file.key) for file in self.files} & (set(PACKED) - {".gz"}))
        packed = {"packed": newly_read} if newly_read else {}
        return {**super().fingerprint(), "text_field": self.text_field, **joined, **packed}

    def documents(self, file: File, start: int) -> Iterator[tuple[str, int]]:
        packing = _suffix(file.key) if _suffix(file.key) in PACKED else ""
        kind = _suffix(file.key.lower().removesuffix(packing))
        try:
            if kind == ".parquet" and not packing:
                yield from self.joined(self._parquet_rows(file, start), file.key)
                return
            with open_file(file.path) as stream:
                binary = b"\0" in stream.read(8192)
                stream.seek(0)
                if binary and kind in ARCHIVES:
                    self.skip(file.key, "packed files", "is packed in a way that is not read; unpack it or use gzip")
                elif binary:
                    self.skip(file.key, "binary files")
                elif kind in (".jsonl", ".ndjson") or (kind == ".json" and _is_json_lines(stream)):
                    yield from self.joined(self._json_rows(file, stream, start), file.key)
                else:
                    yield from self._pieces(file, stream, start)
        except Exception as error:
            if not is_damage(error):
                raise
            self.skip(file.key, "damaged files", f"is damaged ({first_line(error)}); what follows is skipped")

    def _pieces(self, file: File, stream: BinaryIO, start: int) -> Iterator[tuple[str, int]]:
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

    def _json_rows(self, file: File, stream: BinaryIO, start: int) -> Iterator[tuple[str | None, int]]:
        """Yield (text, offset behind it) of all rows, None where a row has none."""
        stream.seek(start)
        columns, template, is_empty = None, None, start == 0
        while line := stream.readline(LONGEST_TEXT + 1):
            text = None
            if len(line) > LONGEST_TEXT:
                self.skip_long(file.key, "line")
                while line and not line.endswith(b"\n"):
                    line = stream.readline(LARGE)
            elif not line.strip():
                continue
            else:
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):  # RecursionError: nested too deeply
                    self.counts["lines that are not JSON"] += 1
                else:
                    if isinstance(row, dict) and list(row) != columns:
                        columns = list(row)
                        template = self.bind(self.template, dict.fromkeys(columns), file.key)
                    text = template.render(row) if isinstance(row, dict) and template else None
                    if text is None:
                        self.counts["rows without text"] += 1
            is_empty = False
            yield text, stream.tell()
        if is_empty:
            self.skip(file.key, "files without rows", "holds no rows and is skipped")

    def _parquet_rows(self, file: File, start: int) -> Iterator[tuple[str | None, int]]:
        with open_regular(file.path) as stream, ParquetFile(stream) as parquet:
            if not parquet.metadata.num_rows:
                self.skip(file.key, "files without rows", "holds no rows and is skipped")
            elif template := self.bind(self.template, columns_of(parquet.schema_arrow), file.key):
                yield from self.rows(template, read_columns(parquet, template.columns, start), file.key)
            else:
                self.skip(file.key, "files without the text field")


def _kinds(files: list[File]) -> str:
    """The kinds of files that are there, in words; the most frequent three."""
    kinds = Counter(_suffix(file.key) or "no extension" for file in files).most_common(3)
    return f" (there are {', '.join(f'{number:,} of {kind}' for kind, number in kinds)})" if kinds else " (it is empty)"


def _suffix(key: str) -> str:
    return PurePosixPath(key.lower()).suffix


def _is_json_lines(stream: BinaryIO) -> bool:
    """Return whether the first line is an object by itself, not the start of a longer one; rewinds the stream."""
    first = stream.readline(LONGEST_TEXT + 1)
    stream.seek(0)
    if len(first) > LONGEST_TEXT:
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
