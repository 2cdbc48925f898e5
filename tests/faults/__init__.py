"""Faults for real processes: a library that counts file calls and kills, fails or moves at a chosen one (faults.c).

A process loads it with LD_PRELOAD (`preloaded`) and then arms itself (`arm`); calls below one folder are counted from
then on, and each is a line of a log that survives the process (`read_log`).
"""

import contextlib
import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

SOURCE = Path(__file__).with_name("faults.c")
KINDS = ("open", "create", "read", "write", "sync", "rename", "link", "unlink", "mkdir", "chmod", "lock", "close")
CHANGES = ("create", "write", "sync", "rename", "link", "unlink", "mkdir", "chmod")  # what a read-only disk refuses
GROWTH = ("create", "write", "sync", "rename", "link", "mkdir")  # what a full disk refuses
COMPILER = shutil.which("cc") or shutil.which("gcc")


class Action(IntEnum):
    """What happens at the chosen call."""

    COUNT = 0  # nothing
    KILL_BEFORE = 1  # SIGKILL instead of the call
    KILL_AFTER = 2
    KILL_HALFWAY = 3  # a write writes half of its bytes, then SIGKILL; another call is not made
    FAIL_ONCE = 4
    FAIL_ON = 5  # this call and all later ones fail
    WRITE_SHORT = 6  # a write writes half of its bytes and says so, which is no error
    MOVE = 7  # before the call the folder becomes FOLDER-moved; FOLDER-other, if there is one, takes its place


@dataclass(frozen=True)
class Call:
    """One line of the log; `result` is None for a call that was not made: the process was killed, or it was failed."""

    number: int
    kind: str
    result: int | None
    inode: int  # of `path` before the call, 0 where there was none
    path: Path
    new_path: Path | None = None


@functools.cache
def _built() -> tempfile.TemporaryDirectory:
    """faults.c compiled, in a folder that goes with this process."""
    folder = tempfile.TemporaryDirectory(prefix="faults-")
    command = [COMPILER, "-O2", "-shared", "-fPIC", "-o", f"{folder.name}/faults.so", str(SOURCE), "-ldl"]
    subprocess.run(command, check=True)
    return folder


def preloaded() -> dict[str, str]:
    """The environment variable with which a process loads the library. Needs COMPILER."""
    return {"LD_PRELOAD": f"{_built().name}/faults.so"}


def _loaded() -> ctypes.CDLL:
    return ctypes.CDLL(os.environ["LD_PRELOAD"])


def arm(
    folder: Path,
    log: Path,
    number: int = 0,
    action: Action = Action.COUNT,
    error: int = 0,
    kinds: tuple[str, ...] = KINDS,
) -> None:
    """Counts this process's calls of these kinds below `folder` from 1 on; at `number` comes the action."""
    mask = sum(1 << KINDS.index(kind) for kind in kinds)
    status = _loaded().faults_arm(
        os.fsencode(folder.resolve()), os.fsencode(log), mask, number, int(action), int(error)
    )
    if status:
        raise OSError(f"{log} cannot be opened")


def disarm() -> None:
    _loaded().faults_disarm()


@contextlib.contextmanager
def unseen() -> Iterator[None]:
    """What this thread does within is neither counted nor failed."""
    _loaded().faults_unseen(1)
    try:
        yield
    finally:
        _loaded().faults_unseen(0)


def read_log(log: Path) -> list[Call]:
    """The calls of a log, in the order of their numbers; another thread's may have been written first."""
    calls = []
    for line in log.read_text().splitlines() if log.exists() else []:
        number, kind, result, inode, paths = line.split(" ", 4)
        path, _, new = paths.partition("\t")
        made = None if result in ("killed", "failed") else int(result)
        calls.append(Call(int(number), kind, made, int(inode), Path(path), Path(new) if new else None))
    return sorted(calls, key=lambda call: call.number)
