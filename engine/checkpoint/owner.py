"""Whose folder holds the checkpoints of a run on several machines that share no folder: rank 0's.

The others keep a note that says so. A launcher may give rank 0 to another machine at a later start, which must neither
start a new model nor continue an older one that it has.
"""

import contextlib
import os
import secrets
from pathlib import Path

import storage
from engine.device.ranks import Ranks
from engine.errors import CheckpointError

NOTE = "elsewhere.json"


def require_here(folder: Path) -> None:
    """Raise CheckpointError where the last run in `folder` kept its checkpoints on another machine, whatever is here.
    Called by rank 0."""
    note = None
    with contextlib.suppress(OSError, storage.Damaged):
        note = storage.read_record(folder / NOTE)
    if note is not None:
        raise CheckpointError(
            f"The checkpoints of the last run in {folder} are on {note['owner']}. Start so that rank 0 is there; to go "
            f"on here, copy that folder and remove {folder / NOTE}."
        )


def note_owner(folder: Path, ranks: Ranks) -> None:
    """Leave the note on every machine whose `folder` is not the one that rank 0 holds. All ranks must call it."""
    if not ranks.hosts:
        return
    # A name that nobody has looked for: a network file system may remember for a while that a file was not there.
    mark = folder / f".rank0-{ranks.broadcast(secrets.token_hex(8))}"

    def make_mark() -> None:
        (folder / NOTE).unlink(missing_ok=True)
        mark.touch()

    ranks.on_main(make_mark)
    first_here = os.environ.get("LOCAL_RANK", "0") == "0" and not ranks.is_main
    if first_here and not mark.exists():
        with contextlib.suppress(OSError):  # the run does not depend on it
            folder.mkdir(parents=True, exist_ok=True)
            storage.write_record(folder / NOTE, {"owner": ranks.hosts[0]})
    ranks.gather(None)  # every rank has looked
    ranks.on_main(lambda: mark.unlink(missing_ok=True))
