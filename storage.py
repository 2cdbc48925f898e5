"""What a folder of files needs to survive: names that never disappear, one writer at a time, no links that lead out.

A file is made under a temporary name in the same folder, synced, and only then given its name; each change of a name is
synced by itself. Nothing here knows what the files hold.
"""

import contextlib
import errno
import fcntl
import itertools
import os
import secrets
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

TEMPORARY = ".writing-"
LOCK = ".lock"
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EXDEV, errno.EMLINK}


def temporary(path: Path) -> Path:
    """A name beside `path` that nobody has and nobody can guess; `sweep` removes what a kill leaves there."""
    return path.with_name(f"{TEMPORARY}{secrets.token_hex(8)}-{path.name}")


def write_text(path: Path, text: str) -> None:
    """Replaces a small file, so that it is the old or the new one whatever happens. Raises OSError."""
    fresh = temporary(path)
    try:
        with fresh.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
        sync(path.parent)
    finally:
        discard(fresh)


def rotate(fresh: Path, names: list[Path]) -> None:
    """Makes `fresh` the first of `names`, what was there the second, and so on; what was last is gone.

    With hard links no name is ever missing. Every state in between holds whole files, so a reader that takes the newest
    finds one. Raises OSError when a step fails; then every name is again what it was before.
    """
    there = [path for path in names if path.exists()]
    older = [(path, after) for path, after in itertools.pairwise(names) if path in there][::-1]
    spare: list[Path] = []

    def link(path: Path) -> Path:
        spare.append(temporary(path))
        os.link(path, spare[-1])
        return spare[-1]

    try:
        try:
            # All that needs room on the disk comes first: after this a name only changes hands, there and back.
            undo = [(link(path), path) for path in there]
            steps = [(link(path), after) for path, after in older]
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            undo = None
            spare.append(temporary(names[-1]))
            steps = [(path, after) for path, after in [(names[-1], spare[-1]), *older] if path in there]
        _rename([*steps, (fresh, names[0])], undo)
    except OSError:
        for path in names:
            if path not in there:
                path.unlink(missing_ok=True)
        raise
    finally:
        for path in spare:
            # Renaming a link onto the same file does nothing, and leaves the link.
            discard(path)


def _rename(steps: list[tuple[Path, Path]], undo: list[tuple[Path, Path]] | None) -> None:
    """Renames and syncs in order. When a step fails, does `undo`, or all but the last step backwards, and raises."""
    done: list[tuple[Path, Path]] = []
    try:
        for source, target in steps:
            os.replace(source, target)
            done.append((source, target))
            sync(target.parent)
    except OSError:
        if undo is None:
            undo = [(target, source) for source, target in reversed(done) if (source, target) != steps[-1]]
        for source, target in undo:
            with contextlib.suppress(OSError):  # as much of it as the disk allows
                os.replace(source, target)
        raise


def duplicate(source: Path, target: Path) -> None:
    """Makes `target` the file that `source` is, without a moment in which either is missing: by a hard link, or by a
    copy where the file system has none. Raises OSError."""
    fresh = temporary(target)
    try:
        try:
            os.link(source, fresh)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            shutil.copyfile(source, fresh)
            with fresh.open("rb") as file:
                os.fsync(file.fileno())
        os.replace(fresh, target)
        sync(target.parent)
    finally:
        discard(fresh)


def sync(folder: Path) -> None:
    """Makes changes of names durable. Raises OSError, but not where the file system cannot sync a folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def sweep(*folders: Path) -> None:
    """Removes what a killed process left half written. Raises OSError."""
    for folder in folders:
        for path in folder.glob(f"{TEMPORARY}*"):
            if not path.is_dir() or path.is_symlink():  # a folder of this name is none of ours
                path.unlink(missing_ok=True)


def refuse_way_out(path: Path, folder: Path) -> None:
    """Raises OSError when a symbolic link leads `path`, below `folder`, out of it or in a circle, and when `path` is
    neither file nor folder: to open a pipe is to wait for ever. `folder` itself may be a link."""
    try:
        inside = path.resolve().is_relative_to(folder.resolve())
    except RuntimeError:  # of links in a circle, before Python 3.13
        inside = False
    if not inside:
        raise OSError(errno.ELOOP, "a symbolic link leads out of the folder and was not followed", str(path))
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(errno.EINVAL, "it is no file", str(path))


def reason(error: OSError) -> str:
    """An operating system's error in the words of a message."""
    return "the disk is full" if error.errno == errno.ENOSPC else error.strerror or type(error).__name__


@contextlib.contextmanager
def locked(folder: Path, say: Callable[[str], None]) -> Iterator[str | None]:
    """Keeps any other `locked` off `folder`; gives who holds it, in words, when it is held already.

    The lock ends with the process, however that ends. Where a file system has none, `say` is told and the folder stays
    open to others.
    """
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        holder = None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
        except OSError as error:
            say(
                f"The file system of {folder} has no locks ({reason(error)}): nothing keeps another run out, so make "
                "sure that none trains there."
            )
        if holder is None:
            with contextlib.suppress(OSError):  # only a name for others to read; a full disk must not stop a start
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield holder
    finally:
        os.close(descriptor)


def discard(path: Path) -> None:
    """Removes a file if it is there and can be removed."""
    with contextlib.suppress(OSError):  # what stays is swept later
        path.unlink(missing_ok=True)
