"""The cache as a folder: one folder per source and fingerprint, one per remembered file.

    wikipedia-0123456789abcdef/source.json      what was cached: fingerprint, description, pin
                               lane-0003/       that lane's shards (shard.py)
                               used             when, and whether right now (space.py)
    kept-held-out-0123.pt-0123456789abcdef/held-out-0123.pt
    CACHEDIR.TAG                               says that the folder is a cache, and whose
Several processes may use one folder at the same time. A cache never ends a run: what it cannot do, its notices say.
"""

import contextlib
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from shard_cache.lane import CachedLane
from shard_cache.space import CacheEntry, Space, entries, sweep_removed
from storage import JSON, Damaged, digest, read_record, read_regular, slug, sweep, write_atomic, write_record

_ABOUT = "source.json"
_TAG = "CACHEDIR.TAG"  # which backup programs know: bford.info/cachedir
_TAG_TEXT = b"""Signature: 8a477f597d28d172789f06886806bc55
# Tokenised text of Forethought. Runs make it again if it is removed.
"""


class NotACache(ValueError):
    """A folder belongs to somebody else; the message is a sentence."""


class CachedSource:
    """What is cached of one source under one fingerprint; in use as long as this object, or a lane of it, exists.

    It can be pickled; the copy writes and takes notices for itself.
    """

    def __init__(self, entry: CacheEntry, source_digest: str, space: Space):
        self._entry, self._digest, self._space = entry, source_digest, space

    @property
    def folder(self) -> Path:
        return self._entry.folder

    @property
    def notices(self) -> list[str]:
        """Sentences to announce, the same list for all that is open of one cache; whoever announces them empties it."""
        return self._space.notices

    def lane(self, lane: int) -> CachedLane:
        return CachedLane(self._entry, lane, self._digest, self._space)


class ShardCache:
    """Tokenised blocks and small files in `folder`, of at most `max_gb` (10**9 bytes each) altogether.

    Raises NotACache for a folder in which other things lie than an earlier cache.
    """

    def __init__(self, folder: str | Path, max_gb: float):
        self.folder = Path(folder).absolute()
        _refuse_what_is_no_cache(self.folder)
        self._space = Space(self.folder, max_gb)
        self._kept: dict[str, CacheEntry] = {}
        with self._space.writing_to(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):  # a cache that may only be read
            if not (self.folder / _TAG).exists():
                write_atomic(self.folder / _TAG, _TAG_TEXT)
        for top in entries(self.folder):
            for parent, _, _ in os.walk(top):
                with contextlib.suppress(OSError):  # such as another user's files
                    sweep(Path(parent), only_abandoned=True)
        sweep_removed(self.folder)

    @property
    def notices(self) -> list[str]:
        """Sentences to announce; whoever announces them empties the list."""
        return self._space.notices

    def pins(self, description: JSON) -> list[Any]:
        """Return the pins that were cached under this description, newest first: a run can start without the source."""
        wanted = digest(description)
        found: list[tuple[str, str, Any]] = []
        for folder in entries(self.folder):
            about = self._about(folder)
            if about is not None and digest(about["description"]) == wanted:
                found.append((about["created"], folder.name, about["pin"]))
        return [pin for _, _, pin in sorted(found, key=lambda entry: entry[:2], reverse=True)]

    def source(self, fingerprint: JSON, description: JSON, pin: JSON) -> CachedSource:
        """Open what is cached under `fingerprint`, everything that the blocks depend on, and mark it as used now.

        Its folder is called after the fingerprint's "name", if it has one.
        """
        identity = digest(fingerprint)
        name = fingerprint.get("name") if isinstance(fingerprint, dict) else None
        entry = CacheEntry(self.folder / f"{slug(str(name or 'source'))}-{identity[:16]}")
        about = {"fingerprint": fingerprint, "description": description, "pin": pin}
        with self._space.writing_to(entry.folder):
            entry.hold()
            known = self._about(entry.folder)
            if known is None or digest({key: known[key] for key in about}) != digest(about):
                about["created"] = datetime.now(UTC).isoformat(timespec="microseconds")
                write_record(entry.folder / _ABOUT, about)
        return CachedSource(entry, identity, self._space)

    def remember(self, key: str) -> Path:
        """Return where a small file of the caller's own lies, or may be written; it is kept as sources are.

        It is in use as long as this cache, or a pickled copy of it, exists.
        """
        name = slug(key)
        entry = self._kept.setdefault(key, CacheEntry(self.folder / f"kept-{name}-{digest(key)[:16]}"))
        path = entry.folder / name
        with self._space.writing_to(entry.folder):
            for link in (entry.folder, path):
                if link.is_symlink():  # the caller opens this path by its name, and would follow it
                    link.unlink()
            entry.hold()
        return path

    def _about(self, folder: Path) -> dict[str, Any] | None:
        """Return what a source's folder says of itself, or None where it is missing or damaged."""
        path = folder / _ABOUT
        try:
            about = read_record(path)
            if about is None or about.keys() >= {"fingerprint", "description", "pin", "created"}:
                return about
            raise Damaged("it lacks a key")
        except Damaged as error:
            self.notices.append(f"{path} is damaged ({error}); it is written again when its source is used.")
            return None


def _refuse_what_is_no_cache(folder: Path) -> None:
    """Raise NotACache unless a folder is absent, empty, or a cache. Earlier versions left no tag."""
    place = folder.resolve()
    if place in (Path(place.anchor), Path(os.path.expanduser("~")).resolve(), Path.cwd()):
        raise NotACache(f"{folder} cannot be a cache; name a folder of its own, such as {folder / 'shard_cache'}.")
    with contextlib.suppress(OSError):  # what cannot be listed cannot be written to either, which is told then
        names = [name for name in os.listdir(folder) if not name.startswith(".") and name != "lost+found"]
        if names and not _has_tag(folder) and not any(entries(folder)):
            raise NotACache(
                f"{folder} holds other things than a cache ({', '.join(sorted(names)[:3])}); "
                "name a folder that is new or empty."
            )


def _has_tag(folder: Path) -> bool:
    with contextlib.suppress(Damaged):
        return read_regular(folder / _TAG) == _TAG_TEXT
    return False
