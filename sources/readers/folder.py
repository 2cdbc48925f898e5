"""Sources made of files below folders: the files' fixed order, their shards and their cursors.

The order of files is pseudo-random but fixed, by a hash of each file's key (its path below the source's folder): then
neighbours in a folder do not follow each other in training, and nothing depends on where the folder lies. A cursor
names a file and a position in it: files that appear or vanish between two runs move nothing else in large folders (in
small ones files are dealt to the shards evenly instead, and a change may repeat or skip some).
"""

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from sources.source import JSON, SourceError

MAX_SHARDS = 64
FILES_PER_HASHED_SHARD = 16  # from here on a hash spreads files evenly enough


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


class FolderSource(ABC):
    """Documents of files; a subclass says how one file is read."""

    def __init__(self, name: str, location: str, files: list[File], pin: dict[str, JSON] | None):
        self.name = name
        self.location = location
        self.notices: list[str] = []
        self.counts: Counter[str] = Counter()
        self.files = sorted(files, key=lambda file: file.order)
        self.num_shards = pin["num_shards"] if pin else max(1, min(len(files), MAX_SHARDS))
        self._announced: set[tuple[str, str]] = set()
        self._digest = hashlib.blake2b(
            "\n".join(f"{file.size} {file.key}" for file in self.files).encode("utf-8", "surrogateescape"),
            digest_size=16,
        ).hexdigest()
        if pin and pin["digest"] != self._digest:
            self.notices.append(
                f"the files in {location} have changed since this run began (it had {pin['num_files']}, "
                f"now {len(files)}); reading goes on from the same place as far as possible"
            )

    def pin(self) -> dict[str, JSON]:
        return {
            "location": self.location,
            "num_files": len(self.files),
            "digest": self._digest,
            "num_shards": self.num_shards,
        }

    def fingerprint(self) -> JSON:
        """Any change of a file's name, size or time changes this; a subclass adds what else its documents depend on."""
        return {"files": digest((file.key, file.path) for file in self.files), "num_shards": self.num_shards}

    def read(self, shard: int, cursor: JSON | None) -> Iterator[tuple[str, JSON]]:
        after = _order(cursor["file"]) if cursor else None
        for file in self._shard(shard):
            if after is not None and file.order < after:
                continue
            start = cursor["at"] if after == file.order else 0
            try:
                for text, position in self.documents(file, start):
                    yield text, {"file": file.key, "at": position}
            except OSError as error:
                self.skip(file, "files that cannot be opened", f"cannot be opened ({error.strerror or error})")

    @abstractmethod
    def documents(self, file: File, start: int) -> Iterator[tuple[str, int]]:
        """Yield (text, position right after it) of one file from position `start` (0: its beginning)."""

    def skip(self, file: File, reason: str, sentence: str | None = None) -> None:
        """Count a skipped file once per reason; with a sentence, announce it too."""
        if (file.key, reason) not in self._announced:
            self._announced.add((file.key, reason))
            self.counts[reason] += 1
            if sentence:
                self.announce(file, sentence)

    def announce(self, file: File, sentence: str, about: str | None = None) -> None:
        """Add a notice about a file, once; of several sentences `about` the same thing, the first."""
        if (file.key, about or sentence) not in self._announced:
            self._announced.add((file.key, about or sentence))
            self.notices.append(f"{file.key}: {sentence}")

    def _shard(self, shard: int) -> list[File]:
        if len(self.files) < FILES_PER_HASHED_SHARD * MAX_SHARDS:
            return self.files[shard :: self.num_shards]
        return [file for file in self.files if file.order[0] % self.num_shards == shard]


def digest(files: Iterable[tuple[str, Path]]) -> str:
    """Return a hash over the keys, sizes and modification times of `files`, given as (key, path)."""
    found = hashlib.blake2b(digest_size=16)
    for key, path in files:
        try:
            now = path.stat()
            size, mtime_ns = now.st_size, now.st_mtime_ns
        except OSError:  # it vanished since it was listed
            size, mtime_ns = -1, 0
        found.update(f"{size} {mtime_ns} {key}\n".encode("utf-8", "surrogateescape"))
    return found.hexdigest()


def list_files(path: str, glob: str = "**/*") -> list[File]:
    """List a file, or the files below a folder that match `glob`, hidden files and folders left out.

    Raises SourceError when `path` does not exist or may not be looked at.
    """
    root = Path(path).expanduser()
    files = []
    try:
        if root.is_file():
            return [File(root.name, root, root.stat().st_size)]
        if not root.is_dir():
            raise SourceError(f'{path} does not exist (looked in {Path.cwd()}); correct "path" or create the folder.')
        for found in root.glob(glob):
            key = found.relative_to(root)
            if not any(part.startswith(".") for part in key.parts) and found.is_file():
                files.append(File(key.as_posix(), found, found.stat().st_size))
    except OSError as error:
        raise SourceError(f"{error.filename or path} cannot be opened ({error.strerror or error})") from error
    return files
