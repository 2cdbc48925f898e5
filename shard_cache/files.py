"""What the cache asks of files: they are whole or absent, plain, and tell when a bit of them has changed.

A file is written under a temporary name that carries its writer's host and process, so that whoever opens the cache
later can tell what a killed writer left behind. JSON files carry a digest of their own content. No symbolic link is
followed.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

JSON = Any  # whatever json.dumps takes, with strings as keys
MAX_BYTES = 2**30  # of one file; a larger one is none of ours, and is not read into memory

_TEMPORARY = re.compile(r"\.writing-(?P<pid>\d+)@(?P<host>[^@]*)@")
_STALE_SECONDS = 3600


class Damaged(Exception):
    """A file is not what was written; says why in a few words."""


def digest(value: JSON) -> str:
    """Return 32 hexadecimal digits that are equal for equal JSON values, whatever the order of their keys."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()


def slug(name: str) -> str:
    """Return a readable part of a file name that cannot leave its folder, whatever `name` holds."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip(".-")[:60] or "unnamed"


def seal(record: dict[str, JSON]) -> bytes:
    """Return `record` as JSON text that `unseal` can verify."""
    record = json.loads(json.dumps(record))  # a digest of what a reader will see: keys are strings, tuples are lists
    return json.dumps({"check": digest(record), **record}, indent=1).encode()


def unseal(data: bytes) -> dict[str, JSON]:
    """Return what was sealed. Raises Damaged."""
    try:
        record = json.loads(data)
        intact = record.pop("check") == digest(record)
    except Exception:  # deep nesting, huge numbers, other types: a damaged text fails in many ways
        raise Damaged("it is not the JSON that was written") from None
    if not intact:
        raise Damaged("its own digest differs")
    return record


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it is there entirely or not at all, even after a power cut. Raises OSError."""
    temporary = path.with_name(f".writing-{os.getpid()}@{os.uname().nodename}@{path.name}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o666)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def read_plain(path: Path, size: int | None = None) -> bytes | None:
    """Return a regular file's bytes, or None where there is none. Raises Damaged when it cannot be that file."""
    try:
        # Without O_NONBLOCK, opening a named pipe would wait for its other end.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise Damaged("it is not a regular file")
            if status.st_size > MAX_BYTES or size not in (None, status.st_size):
                raise Damaged(f"its size is {status.st_size:,} bytes")
            return file.read(status.st_size)
    except OSError as error:
        if not os.path.lexists(path):
            return None
        raise Damaged(reason(error)) from None


def refuse_links(*paths: Path) -> None:
    """Raise OSError when one of `paths` is a symbolic link: it may lead anywhere."""
    for path in paths:
        if path.is_symlink():
            raise OSError(errno.ELOOP, "it is a symbolic link", str(path))


def reason(error: OSError) -> str:
    """Return an operating system's error in the words of a message."""
    words = {errno.ENOSPC: "the disk is full", errno.ELOOP: "it is a symbolic link"}
    return words.get(error.errno) or error.strerror or type(error).__name__


@contextlib.contextmanager
def writing_in(folder: Path) -> Iterator[bool]:
    """Keep other writers out of `folder`; gives False, at once, when another process is in there."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alone = True
        except BlockingIOError:
            alone = False
        except OSError:  # a file system without locks; a reader's SHA-256 finds what two writers mix up
            alone = True
        yield alone
    finally:
        os.close(descriptor)


def sweep(folder: Path) -> None:
    """Remove what killed writers left half written, here and in all folders below."""
    for parent, _, names in os.walk(folder):
        for name in names:
            if found := _TEMPORARY.match(name):
                with contextlib.suppress(OSError):
                    path = Path(parent, name)
                    if _abandoned(path, int(found["pid"]), found["host"]):
                        path.unlink()


def _abandoned(path: Path, pid: int, host: str) -> bool:
    if time.time() - path.lstat().st_mtime > _STALE_SECONDS:
        return True
    if host != os.uname().nodename:  # its processes cannot be seen from here
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        pass  # alive, and another user's
    return False
