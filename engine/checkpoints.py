"""Rotation, verification and recovery of a lineage of snapshots in one folder.

    lm_current.pth  lm_prev.pth  lm_prev2.pth    the three newest generations, each a whole model in one file
    simple_lm_trained.pth                        a mirror of lm_current.pth (a hard link where the disk has them)
    state/GENERATION.pt                          that generation's optimizer moments and data position
    archive/                                     lineages that were moved out of the way
A new file is written under a temporary name, synced, read back and verified before any name changes; then hard links
move the older generations along, so that no name is ever missing. A reader takes the newest generation that verifies.
"""

import contextlib
import errno
import json
import os
import secrets
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine.errors import CheckpointError, SaveError
from model import snapshot as snapshots
from model.snapshot import Snapshot, SnapshotError

CURRENT, PREV, PREV2 = "lm_current.pth", "lm_prev.pth", "lm_prev2.pth"
MIRROR = "simple_lm_trained.pth"
TEMPORARY = ".writing-"


@dataclass(frozen=True)
class Restored:
    """A generation that verified: the snapshot and, where it is whole, the state that belongs to it."""

    snapshot: Snapshot
    path: Path
    optimizer: dict[str, Any] | None
    data: dict[str, Any] | None
    notes: list[str]


class CheckpointFolder:
    """The checkpoints of one lineage. Only rank 0 uses it."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    @property
    def current(self) -> Path:
        return self.folder / CURRENT

    def exists(self) -> bool:
        """Whether there is any snapshot to resume from, whole or not."""
        return any((self.folder / name).exists() for name in (CURRENT, PREV, PREV2))

    def require_writable(self) -> None:
        """Makes the folder. Raises SaveError when nothing could be written there later."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe = self.folder / f"{TEMPORARY}probe"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise SaveError(
                f"{self.folder} cannot be written ({_reason(error)}), so no progress could be kept; "
                "make it writable or free some space."
            ) from None

    def newest(self) -> Restored | None:
        """The newest generation that verifies, or None in an empty folder.

        Raises CheckpointError (exit status 4) when there are files and none can be trusted.
        """
        notes: list[str] = []
        whole: list[tuple[int, int, Path, Snapshot]] = []
        for age, name in enumerate((CURRENT, PREV, PREV2)):
            path = self.folder / name
            if not path.exists():
                continue
            try:
                snapshot = snapshots.read(path)
            except SnapshotError as error:
                notes.append(str(error))
                continue
            whole.append((-_tokens(snapshot), age, path, snapshot))
            if not notes:
                break  # lm_current is whole: the older ones need not be read
        if not whole:
            if notes:
                raise CheckpointError(
                    " ".join(notes) + f" No snapshot in {self.folder} can be trusted; nothing was changed. "
                    "Restore one from a backup, or move the folder away to begin anew."
                )
            return None
        *_, path, snapshot = min(whole, key=lambda entry: entry[:2])
        optimizer, data, problem = self._read_state(snapshot)
        return Restored(snapshot, path, optimizer, data, notes + ([problem] if problem else []))

    def save(self, snapshot: Snapshot, optimizer: dict[str, Any], data: dict[str, Any]) -> Path:
        """Writes one generation and rotates the older ones. Raises SaveError, leaving what was there as it was."""
        self.folder.mkdir(parents=True, exist_ok=True)
        generation = f"{_tokens(snapshot):015d}-{secrets.token_hex(4)}"
        snapshot.progress["generation"] = generation
        try:
            self._sweep()
            self._require_space(snapshot, optimizer)
            self._write_state(generation, optimizer, data)
            fresh = self.folder / f"{TEMPORARY}{CURRENT}"
            snapshots.write(fresh, snapshot)
            self._rotate(fresh)
            self._prune_states()
        except SnapshotError as error:
            raise SaveError(str(error)) from None
        except OSError as error:
            raise SaveError(f"{self.folder}: the snapshot could not be written ({_reason(error)}).") from None
        return self.current

    def step_back(self, generations: int) -> None:
        """Moves the newest `generations` generations aside, under names that no reader takes, so that an older one is
        the newest; never the last one left."""
        for _ in range(generations):
            if not (self.folder / PREV).exists():
                return
            os.replace(self.current, self.folder / f"rolled_back-{time.time_ns()}.pth")
            os.replace(self.folder / PREV, self.current)
            if (self.folder / PREV2).exists():
                os.replace(self.folder / PREV2, self.folder / PREV)
        _sync_folder(self.folder)

    def archive(self) -> Path:
        """Moves the lineage to archive/TIME and returns that folder."""
        target = self.folder / "archive" / time.strftime("%Y%m%d-%H%M%S")
        target.mkdir(parents=True)
        for path in sorted(self.folder.iterdir()):
            if path.name not in ("archive", ".gitignore"):
                path.rename(target / path.name)
        return target

    def _rotate(self, fresh: Path) -> None:
        for source, target in ((PREV, PREV2), (CURRENT, PREV)):
            if (self.folder / source).exists():
                self._replace_with_copy(self.folder / source, self.folder / target)
        os.replace(fresh, self.current)
        _sync_folder(self.folder)
        self._replace_with_copy(self.current, self.folder / MIRROR)

    def _replace_with_copy(self, source: Path, target: Path) -> None:
        """Makes `target` the file that `source` is, without a moment in which either name is missing."""
        temporary = self.folder / f"{TEMPORARY}{target.name}"
        temporary.unlink(missing_ok=True)
        try:
            os.link(source, temporary)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise
            shutil.copyfile(source, temporary)  # a file system without hard links
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        os.replace(temporary, target)
        # Replacing a link by a link to the same file does nothing, and leaves the temporary name behind.
        temporary.unlink(missing_ok=True)
        _sync_folder(self.folder)

    def _write_state(self, generation: str, optimizer: dict[str, Any], data: dict[str, Any]) -> None:
        folder = self.folder / "state"
        folder.mkdir(mode=0o700, exist_ok=True)
        temporary = folder / f"{TEMPORARY}{generation}.pt"
        with temporary.open("wb") as file:
            try:
                torch.save({"generation": generation, "optimizer": optimizer, "data": json.dumps(data)}, file)
            except RuntimeError as error:  # torch's writer hides a full disk behind "unexpected pos"
                raise OSError(errno.ENOSPC, "the disk is full or failing") from error
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, folder / f"{generation}.pt")
        _sync_folder(folder)

    def _read_state(self, snapshot: Snapshot) -> tuple[dict[str, Any] | None, dict[str, Any] | None, str | None]:
        generation = (snapshot.progress or {}).get("generation")
        if generation is None:
            return None, None, "It holds weights only: the optimizer and the data begin anew."
        path = self.folder / "state" / f"{generation}.pt"
        try:
            state = torch.load(path, weights_only=True, map_location="cpu")
            if state["generation"] != generation:
                raise ValueError("it belongs to another generation")
            return state["optimizer"], json.loads(state["data"]), None
        except FileNotFoundError:
            reason = "is missing"
        except Exception as error:  # torch.load raises many kinds for a damaged file
            reason = f"cannot be used ({str(error).splitlines()[0][:120]})"
        return None, None, f"{path} {reason}: the weights continue, the optimizer and the data begin anew."

    def _prune_states(self) -> None:
        """Removes the state of generations that no snapshot belongs to any more."""
        kept = set()
        for name in (CURRENT, PREV, PREV2):
            with contextlib.suppress(SnapshotError):
                if (self.folder / name).exists():
                    kept.add((snapshots.read(self.folder / name, verify=False).progress or {}).get("generation"))
        for path in (self.folder / "state").glob("*.pt"):
            if path.stem not in kept:
                path.unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Removes what a killed save left half written."""
        for folder in (self.folder, self.folder / "state"):
            for path in folder.glob(f"{TEMPORARY}*"):
                path.unlink(missing_ok=True)

    def _require_space(self, snapshot: Snapshot, optimizer: dict[str, Any]) -> None:
        moments = [t for m in optimizer.get("moments", {}).values() for t in m.values()]
        needed = sum(t.numel() * t.element_size() for t in [*snapshot.model.values(), *moments]) + 2**20
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise SaveError(
                f"{self.folder}: a snapshot needs {needed / 2**20:,.0f} MiB and the disk has {free / 2**20:,.0f} MiB "
                f"left; free {(needed - free) / 2**20:,.0f} MiB. The snapshots there are untouched."
            )


def _tokens(snapshot: Snapshot) -> int:
    return int((snapshot.progress or {}).get("tokens_total", 0))


def _reason(error: OSError) -> str:
    return "the disk is full" if error.errno == errno.ENOSPC else error.strerror or type(error).__name__


def _sync_folder(folder: Path) -> None:
    """Makes a rename durable; file systems that cannot sync a folder keep their own order."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
