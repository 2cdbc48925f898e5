"""What may stand in a checkpoint folder where a save writes. A start asks this as each save does: what no save could
ever replace is refused before anything is trained."""

import errno
import os
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path

import storage
from engine import events
from engine.checkpoint import manifest, state
from engine.checkpoint.names import GENERATIONS, NAMES


def require_replaceable(folder: Path, snapshots: Iterable[str] = NAMES) -> None:
    """Raise OSError, with the file's name, where a save into `folder` would meet what it cannot replace."""
    for name in (state.FOLDER, *snapshots):
        storage.refuse_escape(folder / name, folder)
    for name in (*snapshots, manifest.FILE_NAME):
        if stat.S_ISDIR(_mode(folder / name)):
            raise OSError(errno.EISDIR, "it is a folder", str(folder / name))
    path = folder / state.FOLDER
    if path.exists():
        if not path.is_dir():
            raise OSError(errno.ENOTDIR, "it is not a folder", str(path))
        state.make_folder(folder)  # which gives its owner the permission to write
        if not os.access(path, os.W_OK | os.X_OK):
            raise OSError(errno.EACCES, "it cannot be written", str(path))


def require_log(folder: Path) -> None:
    """Raise OSError where metrics.jsonl can never be written: a run goes on without it, but none begins so."""
    path = folder / events.FILE_NAME
    if _mode(path) and not stat.S_ISREG(_mode(path)):
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))


def lack_of_room(folder: Path, size: int) -> str | None:
    """Return a sentence where the disk has no room for the generations that a run keeps, those that are there included,
    and the next one beside them; None where it has. `size` is in bytes of one."""
    there = sum((folder / name).exists() for name in GENERATIONS)
    needed = size * (len(GENERATIONS) + 1 - there)
    free = shutil.disk_usage(folder).free
    if free >= needed:
        return None
    return (
        f"{folder}: a run keeps {len(GENERATIONS)} checkpoints of {size / 2**20:,.1f} MiB and writes the next one "
        f"beside them; the disk has {free / 2**20:,.1f} MiB left. Free {(needed - free) / 2**20:,.1f} MiB, or train a "
        "smaller model."
    )


def _mode(path: Path) -> int:
    """Of `path` itself, not of what a link leads to; 0 where there is nothing."""
    return os.lstat(path).st_mode if os.path.lexists(path) else 0
