"""manifest.json: which generations a checkpoint folder holds, by the digest of their snapshots.

Names move from file to file as generations are rotated, and a file and a note beside it cannot be replaced together: so
a record is found by what a file holds, never by how it is called. The manifest carries a digest of itself; where it is
lost or damaged, snapshots are known by what they say of themselves.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from secrets import token_hex
from typing import Any

import storage
from storage import Damaged

FILE_NAME = "manifest.json"
FORMAT = 1
_COUNTS = ("run", "step", "tokens_in_run", "tokens_total")
_GENERATION = re.compile(r"\d{6,15}-[0-9a-f]{8}")


@dataclass(frozen=True)
class GenerationRecord:
    """One generation: its name, how far it had come, and the SHA-256 of its state where that is known."""

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

    @classmethod
    def of_progress(cls, progress: Mapping[str, Any], state_sha256: str | None = None) -> "GenerationRecord":
        """Return the record of a snapshot by what it says of itself.

        Raises ValueError where it names no generation that could be one of ours.
        """
        known = {field.name: progress[field.name] for field in fields(cls) if field.name in progress}
        named = _GENERATION.fullmatch(str(progress.get("generation")))  # it becomes a file's name
        if not named or not all(isinstance(known.get(key, 0), int) for key in _COUNTS):
            raise ValueError("not a generation of this program")
        return cls(**{**known, "state_sha256": state_sha256})


Records = dict[str, GenerationRecord]  # by the SHA-256 of a snapshot


def next_generation(records: Iterable[GenerationRecord]) -> str:
    """Return a name for the generation that follows these."""
    return f"{1 + max((record.number for record in records), default=0):06d}-{token_hex(4)}"


def read(folder: Path) -> Records:
    """Return the records in `folder`. Raises Damaged when the file is there and not whole."""
    path = folder / FILE_NAME
    try:
        contents = storage.read_record(path)
        if contents is None:
            return {}
        if contents["format"] != FORMAT:
            raise Damaged("another format")
        generations = contents["generations"].items()
        return {sha256: GenerationRecord.of_progress(known, known["state_sha256"]) for sha256, known in generations}
    except Exception as error:  # contents of another program fail in many ways
        raise Damaged(f"{path} is damaged and was not used") from error


def write(folder: Path, records: Records) -> None:
    """Replace the manifest. Raises OSError."""
    generations = {sha256: asdict(record) for sha256, record in records.items()}
    storage.write_record(folder / FILE_NAME, {"format": FORMAT, "generations": generations})
