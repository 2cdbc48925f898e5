"""A lineage of snapshots in one folder: saving a generation, and finding the newest one that is whole.

    lm_current.pth  lm_prev.pth  lm_prev2.pth    the three newest generations, each a whole model in one file
    simple_lm_trained.pth                        a mirror of lm_current.pth (a hard link where the disk has them)
    state/GENERATION.pt                          that generation's optimizer moments and data position
    manifest.json                                which file is which generation, by digest (manifest.py)
    archive/                                     what was moved out of the way: other lineages, damaged files
    .lock                                        held by the process that trains here
A generation is whole when its snapshot and the state that belongs to it are. Everything of a new one is written under
temporary names, synced, read back and compared before any name changes (storage.py). A reader takes the newest whole
generation, whatever name it stands under, and never the snapshot of one with the state of another.
"""

import contextlib
import json
import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import storage
from engine.checkpoint import load, manifest
from engine.checkpoint.load import ARCHIVE, CURRENT, GENERATIONS, MIRROR, NAMES, PREV, PREV2, STATE, Found, Seen
from engine.checkpoint.manifest import Record
from engine.checkpoint.rotation import rotate
from engine.errors import CheckpointError, FolderInUse, SaveError
from model.snapshot import container
from model.snapshot import file as snapshots
from model.snapshot.file import Snapshot, SnapshotError
from storage import os_error_reason

__all__ = ["CURRENT", "MIRROR", "PREV", "PREV2", "CheckpointFolder", "Restored"]


@dataclass(frozen=True)
class Restored:
    """A generation that verified: the snapshot and, where it is whole, the state that belongs to it."""

    snapshot: Snapshot
    path: Path
    optimizer: dict[str, Any] | None
    data: dict[str, Any] | None
    notes: list[str]


