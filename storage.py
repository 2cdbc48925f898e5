"""Durable files: replaced whole or not at all, checked when read, one writer at a time; whatever they contain.

- A file is written under a temporary name in its own folder, synced, and renamed; then the folder is synced.
- A temporary name carries its writer's host and process, so that `sweep` can tell what a killed writer left behind.
- A JSON file can carry a digest of its own contents (`seal`, `unseal`).
- No symbolic link is followed out of a folder, and no pipe or device is opened.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeAlias, cast

# What json.dumps takes. The values of a mapping are `object`, since a TypedDict is no mapping of a narrower type.
JSON: TypeAlias = Mapping[str, object] | Sequence["JSON"] | str | int | float | bool | None

TEMPORARY = ".writing-"
LOCK = ".lock"
MAX_BYTES = 2**30  # of a file that `read_regular` takes into memory
STALE_SECONDS = 3600  # after which a temporary file is nobody's, whatever its name says

_WRITER = re.compile(re.escape(TEMPORARY) + r"(?P<pid>\d+)@(?P<host>[^@]*)@")
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EXDEV, errno.EMLINK}


class Damaged(Exception):
    """A file is not what was written; says why in a few words."""


def digest(value: JSON) -> str:
    """Return 32 hexadecimal digits that are equal for equal JSON values, whatever the order of their keys."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()


def seal(record: Mapping[str, object]) -> bytes:
    """Return `record` as JSON text that `unseal` can verify."""
    record = json.loads(json.dumps(record))  # a digest of what a reader will see: keys are strings, tuples are lists
    return json.dumps({"check": digest(record), **record}, indent=1).encode()


def unseal(data: bytes) -> dict[str, Any]:
    """Return the record that was sealed; its owner knows the types of its values. Raises Damaged."""
    try:
        record = json.loads(data)
        intact = record.pop("check") == digest(record)
    except Exception:  # deep nesting, huge numbers, other types: a damaged text fails in many ways
        raise Damaged("it is not the JSON that was written") from None
    if not intact:
        raise Damaged("its own digest differs")
    return record


def read_record(path: Path) -> dict[str, Any] | None:
    """Return the record that `write_record` wrote, or None where there is no file. Raises Damaged."""
    data = read_regular(path)
    return None if data is None else unseal(data)


def write_record(path: Path, record: Mapping[str, object]) -> None:
    """Write a JSON file that carries a digest of its own contents. Raises OSError."""
    write_atomic(path, seal(record))


def slug(name: str) -> str:
    """Return a readable part of a file name that cannot leave its folder, whatever `name` holds."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip(".-")[:60] or "unnamed"


def temporary(path: Path) -> Path:
    """Return a name beside `path` that does not exist and cannot be guessed."""
    return path.with_name(f"{TEMPORARY}{os.getpid()}@{_host()}@{secrets.token_hex(8)}-{path.name}")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path; the synced file that the block writes there then replaces `path`, unless the block raises.

    Raises OSError.
    """
    fresh = temporary(path)
    try:
        yield fresh
        os.replace(fresh, path)
        sync(path.parent)
    finally:
        discard(fresh)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that it is the old or the new one even after a power cut. Raises OSError."""
    with replacing(path) as fresh, fresh.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def open_regular(path: str | Path, flags: int = os.O_RDONLY, *, follow: bool = True) -> BufferedReader:
    """Open a regular file, with `flags` also to append to it; a symbolic link is followed to one with `follow`.

    Raises OSError, also for a pipe or a device: reading one may wait for ever or never end.
    """
    # Without O_NONBLOCK, opening a named pipe would wait for its other end.
    descriptor = os.open(path, flags | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW), 0o666)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        return cast(BufferedReader, open(descriptor, "rb" if flags == os.O_RDONLY else "ab"))
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: Path, size: int | None = None) -> bytes | None:
    """Return the bytes of a regular file, of `size` bytes if given, or None where there is none.

    Raises Damaged for a link, a pipe, another size, more than MAX_BYTES, and what cannot be read.
    """
    try:
        with open_regular(path, follow=False) as file:
            length = os.fstat(file.fileno()).st_size
            if length > MAX_BYTES or size not in (None, length):
                raise Damaged(f"its size is {length:,} bytes")
            return file.read(length)
    except OSError as error:
        if not os.path.lexists(path):
            return None
        raise Damaged(os_error_reason(error)) from None


def hard_link_or_copy(source: Path, target: Path) -> None:
    """Make `target` the file that `source` is: by a hard link, or by a copy where the file system has none.

    Neither name is ever missing meanwhile. Raises OSError.
    """
    with replacing(target) as fresh:
        try:
            os.link(source, fresh)
        except OSError as error:
            if not means_no_links(error):
                raise
            shutil.copyfile(source, fresh)
            with fresh.open("rb") as file:
                os.fsync(file.fileno())


def means_no_links(error: OSError) -> bool:
    """Whether os.link failed because the file system, or this file, takes no hard link."""
    return error.errno in _NO_LINKS


def sync(folder: Path) -> None:
    """Make changes of names in `folder` durable. Raises OSError, but not where the file system cannot sync a folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def discard(path: Path) -> None:
    """Remove a file if it is there and can be removed."""
    with contextlib.suppress(OSError):  # what stays is swept later
        path.unlink(missing_ok=True)


