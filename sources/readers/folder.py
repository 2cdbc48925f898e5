"""Sources made of files below folders: the files' fixed order, their shards and their cursors.

Files are ordered by a hash of their keys (a key is a file's path below the source's folder), so that neighbours in a
folder do not follow each other in training and the order does not depend on where the folder is. A cursor names a file
and a position in it. In a large folder, the hash also assigns files to shards, and files that appear or vanish between
two runs do not move the others. In a small one, files are dealt to the shards evenly, and a change may repeat or skip
some.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TypedDict

from sources.readers.base import Reader
from sources.readers.fields import nearest
from sources.source import SourceError, SourceGone

MAX_SHARDS = 64
FILES_PER_HASHED_SHARD = 16  # with this many, a hash spreads files evenly enough


class FolderPin(TypedDict):
    """What reopens the same files; `digest` is of their sizes and keys."""

    location: str
    num_files: int
    digest: str
    num_shards: int


class FolderCursor(TypedDict):
    """The key of a file, and the position in it right after a document."""

    file: str
    at: int


@dataclass(frozen=True)
class File:
    """One file: `key` is its path as the source names it, `size` is in bytes."""

    key: str
    path: Path
    size: int

    @cached_property
    def order(self) -> tuple[int, str]:
        return _order(self.key)


def _order(key: str) -> tuple[int, str]:
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest()), key


class FolderSource(Reader, ABC):
    """Documents of files; a subclass says how one file is read."""

    def __init__(self, name: str, location: str, files: list[File], pin: FolderPin | None):
        super().__init__(name)
        self.files = sorted(files, key=lambda file: file.order)
        self.num_shards = pin["num_shards"] if pin else max(1, min(len(files), MAX_SHARDS))
        digest = _hash("\n".join(f"{file.size} {file.key}" for file in self.files))
        self._pin = FolderPin(location=location, num_files=len(files), digest=digest, num_shards=self.num_shards)
        if pin and pin["digest"] != digest:
            self.announce_change(location, f" (it had {pin['num_files']}, now {len(files)})")

    def pin(self) -> FolderPin:
        return self._pin

    def fingerprint(self) -> dict[str, object]:
        """Changes with any file's name, size or time; a subclass adds what else its documents depend on."""
        files = files_fingerprint((file.key, file.path) for file in self.files)
        return {"files": files, "num_shards": self.num_shards}

    def read(self, shard: int, cursor: FolderCursor | None) -> Iterator[tuple[str, FolderCursor]]:
        after, start = (_order(cursor["file"]), cursor["at"]) if cursor else ((-1, ""), 0)
        if len(self.files) < FILES_PER_HASHED_SHARD * MAX_SHARDS:
            files = self.files[shard :: self.num_shards]
        else:
            files = [file for file in self.files if file.order[0] % self.num_shards == shard]
        for file in files:
            if file.order < after:
                continue
            try:
                for text, position in self.documents(file, start if file.order == after else 0):
                    yield text, {"file": file.key, "at": position}
            except OSError as error:
                self.skip(file.key, "files that cannot be opened", f"cannot be opened ({error.strerror or error})")

    @abstractmethod
    def documents(self, file: File, start: int) -> Iterator[tuple[str, int]]:
        """Yield (text, position right after it) of one file from position `start` (0: its beginning)."""


def files_fingerprint(files: Iterable[tuple[str, Path]]) -> str:
    """Return a hash over the keys, sizes and modification times of `files`, given as (key, path)."""
    return _hash("".join(f"{_size_and_time(path)} {key}\n" for key, path in files))


def _size_and_time(path: Path) -> str:
    try:
        now = path.stat()
    except OSError:  # the file vanished since it was listed
        return "-1 0"
    return f"{now.st_size} {now.st_mtime_ns}"


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def _siblings(path: Path) -> list[str]:
    """The names of what lies beside a path."""
    try:
        return [found.name for found in islice(path.parent.iterdir(), 1000)]
    except OSError:
        return []


def list_files(path: str, glob: str = "**/*") -> list[File]:
    """List a file, or the files below a folder that match `glob`, hidden files and folders left out.

    Raises SourceGone when `path` does not exist or cannot be opened, and SourceError when a file below it cannot.
    """
    root = Path(path).expanduser()
    try:
        if root.is_file():
            return [File(root.name, root, root.stat().st_size)]
        if root.exists() and not root.is_dir():
            raise SourceError(f'{path} is neither a file nor a folder; correct "path".')
        if not root.is_dir():
            hint = nearest(root.name, _siblings(root))
            raise SourceGone(f'{path} does not exist (looked in {Path.cwd()}){hint}; correct "path" or create it.')
        found = ((file, file.relative_to(root)) for file in root.glob(glob))
        return [
            File(key.as_posix(), file, file.stat().st_size)
            for file, key in found
            if not any(part.startswith(".") for part in key.parts) and file.is_file()
        ]
    except OSError as error:
        kind = SourceGone if str(error.filename) == str(root) else SourceError  # as a network's disk that is away
        raise kind(f"{error.filename or path} cannot be opened ({error.strerror or error})") from error
