"""The hold of a run on its checkpoint folder: a lock, and what tells the folder from another one under its name.

A folder may be moved, removed or replaced while a run trains. Were it then made again by its name, it would be without
the lock, and another run could come in beside this one. So the folder and its lock are known by their inodes, which two
open descriptors keep from being used again, and files are written through a descriptor rather than by the name.
"""

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path

import storage

MAX_NEW_FOLDERS = 100  # tried one after the other where a folder is gone and its name is taken


class Hold:
    """Keeps other runs out of the folder `path` once it is taken. `root` leads to the folder also when it is moved;
    where the system has no such path it is `path`."""

    def __init__(self, path: Path):
        self.path = self.root = path
        self._descriptors: contextlib.ExitStack | None = None

    def take(self, path: Path, warn: Callable[[str], None]) -> str | None:
        """Hold the folder `path`, and no other any more, or return who holds it, in words.

        `warn` gets a sentence where the file system has no locks. Raises OSError.
        """
        with contextlib.ExitStack() as descriptors:
            directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            descriptors.callback(os.close, directory)
            if holder := descriptors.enter_context(storage.locked(path, warn)):
                return holder
            self._folder, self._lock = os.fstat(directory), os.stat(storage.LOCK, dir_fd=directory)
            self.release()
            self._descriptors, self._warn = descriptors.pop_all(), warn
            self._place, through = Path(os.path.realpath(path)), Path(f"/proc/self/fd/{directory}")
            self.path, self.root = path, through if through.resolve() == self._place else path
        return None

    def release(self) -> None:
        if self._descriptors is not None:
            self._descriptors.close()
            self._descriptors, self.root = None, self.path

    def in_place(self) -> bool:
        """Whether the folder that is held, if one is, has its name and its lock."""
        if self._descriptors is None:
            return True
        try:
            return self._is_folder(self.path) and self.is_locked()
        except OSError:  # a disk that does not answer is not another folder
            return True

    def is_locked(self) -> bool:
        """Whether the folder that is held, if one is, has the lock still. Raises OSError."""
        return self._descriptors is None or self._has_lock(self.root)

    def follow(self) -> str:
        """Hold the folder where it is now or, where that cannot be, a new one; return which, in a sentence.

        Raises OSError.
        """
        before = self.path
        try:
            found = Path(os.readlink(self.root))  # which is a link of /proc
            if self._is_folder(found) and self._is_still_held(found):
                if self._is_folder(before):
                    return f"{before / storage.LOCK} was removed, which lets another run in."
                return f"{before} was moved, or leads elsewhere: the folder of this run is {found} now."
        except OSError:  # it was removed, or it cannot be told where it is
            pass
        names = (self._place.name, *(f"{self._place.name}-{number}" for number in range(1, MAX_NEW_FOLDERS)))
        for path in map(self._place.with_name, names):
            with contextlib.suppress(FileExistsError):  # whatever stands there is not this run's
                path.mkdir(parents=True)
                if self.take(path, self._warn) is None:
                    return f"{before} was removed or replaced: the folder of this run is {path} now, a new one."
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(self._place))

    def _is_still_held(self, path: Path) -> bool:
        """Go on to hold the folder at `path`, by a new lock where its own was removed, unless another run was there."""
        if self._has_lock(path):
            self.path = path
            return True
        return not os.path.lexists(path / storage.LOCK) and self.take(path, self._warn) is None

    def _is_folder(self, path: Path) -> bool:
        return _is_same(path, self._folder, os.stat)

    def _has_lock(self, folder: Path) -> bool:
        return _is_same(folder / storage.LOCK, self._lock, os.lstat)


def _is_same(path: Path, known: os.stat_result, look: Callable[[Path], os.stat_result]) -> bool:
    try:
        return os.path.samestat(look(path), known)
    except (FileNotFoundError, NotADirectoryError):
        return False
