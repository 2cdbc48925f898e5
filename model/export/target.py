"""Where an export goes: a name that is free. It is written under a temporary name beside it and renamed once, so that
a failure leaves nothing behind and what exists is never overwritten."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

from .errors import ExportError


def require_free(target: Path, needed_bytes: int) -> None:
    """Raise ExportError unless `target` can be written: it does not exist, or is an empty folder, and there is room."""
    try:
        if os.path.lexists(target) and not _is_empty_folder(target):
            holds = "exists already" if target.is_file() or target.is_symlink() else "is a folder that holds something"
            raise ExportError(f"{target} {holds} and is never overwritten; give another name, or move it away.")
        if not target.parent.is_dir():
            raise ExportError(f"{target}: {target.parent} is no folder; make it or give another name.")
        free = shutil.disk_usage(target.parent).free
    except OSError as error:
        raise ExportError(f"{target} cannot be written ({error.strerror}); check the path and permissions.") from error
    if free < needed_bytes:
        raise ExportError(
            f"{target}: {needed_bytes / 1e6:.0f} MB are needed and only {free / 1e6:.0f} MB are free; make room on "
            "that disk or choose another one."
        )


@contextlib.contextmanager
def staged(target: Path) -> Iterator[Path]:
    """A temporary name beside `target`, for a file or a folder; what is there at the end is synced and renamed to it.

    Raises ExportError, with the system's reason, where that fails; what was written is then removed.
    """
    temporary = target.with_name(f".{target.name[:100]}.{uuid4().hex[:8]}")
    try:
        yield temporary
        for path in sorted(temporary.iterdir()) if temporary.is_dir() else []:
            _sync(path)
        _sync(temporary)
        if os.path.lexists(target) and not _is_empty_folder(target):
            raise ExportError(f"{target} was made by somebody else meanwhile; give another name.")
        os.rename(temporary, target)
        _sync(target.parent)
    except OSError as error:
        raise ExportError(
            f"{target} could not be written ({error.strerror or error}); check the disk's free space and permissions."
        ) from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                temporary.unlink()


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and not any(path.iterdir())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
