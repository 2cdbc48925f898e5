"""The checkpoints of one lineage in one folder: locking it, saving a generation, choosing and repairing.

    lm_current.pth  lm_prev.pth  lm_prev2.pth    the three newest generations, each a whole model in one file
    simple_lm_trained.pth                        a mirror of lm_current.pth (a hard link where the disk has them)
    state/GENERATION.pt                          that generation's optimizer moments and data position (state.py)
    manifest.json                                which file is which generation, by digest (manifest.py)
    archive/                                     what was moved out of the way: other lineages, damaged files
    .lock                                        held by the process that trains here
A generation is whole when its snapshot and the state that belongs to it are. Everything of a new one is written under
temporary names, synced, read back and compared before any name changes. A reader takes the newest whole generation,
whatever name it has, and never the snapshot of one with the state of another.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import storage
from engine.checkpoint import load, manifest, parts, state
from engine.checkpoint.hold import Hold
from engine.checkpoint.load import RestoredCheckpoint
from engine.checkpoint.manifest import GenerationRecord, Records
from engine.checkpoint.names import CURRENT, GENERATIONS, MIRROR, NAMES, PREV, PREV2
from engine.checkpoint.rotation import ARCHIVE, archive_folder, arrange, rotate
from engine.checkpoint.state import OptimizerState
from engine.errors import CheckpointError, FolderInUse, FolderMoved, SaveError
from model.snapshot import container
from model.snapshot import file as snapshots
from model.snapshot.file import Snapshot, SnapshotError
from storage import os_error_reason

__all__ = ["CURRENT", "MIRROR", "PREV", "PREV2", "CheckpointFolder", "RestoredCheckpoint"]


class CheckpointFolder:
    """The checkpoints of one lineage. Only rank 0 uses it; `save` may run beside training.

    While it is held, `save` writes into that very folder, whatever its name is now. The other methods raise FolderMoved
    where another folder, or none, has the name, and all do where the lock was removed.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.hold = Hold(self.folder)
        self._records: Records | None = None  # of the generations that are there; None where a save has to look

    @property
    def current(self) -> Path:
        return self.folder / CURRENT

    @contextlib.contextmanager
    def held(self, warn: Callable[[str], None] = print) -> Iterator[None]:
        """Make the folder and keep other runs out of it; `warn` gets a sentence where that cannot be done.

        Raises FolderInUse, or SaveError when nothing could be written there later. The snapshots' names are left to
        `repair`; ask `require_writable` after it.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.folder).close()
            holder = self.hold.take(self.folder, warn)
        except OSError as error:
            raise SaveError(
                f"{self.folder} cannot be written ({os_error_reason(error)}), so no progress could be kept; "
                "make it writable or free some space."
            ) from None
        if holder:
            raise FolderInUse(f"{self.folder} is in use by {holder}. Wait for it, stop it, or use another folder.")
        try:
            self.require_writable(snapshots=())
            yield
        finally:
            self.hold.release()

    def require_writable(self, snapshots: Sequence[str] = NAMES) -> None:
        """Raise SaveError where no save could ever succeed, or no event be written, for what stands in its place."""
        root = self.hold.root
        try:
            parts.require_replaceable(root, snapshots)
            parts.require_log(root)
        except OSError as error:
            sentence = f"{error.filename}: {os_error_reason(error)}, so no progress could be kept; move it away."
            raise SaveError(sentence.replace(str(root), str(self.folder))) from None

    def follow(self) -> str | None:
        """Go where the held folder is now, or to a new one where it is gone, unless it is in its place; returns which,
        in a sentence. Raises SaveError."""
        if self.hold.in_place():
            return None
        try:
            sentence = self.hold.follow()
        except OSError as error:
            raise SaveError(f"{self.folder} is gone, and no other can be made ({os_error_reason(error)}).") from None
        self.folder, self._records = self.hold.path, None
        return sentence

    def newest(self) -> RestoredCheckpoint | None:
        """The newest whole generation, or None in an empty folder; changes nothing.

        Where no generation has its state, the newest snapshot that verifies. Raises CheckpointError (exit status 4)
        when there are files and none can be trusted.
        """
        self._require_in_place()
        return load.newest(self.folder, load.scan(self.folder))

    def repair(self, checkpoint: RestoredCheckpoint) -> list[str]:
        """Give every generation its name again, `checkpoint` being the newest, and move other files to archive/.

        Returns what was done, in sentences.
        """
        self._require_in_place()
        self._records = None
        try:
            storage.sweep(self.folder, self.folder / state.FOLDER)
            found = load.scan(self.folder)
            return arrange(self.folder, found, found.files[found.files.index(checkpoint.file) :], "damaged")
        except OSError as error:
            return [f"The names in {self.folder} could not be put in order ({os_error_reason(error)})."]

    def step_back(self, generations: int) -> None:
        """Move the newest generations to archive/, so that `newest` gives an older one; the last one always stays.

        Raises SaveError.
        """
        self._require_in_place()
        self._records, found = None, load.scan(self.folder)
        if not found.files:
            return
        try:
            arrange(self.folder, found, found.files[min(generations, len(found.files) - 1) :], "diverged")
        except OSError as error:
            raise SaveError(f"{self.folder}: no generation could be archived ({os_error_reason(error)}).") from None

    def save(self, snapshot: Snapshot, optimizer: OptimizerState, data: Mapping[str, object]) -> Path:
        """Write one generation and rotate the older ones. Raises SaveError, leaving those as they were."""
        root = self.hold.root
        if self._records is None:  # once: while saves fail, a name may be missing whose file is still to be kept
            self._records = _records_in(root, self.folder)
        known = self._records
        kept = sorted(known.items(), key=lambda item: item[1].number)[-len(GENERATIONS) :]
        generation = manifest.next_generation(known.values())
        snapshot = replace(snapshot, progress={**snapshot.progress, "generation": generation})
        contents = state.contents_of(generation, optimizer, data)
        fresh = storage.temporary(root / CURRENT)
        try:
            if not self.hold.is_locked():  # another run may be here
                raise FolderMoved(f"{self.folder} was removed, or its lock was; nothing was written.")
            root.mkdir(parents=True, exist_ok=True)
            parts.require_replaceable(root)
            storage.sweep(root, root / state.FOLDER)
            self._require_space(container.size_in_bytes(snapshot.model, snapshot.tokenizer, contents), known)
            record = GenerationRecord(**snapshot.progress, state_sha256=state.write(root, contents))
            written = (snapshots.write(fresh, snapshot), record)
            manifest.write(root, dict([*kept, written]))
            rotate(fresh, [root / name for name in GENERATIONS])
        except (SnapshotError, OSError) as error:
            storage.discard(state.path_of(root, generation))  # no snapshot needs it; the next try makes its own
            raise SaveError(_why_not_saved(self.folder, error).replace(str(root), str(self.folder))) from None
        finally:
            storage.discard(fresh)
        self._records = dict([*kept[1 - len(GENERATIONS) :], written])
        # The generation is safe; what fails here is done again with the next one.
        with contextlib.suppress(OSError):
            state.remove_others(root, self._records)
        with contextlib.suppress(OSError):
            storage.hard_link_or_copy(root / CURRENT, root / MIRROR)
        return self.current

    def archive(self) -> Path:
        """Move the lineage to archive/TIME and return that folder. Raises SaveError."""
        self._require_in_place()
        try:
            target = archive_folder(self.folder)
            for path in sorted(self.folder.iterdir()):
                if path.name not in (ARCHIVE, storage.LOCK, ".gitignore"):
                    path.rename(target / path.name)
        except OSError as error:
            raise SaveError(f"{self.folder}: the lineage was not archived ({os_error_reason(error)}).") from None
        self._records = None
        return target

    def _require_in_place(self) -> None:
        if not self.hold.in_place():
            raise FolderMoved(
                f"{self.folder} was moved, removed or replaced during the run; nothing was changed there."
            )

    def _require_space(self, needed: int, known: Records) -> None:
        if shutil.disk_usage(self.hold.root).free < needed:
            with contextlib.suppress(OSError):
                state.remove_others(self.hold.root, known)  # a killed save may have left one
        free = shutil.disk_usage(self.hold.root).free
        if free < needed:
            raise SaveError(
                f"{self.folder}: a snapshot needs {needed / 2**20:,.0f} MiB and the disk has {free / 2**20:,.0f} MiB "
                f"left; free {(needed - free) / 2**20:,.0f} MiB. The snapshots there are untouched."
            )


def _records_in(folder: Path, shown_as: Path) -> Records:
    try:
        return {file.sha256: file.record for file in load.scan(folder).files if file.record}
    except CheckpointError as error:  # of a later version
        raise SaveError(str(error).replace(str(folder), str(shown_as))) from None


def _why_not_saved(folder: Path, error: OSError | SnapshotError) -> str:
    if isinstance(error, SnapshotError):
        return str(error)
    where = f": {error.filename}" if error.filename and storage.TEMPORARY not in str(error.filename) else ""
    return f"{folder}: the snapshot could not be written ({os_error_reason(error)}{where})."