class CheckpointFolder:
    """The checkpoints of one lineage. Only rank 0 uses it; `save` may run beside training."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._records: dict[str, Record] | None = None  # of the generations that are there, by digest

    @property
    def current(self) -> Path:
        return self.folder / CURRENT

    @contextlib.contextmanager
    def held(self, say: Callable[[str], None] = print) -> Iterator[None]:
        """Keeps other runs out of the folder, which is made; `say` is told where that cannot be done. Raises
        FolderInUse, or SaveError when nothing could be written there later."""
        with contextlib.ExitStack() as stack:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                probe = storage.temporary(self.folder / "probe")
                probe.write_bytes(b"")
                probe.unlink()
                holder = stack.enter_context(storage.locked(self.folder, say))
            except OSError as error:
                raise SaveError(
                    f"{self.folder} cannot be written ({os_error_reason(error)}), so no progress could be kept; "
                    "make it writable or free some space."
                ) from None
            if holder:
                raise FolderInUse(
                    f"{self.folder} is in use by {holder}, and one run at a time trains there. Wait for it, stop it, "
                    "or start in another folder."
                )
            yield

    def newest(self) -> Restored | None:
        """The newest whole generation, or None in an empty folder; changes nothing.

        Where no generation has its state, the newest snapshot that verifies. Raises CheckpointError (exit status 4)
        when there are files and none can be trusted.
        """
        seen = self._look()
        if not seen.found:
            if seen.names or seen.missing:
                raise CheckpointError(
                    " ".join(seen.notes) + f" No snapshot in {self.folder} can be trusted; nothing was changed. "
                    "Restore one from a backup, or move the folder away to begin anew."
                )
            return None
        problems: list[str] = []
        for found in seen.found:
            try:
                state = load.read_state(self.folder, found.record)
                return _restored(found, state["optimizer"], state["data"], seen.notes + problems)
            except SnapshotError as error:
                problems.append(str(error))
        problems.append("The weights continue, the optimizer and the data begin anew.")
        try:
            return _restored(seen.found[0], None, None, seen.notes + problems)
        except SnapshotError as error:  # one that the manifest knows and this version cannot read
            raise CheckpointError(f"{error} Nothing was changed.") from None

    def repair(self, restored: Restored) -> list[str]:
        """Gives every generation its name again, `restored` being the newest, and moves what is damaged or was passed
        over to archive/. Returns what was done, in sentences."""
        seen = self._look()
        chosen = next(index for index, found in enumerate(seen.found) if found.path == restored.path)
        try:
            storage.sweep(self.folder, self.folder / STATE)
            return self._arrange(seen, seen.found[chosen:], "damaged")
        except OSError as error:
            return [f"The names in {self.folder} could not be put in order ({os_error_reason(error)})."]

    def step_back(self, generations: int) -> None:
        """Moves the newest generations to archive/, so that `newest` gives an older one; the last one always stays.
        Raises SaveError."""
        seen = self._look()
        if not seen.found:
            return
        try:
            self._arrange(seen, seen.found[min(generations, len(seen.found) - 1) :], "diverged")
        except OSError as error:
            raise SaveError(f"{self.folder}: no generation could be moved aside ({os_error_reason(error)}).") from None

    def save(self, snapshot: Snapshot, optimizer: dict[str, Any], data: dict[str, Any]) -> Path:
        """Writes one generation and rotates the older ones. Raises SaveError, leaving those as they were."""
        if self._records is None:
            self._look()
        known = self._records
        number = 1 + max((record.number for record in known.values()), default=0)
        generation = f"{number:06d}-{secrets.token_hex(4)}"
        snapshot = replace(snapshot, progress={**snapshot.progress, "generation": generation})
        state = {"generation": generation, "optimizer": optimizer, "data": json.dumps(data)}
        fresh, own_state = storage.temporary(self.current), self.folder / STATE / f"{generation}.pt"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name in (STATE, *NAMES):
                storage.refuse_escape(self.folder / name, self.folder)
            storage.sweep(self.folder, self.folder / STATE)
            self._require_space(snapshot, state)
            record = manifest.of_progress(snapshot.progress, self._write_state(state))
            written = {snapshots.write(fresh, snapshot): record}
            newest = sorted(known, key=lambda sha: known[sha].number)[-len(GENERATIONS) :]
            manifest.write(self.folder, {sha: known[sha] for sha in newest} | written)
            rotate(fresh, [self.folder / name for name in GENERATIONS])
        except SnapshotError as error:
            storage.discard(own_state)  # no snapshot needs it, and the next try makes its own
            raise SaveError(str(error)) from None
        except OSError as error:
            storage.discard(own_state)
            at = f": {error.filename}" if storage.TEMPORARY not in str(error.filename or storage.TEMPORARY) else ""
            raise SaveError(
                f"{self.folder}: the snapshot could not be written ({os_error_reason(error)}{at})."
            ) from None
        finally:
            storage.discard(fresh)
        self._records = {sha: known[sha] for sha in newest[1 - len(GENERATIONS) :]} | written
        # The generation is safe, and what fails here is done again with the next one.
        with contextlib.suppress(OSError):
            self._prune_states()
        with contextlib.suppress(OSError):
            storage.hard_link_or_copy(self.current, self.folder / MIRROR)
        return self.current

    def archive(self) -> Path:
        """Moves the lineage to archive/TIME and returns that folder. Raises SaveError."""
        try:
            target = load.archive_folder(self.folder)
            for path in sorted(self.folder.iterdir()):
                if path.name not in (ARCHIVE, storage.LOCK, ".gitignore"):
                    path.rename(target / path.name)
        except OSError as error:
            raise SaveError(
                f"{self.folder}: the old lineage could not be archived ({os_error_reason(error)})."
            ) from None
        self._records = {}
        return target

    def _look(self) -> Seen:
        seen = load.look(self.folder)
        self._records = _by_digest(seen.found)
        return seen

    def _arrange(self, seen: Seen, kept: list[Found], why: str) -> list[str]:
        kept = kept[: len(GENERATIONS)]
        self._records = _by_digest(kept)
        return load.arrange(self.folder, seen, kept, why)

    def _write_state(self, state: dict[str, Any]) -> str:
        """Writes a generation's state and returns its SHA-256."""
        folder = self.folder / STATE
        folder.mkdir(mode=0o700, exist_ok=True)
        with contextlib.suppress(PermissionError):  # on a mount that shows another owner
            folder.chmod(0o700)
        with storage.replacing(folder / f"{state['generation']}.pt") as fresh:
            return container.write(fresh, state)

    def _prune_states(self) -> None:
        """Removes the state of generations that are not there any more."""
        kept = {record.state_name for record in self._records.values()}
        for path in (self.folder / STATE).glob("*.pt"):
            if path.name not in kept:
                path.unlink(missing_ok=True)

    def _require_space(self, snapshot: Snapshot, state: dict[str, Any]) -> None:
        needed = container.size_in_bytes(snapshot.model, snapshot.tokenizer, state)
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            with contextlib.suppress(OSError):
                self._prune_states()  # a killed save may have left one
            free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise SaveError(
                f"{self.folder}: a snapshot needs {needed / 2**20:,.0f} MiB and the disk has {free / 2**20:,.0f} MiB "
                f"left; free {(needed - free) / 2**20:,.0f} MiB. The snapshots there are untouched."
            )


def _restored(found: Found, optimizer: Any, data: Any, notes: list[str]) -> Restored:
    return Restored(snapshots.read(found.path), found.path, optimizer, data, notes)


def _by_digest(found: list[Found]) -> dict[str, Record]:
    return {entry.sha256: entry.record for entry in found if entry.record}
