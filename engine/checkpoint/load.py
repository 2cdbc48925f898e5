"""Reads a checkpoint folder: which files verify, and the newest generation that is whole. Changes nothing."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.checkpoint import manifest, state
from engine.checkpoint.manifest import GenerationRecord, Records
from engine.checkpoint.names import CURRENT, MIRROR, NAMES
from engine.checkpoint.state import OptimizerState
from engine.errors import CheckpointError
from model.snapshot import file as snapshots
from model.snapshot.file import Snapshot, SnapshotError
from model.snapshot.vetting import NewerFormat
from storage import Damaged


@dataclass(frozen=True)
class VerifiedFile:
    """A snapshot file that is what was written."""

    path: Path
    sha256: str
    record: GenerationRecord | None  # None: it does not say which generation it is

    @property
    def number(self) -> int:
        return self.record.number if self.record else -1


@dataclass
class FolderScan:
    """What is in a checkpoint folder."""

    files: list[VerifiedFile] = field(default_factory=list)  # the newest generation first, each once
    names: dict[str, str | None] = field(default_factory=dict)  # of NAMES that exist: SHA-256, None if damaged
    notes: list[str] = field(default_factory=list)  # what is wrong, in sentences
    manifest: Records = field(default_factory=dict)  # its records, also of files that are not there


@dataclass(frozen=True)
class RestoredCheckpoint:
    """A generation that verified: the snapshot and, where that is whole, the state that belongs to it."""

    snapshot: Snapshot
    file: VerifiedFile
    optimizer: OptimizerState | None
    data: dict[str, Any] | None
    notes: list[str]

    @property
    def path(self) -> Path:
        return self.file.path


@contextlib.contextmanager
def _refusing_newer_formats() -> Iterator[None]:
    """A later version's file is whole, and no older one may take its place."""
    try:
        yield
    except NewerFormat as error:
        raise CheckpointError(f"{error} Nothing was changed.") from None


@_refusing_newer_formats()
def scan(folder: Path) -> FolderScan:
    """Read and check every snapshot file. Raises CheckpointError for one of a later version's format.

    A file that the manifest knows is, to the bit, what was verified when it was written. A file that claims to be a
    known generation and has other bytes has been changed. Any other file is read and checked by itself.
    """
    found = FolderScan()
    try:
        found.manifest = manifest.read(folder)
    except Damaged as error:
        found.notes.append(f"{error}.")
    for path in (folder / name for name in NAMES if os.path.lexists(folder / name)):
        try:
            file = _verify(path, found.manifest)
        except NewerFormat:
            raise
        except SnapshotError as error:
            found.names[path.name] = None
            if path.name != MIRROR or found.names.get(CURRENT, "") is not None:  # else it is most likely the same file
                found.notes.append(f"{str(error).split(';')[0].rstrip('.')}.")  # the remedy is applied here
            continue
        if file.sha256 not in found.names.values():
            found.files.append(file)
        found.names[path.name] = file.sha256
    found.files.sort(key=lambda file: -file.number)
    newest = max(found.manifest.values(), key=lambda record: record.number, default=None)
    if found.files and newest and newest.number > found.files[0].number:
        found.notes.append(
            f"The snapshot at {newest.tokens_total:,} tokens is missing: its save was cut short, or it is damaged."
        )
    return found


@_refusing_newer_formats()
def newest(folder: Path, found: FolderScan) -> RestoredCheckpoint | None:
    """The newest whole generation, or None in an empty folder.

    Where no generation has its state, the newest snapshot that verifies, without state. Raises CheckpointError when
    there are files and none can be trusted, or one is of a later version's format.
    """
    notes = [*found.notes]
    if not found.files:
        # One record alone may be of a first save that was cut short; a second shows that the first had its name.
        if not found.names and len(found.manifest) < 2:
            return None
        if not found.names:
            notes.append(f"{folder / manifest.FILE_NAME} knows snapshots, and none is there.")
        raise CheckpointError(
            f"{' '.join(notes)} No snapshot in {folder} can be trusted; nothing was changed. "
            "Restore one from a backup, or move the folder away to start over."
        )
    for file in found.files:
        try:
            optimizer, data = state.read(folder, file.record)
            return RestoredCheckpoint(snapshots.read(file.path), file, optimizer, data, notes)
        except NewerFormat:
            raise
        except SnapshotError as error:
            notes.append(str(error))
    notes.append("The weights are used; the optimizer and the data start over.")
    file = found.files[0]
    try:
        return RestoredCheckpoint(snapshots.read(file.path), file, None, None, notes)
    except SnapshotError as error:  # one that the manifest knows and this version cannot read
        raise CheckpointError(f"{error} Nothing was changed.") from None


def _verify(path: Path, records: Records) -> VerifiedFile:
    """Raises SnapshotError."""
    sha256 = state.sha256(path, path.parent)
    record = records.get(sha256)
    if record is None:
        progress = snapshots.read(path).progress
        with contextlib.suppress(ValueError):  # a snapshot without a generation
            record = GenerationRecord(**{**progress, "state_sha256": None})
        if record and record.generation in {known.generation for known in records.values()}:
            raise SnapshotError(f"{path}: the checkpoint is damaged; it is not the file that was written.")
    return VerifiedFile(path, sha256, record)
