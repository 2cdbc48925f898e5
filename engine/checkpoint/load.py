"""What stands in a checkpoint folder: which snapshots verify, which generation each one is, whether its state is whole.

Reading changes nothing; only `arrange` does.
"""

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import storage
from engine.checkpoint import manifest
from engine.checkpoint.manifest import Record
from engine.run.stability import all_finite
from model.snapshot import container
from model.snapshot import file as snapshots
from model.snapshot.file import SnapshotError
from storage import Damaged, os_error_reason

MOMENTS = ("exp_avg", "exp_avg_sq")
CURRENT, PREV, PREV2 = "lm_current.pth", "lm_prev.pth", "lm_prev2.pth"
MIRROR = "simple_lm_trained.pth"
GENERATIONS = (CURRENT, PREV, PREV2)
NAMES = (*GENERATIONS, MIRROR)
STATE, ARCHIVE = "state", "archive"


@dataclass(frozen=True)
class Found:
    """A snapshot file that verified."""

    path: Path
    sha256: str
    record: Record | None  # None: it does not say which generation it is

    @property
    def number(self) -> int:
        return self.record.number if self.record else -1


@dataclass
class Seen:
    """What stands in a folder."""

    found: list[Found] = field(default_factory=list)  # what verified, the newest generation first, none twice
    names: dict[str, str | None] = field(default_factory=dict)  # of NAMES that are there: SHA-256, None if damaged
    notes: list[str] = field(default_factory=list)  # what is wrong, in sentences
    missing: bool = False  # the manifest knows generations that were there, and none of NAMES is


def look(folder: Path) -> Seen:
    """Reads and checks every snapshot file.

    One that the manifest knows is what was verified when it was written, to the bit. One that claims to be a known
    generation and is another file has been changed. Any other is read and checked by itself.
    """
    seen = Seen()
    try:
        records = manifest.read(folder)
    except Damaged as error:
        records = {}
        seen.notes.append(f"{error}.")
    for name in NAMES:
        path = folder / name
        if not os.path.lexists(path):
            continue
        try:
            found = _verified(path, records)
        except SnapshotError as error:
            seen.names[name] = None
            if name != MIRROR or not _is_same(path, folder / CURRENT):  # whose damage was told
                seen.notes.append(f"{str(error).split(';')[0].rstrip('.')}.")  # what to do about it is done here
            continue
        if found.sha256 not in seen.names.values():
            seen.found.append(found)
        seen.names[name] = found.sha256
    seen.found.sort(key=lambda found: -found.number)
    # A single one may have come no further than the manifest; a second shows that the first had its name.
    if len(records) > 1 and not seen.names:
        seen.missing = True
        seen.notes.append(f"{folder / manifest.FILE_NAME} knows snapshots, and none is there.")
    newest = max(records.values(), key=lambda record: record.number, default=None)
    if seen.found and newest and newest.number > seen.found[0].number:
        seen.notes.append(
            f"The snapshot at {newest.tokens_total:,} tokens is not there whole: its save was cut short, or it is "
            "damaged."
        )
    return seen


def read_state(folder: Path, record: Record | None) -> dict[str, Any]:
    """A generation's state, `optimizer` and `data` as they were given to be saved. Raises SnapshotError when it is
    missing, damaged, or another generation's."""
    if record is None:
        raise SnapshotError("It holds weights only.")
    path = folder / STATE / record.state_name
    if record.state_sha256 not in (None, _sha256(path, folder)):
        raise SnapshotError(f"{path}: is damaged, or belongs to another generation.")
    state = container.read(path)
    if not isinstance(state, dict) or state.get("generation") != record.generation:
        raise SnapshotError(f"{path}: belongs to another generation.")
    try:
        optimizer, data = state["optimizer"], json.loads(state["data"])
    except (KeyError, TypeError, ValueError, RecursionError):
        optimizer = data = None
    if not (_is_optimizer(optimizer) and isinstance(data, dict) and isinstance(data.get("loader"), dict | None)):
        raise SnapshotError(f"{path}: is not what this program writes.")
    return {"optimizer": optimizer, "data": data}


def _is_optimizer(optimizer: Any) -> bool:
    """Whether it is empty, or a step count and the moments of each parameter, of one shape and finite."""
    if not isinstance(optimizer, dict) or not optimizer:
        return optimizer == {}
    moments = optimizer.get("moments")
    return (
        isinstance(optimizer.get("step"), int)
        and isinstance(moments, dict)
        and all(
            isinstance(tensors, dict) and {MOMENTS[0]} <= tensors.keys() <= {*MOMENTS} for tensors in moments.values()
        )
        and all(isinstance(tensor, torch.Tensor) for tensors in moments.values() for tensor in tensors.values())
        and all(len({tensor.shape for tensor in tensors.values()}) == 1 for tensors in moments.values())
        and all(all_finite(tensors.values()) for tensors in moments.values())
    )


def arrange(folder: Path, seen: Seen, kept: list[Found], why: str) -> list[str]:
    """Gives the names to the `kept` generations, newest first; other files that stand under them are moved to archive/.

    Returns what was done, in a sentence, or nothing where all is in order. Raises OSError.
    """
    wanted = dict(zip(GENERATIONS, kept, strict=False)) | {MIRROR: kept[0]}
    changed = [n for n in NAMES if seen.names.get(n, "") != (wanted[n].sha256 if n in wanted else "")]
    if not changed:
        return []
    fresh = {}  # first of all, every file gets a name that no other one takes
    for name in changed:
        if name in wanted:
            fresh[name] = storage.temporary(folder / name)
            storage.hard_link_or_copy(wanted[name].path, fresh[name])
    lost = [n for n in changed if n in seen.names and seen.names[n] not in {found.sha256 for found in wanted.values()}]
    aside = archive_folder(folder, f"-{why}") if lost else None
    for name in changed:
        if name in lost:
            os.rename(folder / name, aside / name)
        if name in fresh:
            os.replace(fresh[name], folder / name)
        else:
            (folder / name).unlink(missing_ok=True)
        storage.sync(folder)
    storage.sweep(folder)
    sentence = f"Put in order: {', '.join(changed)}."
    return [f"{sentence} What stood there before is in {aside}." if aside else sentence]


def archive_folder(folder: Path, ending: str = "") -> Path:
    """Makes archive/TIME and returns it. Raises OSError."""
    target = folder / ARCHIVE / (time.strftime("%Y%m%d-%H%M%S") + ending)
    storage.refuse_escape(folder / ARCHIVE, folder)
    while target.exists():
        target = target.with_name(f"{target.name}-more")
    target.mkdir(parents=True)
    return target


def _verified(path: Path, records: dict[str, Record]) -> Found:
    """Raises SnapshotError."""
    sha256 = _sha256(path, path.parent)
    record = records.get(sha256)
    if record is None:
        record = manifest.of_progress(snapshots.read(path).progress)
        if record and record.generation in {known.generation for known in records.values()}:
            raise SnapshotError(f"{path}: the checkpoint is damaged; it is not the file that was written.")
    return Found(path, sha256, record)


def _is_same(path: Path, other: Path) -> bool:
    try:
        return path.samefile(other)
    except OSError:
        return False


def _sha256(path: Path, folder: Path) -> str:
    """Raises SnapshotError, also where a symbolic link leads out of the folder."""
    try:
        storage.refuse_escape(path, folder)
        return container.sha256(path)
    except FileNotFoundError:
        raise SnapshotError(f"{path}: is missing.") from None
    except OSError as error:
        raise SnapshotError(f"{path}: cannot be read ({os_error_reason(error)}).") from None
