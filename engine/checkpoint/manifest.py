"""Which generations a checkpoint folder holds, by the digest of their snapshots, and the state that belongs to each.

Names move from file to file as generations are rotated, and a file and a note beside it cannot be replaced together: so
a record is found by what a file holds, never by how it is called. manifest.json carries a digest of itself; where it is
lost or damaged, snapshots are known by what they say of themselves.
"""

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import storage
from storage import Damaged

FILE_NAME = "manifest.json"
FORMAT = 1
_GENERATION = re.compile(r"\d{6,15}-[0-9a-f]{8}")


@dataclass(frozen=True)
class Record:
    """One generation: its name, how far it had come, and the digest of its state where that is known."""

    generation: str  # NUMBER-RANDOM; a newer generation has a higher number
    run: int = 0
    step: int = 0
    tokens_in_run: int = 0
    tokens_total: int = 0
    evaluation: dict[str, Any] | None = None
    state_sha256: str | None = None

    @property
    def number(self) -> int:
        return int(self.generation.split("-")[0])

    @property
    def state_name(self) -> str:
        return f"{self.generation}.pt"


def of_progress(progress: dict[str, Any], state_sha256: str | None = None) -> Record | None:
    """The record of a snapshot by its own words; None where it names no generation that could be one of ours."""
    if not _GENERATION.fullmatch(str(progress.get("generation"))):  # it becomes a file's name
        return None
    known = {key: progress[key] for key in Record.__dataclass_fields__ if key in progress}
    if not all(isinstance(known.get(key, 0), int) for key in ("run", "step", "tokens_in_run", "tokens_total")):
        return None
    return Record(**{**known, "state_sha256": state_sha256})


def read(folder: Path) -> dict[str, Record]:
    """The records by the SHA-256 of their snapshots. Raises Damaged when the file is there and not whole."""
    path = folder / FILE_NAME
    try:
        data = storage.read_regular(path)
        contents = storage.unseal(data) if data is not None else {"format": FORMAT, "generations": {}}
        if contents["format"] != FORMAT:
            raise Damaged("it has another format")
        records = {sha: of_progress(record, record["state_sha256"]) for sha, record in contents["generations"].items()}
        if None in records.values():
            raise Damaged("a generation is none of ours")
        return records
    except Exception as error:  # a damaged text fails in many ways
        raise Damaged(f"{path} is damaged and was not used") from error


def write(folder: Path, records: dict[str, Record]) -> None:
    """Replaces the manifest. Raises OSError."""
    generations = {sha: asdict(record) for sha, record in records.items()}
    storage.write_atomic(folder / FILE_NAME, storage.seal({"format": FORMAT, "generations": generations}))
