"""Which folders of the cache are in use, and which go when there is no room for more.

Every folder directly in the cache (one per source, one per remembered file) holds a stamp file `used`: its time says
when it was used last, and a shared lock on it says that a process is using it now. The lock goes when the process does,
however it ends. Only a folder whose stamp can be locked exclusively is removed: none where a file system has no locks.
"""

import contextlib
import errno
import fcntl
import math
import os
import re
import secrets
import shutil
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

from storage import os_error_reason, refuse_links

RESERVE_BYTES = 2**30  # a cache must not take the last of a disk that checkpoints are written to
MEASURE_SHARE = 64  # measured again after 1/64 of the room left: so many processes may write there at once

_NAME = re.compile(r".+-[0-9a-f]{16}")
_STAMP = "used"
_REMOVED = ".removed-"
_ATTEMPTS = 10


class CacheEntry:
    """A folder directly in the cache that is in use from `hold` on, until this object or its process ends.

    A pickled copy holds the folder for itself.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._release: Callable[[], None] = lambda: None

    def hold(self) -> None:
        """Make the folder, mark it as used now, and keep it from being removed. Raises OSError."""
        error = OSError(errno.EBUSY, "it is removed again and again", str(self.folder))
        for _ in range(_ATTEMPTS):
            try:
                if self._try_to_hold():
                    return
            except (FileNotFoundError, FileExistsError) as failure:  # removed between two steps, most likely
                error = failure
        raise error

    def _try_to_hold(self) -> bool:
        refuse_links(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        stamp = self._open_stamp()
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(stamp, fcntl.LOCK_SH)
        if not _is_open(stamp, self.folder):
            os.close(stamp)
            return False
        with contextlib.suppress(OSError):  # a cache that may only be read
            os.utime(stamp)
        self._release()
        self._release = weakref.finalize(self, os.close, stamp)
        return True

    def _open_stamp(self) -> int:
        path = self.folder / _STAMP
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except OSError:
            if not path.exists():
                raise
            return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)

    def __getstate__(self) -> dict:
        return {"folder": self.folder}

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)
        with contextlib.suppress(OSError):  # what cannot be written now says so when a shard is
            self.hold()


def entries(folder: Path) -> Iterator[Path]:
    """Yield the cache's own folders, in no order: others may lie beside them."""
    with contextlib.suppress(OSError), os.scandir(folder) as found:
        for entry in found:
            if entry.is_dir(follow_symlinks=False) and _NAME.fullmatch(entry.name):
                path = folder / entry.name
                if os.path.lexists(path / _STAMP):
                    yield path


class Space:
    """Keeps the whole cache under its limit, and stops this process's writing for good once there is a reason to."""

    def __init__(self, folder: Path, max_gb: float):
        self.folder, self.max_gb = folder, max_gb
        self.notices: list[str] = []
        self.stopped = False
        self._bytes = 0  # in the folder, as far as this process knows
        self._written = math.inf  # by this process since it measured: it has not yet

    def stop(self, notice: str) -> None:
        """Write nothing more in this process; only the first reason is told."""
        if not self.stopped:
            self.stopped = True
            self.notices.append(f"{notice}; nothing more is cached in this run, what is cached is still read.")

    @contextlib.contextmanager
    def writing_to(self, folder: Path) -> Iterator[None]:
        """Stop writing when the block cannot write to `folder`."""
        try:
            yield
        except OSError as error:
            self.stop(f"{folder} cannot be written ({os_error_reason(error)})")

    def take(self, size: int) -> bool:
        """Make room for `size` more bytes, or stop writing and return False. Raises OSError."""
        if shutil.disk_usage(self.folder).free - size < RESERVE_BYTES:
            reserve = f"{RESERVE_BYTES / 2**30:g} GiB"
            self.stop(f"The disk of {self.folder} has less than {reserve} left, which is kept free for checkpoints")
            return False
        limit = self.max_gb * 1e9
        if self._bytes + size > limit or self._written > (limit - self._bytes) / MEASURE_SHARE:
            self._measure()
        while not self.stopped and self._bytes + size > limit:
            if not self._remove_oldest():
                self.stop(f"The cache has reached cache_max_gb ({self.max_gb:g} GB in {self.folder}), all of it in use")
            self._measure()
        self._bytes += size
        self._written += size
        return not self.stopped

    def __getstate__(self) -> dict:
        return {**self.__dict__, "notices": []}  # each notice is announced by one process

    def _measure(self) -> None:
        self._bytes, self._written = 0, 0
        for parent, _, names in os.walk(self.folder):
            for name in names:
                with contextlib.suppress(OSError):  # another process removes files meanwhile
                    self._bytes += os.lstat(os.path.join(parent, name)).st_size

    def _remove_oldest(self) -> bool:
        """Remove the folder whose last use is the longest ago; False when all are in use."""
        used = {}
        for folder in entries(self.folder):
            with contextlib.suppress(OSError):
                used[folder] = os.lstat(folder / _STAMP).st_mtime_ns
        for folder in sorted(used, key=used.__getitem__):
            if _remove(folder):
                self.notices.append(
                    f"{folder} was removed from the cache, as the least recently used, to stay under cache_max_gb."
                )
                return True
        return False


def sweep_removed(folder: Path) -> None:
    """Finish removals that were cut short."""
    for path in folder.glob(f"{_REMOVED}{'[0-9a-f]' * 16}"):
        shutil.rmtree(path, ignore_errors=True)


def _remove(folder: Path) -> bool:
    """Remove a folder unless it is in use. It disappears under its name at once, while nobody can begin to use it."""
    stamp = None
    try:
        stamp = os.open(folder / _STAMP, os.O_RDWR | os.O_NOFOLLOW)
        fcntl.flock(stamp, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_open(stamp, folder):
            return False
        removed = folder.with_name(f"{_REMOVED}{secrets.token_hex(8)}")
        folder.rename(removed)
    except OSError:
        return False
    finally:
        if stamp is not None:
            os.close(stamp)
    shutil.rmtree(removed, ignore_errors=True)
    return True


def _is_open(stamp: int, folder: Path) -> bool:
    """Tell whether an open stamp is still the one in `folder`, and not that of a folder removed meanwhile."""
    try:
        return os.path.samestat(os.fstat(stamp), os.lstat(folder / _STAMP))
    except FileNotFoundError:
        return False
