"""What a run has left in its folder: events, the newest generation and its parts."""

from pathlib import Path
from typing import Any

import torch

from engine.checkpoint.folder import CURRENT, CheckpointFolder, RestoredCheckpoint
from engine.events import read


def events_of(folder: Path, event: str) -> list[dict[str, Any]]:
    """The events of one kind, in their order."""
    return [line for line in read(folder) if line["event"] == event]


def newest(folder: Path) -> RestoredCheckpoint:
    """The newest generation, of which there must be one."""
    restored = CheckpointFolder(folder).newest()
    assert restored is not None, f"{folder} holds no snapshot"
    return restored


def whole(folder: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Weights, optimizer and data state of the newest generation, which must have them all."""
    restored = newest(folder)
    assert restored.optimizer is not None and restored.data is not None, restored.notes
    return restored.snapshot.model, restored.optimizer, restored.data


def data_state(folder: Path) -> dict[str, Any]:
    return whole(folder)[2]


def progress(folder: Path, name: str = CURRENT) -> dict[str, Any]:
    return torch.load(folder / name, weights_only=True)["progress"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / CURRENT, weights_only=True)["model"]


def equal(one: Any, other: Any) -> bool:
    """Whether two nests of dictionaries, sequences and tensors are equal to the bit."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(equal(value, other[key]) for key, value in one.items())
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return type(one) is type(other) and one == other
