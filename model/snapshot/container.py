"""One zip file of tensors and plain values, as torch.save writes it: written durably, read without running code.

Notable here
- torch.load does not check the zip's checksums, and unpacks more than tensors: `read` vets the file first (vetting.py).
- `write` writes to exactly the path it is given, reads the file back from the disk and compares. Replacing an older
  file is up to the caller.
- torch reports a full disk as "unexpected pos ..." without an errno: free space is checked first, and what still fails
  is reported with the system's reason.
"""

import contextlib
import hashlib
import os
import pickle
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .vetting import SnapshotError, open_regular, vet

MARGIN_BYTES = 2**20  # of a file besides its tensors and strings


def write(path: str | os.PathLike, contents: dict[str, Any]) -> str:
    """Write `contents` to exactly `path`, fsync it, read it back and compare. Returns the file's SHA-256.

    Raises SnapshotError when the disk is full, the file cannot be written, or it does not read back equal; an
    incomplete file is then removed.
    """
    path = Path(path)
    created = False
    require_space(path, contents)
    try:
        with open(path, "wb") as file:
            created = True
            torch.save(contents, file)
            file.flush()
            os.fsync(file.fileno())
            if hasattr(os, "posix_fadvise"):  # so that it is read back from the disk, not from the page cache
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        digest = sha256(path)
        if not _equal(contents, read(path, mapped=True)):
            raise SnapshotError(f"{path}: does not read back as it was written; check the disk.")
        return digest
    except (OSError, RuntimeError, SnapshotError) as error:
        if created:
            with contextlib.suppress(OSError):
                path.unlink()
        if isinstance(error, SnapshotError):
            raise
        # torch raises its own RuntimeError for a failed write, with the system's error as context
        reason = error if isinstance(error, OSError) else error.__context__
        reason = (reason.strerror if isinstance(reason, OSError) else None) or "the write was cut short"
        raise SnapshotError(
            f"{path}: the checkpoint could not be written ({reason}); check the disk's free space and permissions."
        ) from error


def read(path: str | os.PathLike, *, checksums: bool = True, mapped: bool = False) -> Any:
    """Read what `write` wrote, or any file of torch.save that holds tensors and plain values.

    `checksums` verifies those of the zip; `mapped` maps the tensors instead of reading them. Raises SnapshotError, in
    one sentence, for a file that is missing, damaged, cut short, of another kind, or that would have to run code to be
    read.
    """
    path = Path(path)
    pickle_bytes = vet(path, checksums)
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise SnapshotError(
            f"{path}: the file asks for code to be run and was refused; use a checkpoint of tensors and plain values."
        ) from error
    except Exception as error:  # torch documents no exceptions for damaged files
        raise SnapshotError(f"{path}: the checkpoint is damaged; use an older one or a copy.") from error
    _vet_contents(path, contents, pickle_bytes)
    return contents


def sha256(path: str | os.PathLike) -> str:
    """The SHA-256 of a regular file, in hexadecimal. Raises OSError."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_space(path: Path, contents: dict[str, Any]) -> None:
    """Raise SnapshotError when the disk of `path` has no room for a file of these contents."""
    needed = size_in_bytes(contents)
    try:
        free = shutil.disk_usage(path.parent).free
    except OSError as error:
        raise SnapshotError(f"{path}: cannot be written ({error.strerror}); check the path.") from error
    if free < needed:
        raise SnapshotError(
            f"{path}: {needed / 1e6:.0f} MB are needed and only {free / 1e6:.0f} MB are free; "
            "make room on that disk or choose another folder."
        )


def size_in_bytes(*contents: Any) -> int:
    """The most bytes that files of these contents need on a disk."""
    return MARGIN_BYTES + sum(map(_most_bytes, _leaves(contents)))


def owned(tensor: Tensor) -> Tensor:
    """A contiguous CPU tensor with its own storage, in fp32 if floating-point: torch.save writes the whole storage
    behind a view."""
    tensor = tensor.detach().to("cpu", torch.float32 if tensor.is_floating_point() else tensor.dtype).contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _vet_contents(path: Path, contents: Any, pickle_bytes: int) -> None:
    """Raise SnapshotError unless what was read is dicts and lists of whole tensors and plain values.

    A tensor that is larger than its storage is refused: a terabyte can be a view of a single number. So are contents of
    more values than the pickle has bytes: lists that contain each other have no end.
    """
    pending = [contents]
    for _ in range(pickle_bytes):
        if not pending:
            return
        value = pending.pop()
        if isinstance(value, dict):
            pending += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple):
            pending += value
        elif isinstance(value, Tensor):
            if value.nbytes > value.untyped_storage().nbytes():
                break
        elif not isinstance(value, str | int | float | None):
            break
    raise SnapshotError(f"{path}: holds something else than tensors and plain values; use another checkpoint.")


def _most_bytes(leaf: Any) -> int:
    return leaf.numel() * max(4, leaf.element_size()) if isinstance(leaf, Tensor) else 4 * len(str(leaf))


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield key
            yield from _leaves(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _leaves(part)
    else:
        yield value


def _equal(written: Any, found: Any) -> bool:
    """Whether both hold the same keys, shapes, dtypes and values."""
    ours, theirs = list(_leaves(written)), list(_leaves(found))
    return len(ours) == len(theirs) and all(map(_same, ours, theirs))


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return type(a) is type(b) and a == b
