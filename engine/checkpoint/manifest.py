"""manifest.json: which generations a checkpoint folder holds, by the digest of their snapshots.

Names move from file to file as generations are rotated, and a file and a note beside it cannot be replaced together: so
a record is found by what a file holds, never by how it is called. The manifest carries a digest of itself; where it is
lost or damaged, snapshots are known by what they say of themselves.
"""

from collections.abc import Iterable
from pathlib import Path
from secrets import token_hex
from typing import Any

from pydantic import BaseModel, Field

import storage
from model.snapshot.vetting import NewerFormat, refuse_newer
from storage import Damaged

FILE_NAME = "manifest.json"
FORMAT = 1


class GenerationRecord(BaseModel, frozen=True, strict=True):
    """One generation: its name, how far it had come, and the SHA-256 of its state where that is known.

    Raises ValueError, also for a generation that could not be one of ours: it becomes a file's name.
    """

    generation: str = Field(pattern="^[0-9]{6,15}-[0-9a-f]{8}$")  # NUMBER-RANDOM; numbers rise
    run: int = 0
    step: int = 0
    tokens_in_run: int = 0
    tokens_total: int = 0
    evaluation: dict[str, Any] | None = None
    state_sha256: str | None = None

    @property
    def number(self) -> int:
        return int(self.generation.split("-")[0])


Records = dict[str, GenerationRecord]  # by the SHA-256 of a snapshot


def next_generation(records: Iterable[GenerationRecord]) -> str:
    """Return a name for the generation that follows these."""
    return f"{1 + max((record.number for record in records), default=0):06d}-{token_hex(4)}"


def read(folder: Path) -> Records:
    """Return the records in `folder`. Raises Damaged when the file is there and not whole, NewerFormat for a later
    version's."""
    path = folder / FILE_NAME
    try:
        contents = storage.read_record(path)
        if contents is None:
            return {}
        refuse_newer(path, contents["format"], FORMAT)
        if contents["format"] != FORMAT:
            raise Damaged("another format")
        return {sha256: GenerationRecord(**record) for sha256, record in contents["generations"].items()}
    except NewerFormat:
        raise
    except Exception as error:  # contents of another program fail in many ways
        raise Damaged(f"{path} is damaged and was not used") from error


def write(folder: Path, records: Records) -> None:
    """Replace the manifest. Raises OSError."""
    generations = {sha256: record.model_dump() for sha256, record in records.items()}
    storage.write_record(folder / FILE_NAME, {"format": FORMAT, "generations": generations})
