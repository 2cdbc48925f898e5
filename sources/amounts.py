"""How much text a source holds, about, as far as that can be told in a second.

What is small has been read once when it was opened. Of larger folders the sizes of the files are known from their
listing, and a few files tell how much of a file is text. Of a dataset counts what its own description says.
"""

import time
from dataclasses import dataclass
from pathlib import PurePosixPath

import pyarrow.parquet as pq

from sources.readers.damage import is_damage
from sources.readers.files import FilesSource
from sources.readers.folder import File
from sources.readers.hub.reader import HubSource
from sources.readers.packed import PACKED
from sources.readers.python_packages import PythonPackagesSource
from sources.source import Source

SAMPLE_CHARACTERS = 50_000  # on which a tokenizer is measured
SECONDS = 1.0  # that a look into files may take
FILES_OF_A_KIND = 4  # that are looked into
BYTES_OF_A_FILE = 256_000  # of text, after which the next file is looked into
WITH_FIELDS = (".parquet", ".jsonl", ".ndjson", ".json")  # files of which only a part is text


@dataclass(frozen=True)
class Amount:
    """The bytes of a source's text in UTF-8, about, and some of the text; none where none was read."""

    num_bytes: float
    sample: str = ""


def estimate(source: Source) -> Amount | None:
    """Return about how much text an open source holds; None where that takes more than a look."""
    if isinstance(source, HubSource):
        return Amount(source.num_bytes) if source.num_bytes else None
    if isinstance(source, (FilesSource, PythonPackagesSource)):
        return _of_files(source)
    return None


def _of_files(source: FilesSource | PythonPackagesSource) -> Amount | None:
    kinds: dict[str, list[File]] = {}
    for file in source.files:
        kinds.setdefault(PurePosixPath(file.key).suffix.lower(), []).append(file)
    deadline, total, sample = time.monotonic() + SECONDS, 0.0, ""
    for suffix, files in kinds.items():
        share = 1.0
        if suffix in PACKED:
            return None
        if suffix in WITH_FIELDS or len(sample) < SAMPLE_CHARACTERS:
            found = _look(source, files[:FILES_OF_A_KIND], deadline)  # which are in no order of their own
            if found is None:
                return None
            measured, text = found
            sample += text
            share = measured if suffix in WITH_FIELDS or not text else 1.0
        total += share * sum(file.size for file in files)
    return Amount(total, sample[:SAMPLE_CHARACTERS]) if total else None


def _look(source: FilesSource | PythonPackagesSource, files: list[File], deadline: float) -> tuple[float, str] | None:
    """Return the share of some files' bytes that is text, and a part of the text; None where the time is over."""
    reader, looked_at, texts = source.silent_copy(), 0.0, []
    for file in files:
        read, share = 0, 1.0
        try:
            for text, position in reader.documents(file, 0):
                texts.append(text)
                read += len(text)
                if time.monotonic() > deadline:
                    return None
                if read >= BYTES_OF_A_FILE:
                    share = _share_before(file, position)
                    break
            looked_at += file.size * share
        except Exception as error:
            if not isinstance(error, OSError) and not is_damage(error):
                raise
    num_bytes = sum(len(text.encode("utf-8", "replace")) for text in texts)
    return (num_bytes / looked_at if looked_at else 0.0), "\n".join(texts)[:SAMPLE_CHARACTERS]


def _share_before(file: File, position: int) -> float:
    """Return the share of a file before a position: a number of rows in parquet, of bytes elsewhere."""
    if file.key.lower().endswith(".parquet"):
        return position / max(1, pq.read_metadata(file.path).num_rows)
    return min(1.0, position / max(1, file.size))