def sweep(*folders: Path, only_abandoned: bool = False) -> None:
    """Remove temporary files from `folders`; what lies in folders below stays.

    With `only_abandoned`, files that a living process may be writing stay too. Raises OSError.
    """
    for folder in folders:
        for path in folder.glob(f"{TEMPORARY}*"):
            with contextlib.suppress(FileNotFoundError):  # its writer has just renamed it
                if (path.is_symlink() or not path.is_dir()) and (not only_abandoned or _is_abandoned(path)):
                    path.unlink()


def _is_abandoned(path: Path) -> bool:
    if time.time() - path.lstat().st_mtime > STALE_SECONDS:
        return True
    writer = _WRITER.match(path.name)
    if writer is None or writer["host"] != _host():  # another host's processes cannot be seen from here
        return False
    try:
        os.kill(int(writer["pid"]), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        pass  # alive, and another user's
    return False


def _host() -> str:
    return slug(socket.gethostname())


def refuse_links(*paths: Path) -> None:
    """Raise OSError when one of `paths` is a symbolic link."""
    for path in paths:
        if path.is_symlink():
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))


def refuse_escape(path: Path, folder: Path) -> None:
    """Raise OSError when a symbolic link leads `path`, below `folder`, out of it or in a circle, and when `path` is
    neither file nor folder: opening a pipe would wait for ever. `folder` itself may be a link."""
    try:
        inside = path.resolve().is_relative_to(folder.resolve())
    except RuntimeError:  # of links in a circle, before Python 3.13
        inside = False
    if not inside:
        raise OSError(errno.ELOOP, "a symbolic link leads out of the folder and was not followed", str(path))
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(errno.EINVAL, "it is neither a file nor a folder", str(path))


def refuse_special(paths: Iterable[Path]) -> None:
    """Raise OSError when one of `paths` leads to a pipe or a device: what other libraries would open and wait for."""
    for path in paths:
        try:
            mode = path.stat().st_mode
        except OSError:  # a link that leads nowhere
            continue
        if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            raise OSError(errno.EINVAL, "it is a pipe or a device", str(path))


def os_error_reason(error: OSError) -> str:
    """Return an operating system's error in the words of a message."""
    if error.errno == errno.ENOSPC:
        return "the disk is full"
    if error.strerror == os.strerror(errno.ELOOP):  # what O_NOFOLLOW says of a link
        return "it is a symbolic link"
    return error.strerror or type(error).__name__


@contextlib.contextmanager
def locked(folder: Path, warn: Callable[[str], None]) -> Iterator[str | None]:
    """Lock `folder` against other `locked` blocks; gives None, or who holds the lock already, in words.

    The lock ends with the process, however that ends. Where the file system has no locks, `warn` gets a sentence and
    the folder stays open to others. Raises OSError.
    """
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        holder = None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(descriptor)
        except OSError as error:
            warn(
                f"The file system of {folder} has no locks ({os_error_reason(error)}): nothing keeps another run out, "
                "so make sure that none trains there."
            )
        if holder is None:
            with contextlib.suppress(OSError):  # only a name for others to read; a full disk must not stop a start
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield holder
    finally:
        os.close(descriptor)


def locked_by(folder: Path) -> str | None:
    """Return who is in a `locked` block of `folder`, in words; None where nobody is, or where that cannot be told."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder / LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _holder(descriptor)
        finally:
            os.close(descriptor)
    return None


def _holder(descriptor: int) -> str:
    return os.read(descriptor, 200).decode(errors="replace").strip() or "another process"


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[bool]:
    """Keep other `exclusive` writers out of `folder`; gives False, at once, when another process is in there.

    Where the file system has no locks, it gives True: what is written there has to be verified by its readers anyway.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        alone = True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:  # any other error: a file system without locks
            alone = not isinstance(error, BlockingIOError)
        yield alone
    finally:
        os.close(descriptor)
