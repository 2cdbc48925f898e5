"""What one .pth file holds: written durably, read without running code, loaded into a model that may differ."""

from .file import Snapshot, read, write
from .state_dict import LoadReport, architecture_differences, has_biases, learned_positions, restore
from .vetting import NewerFormat, SnapshotError

__all__ = [
    "LoadReport",
    "NewerFormat",
    "Snapshot",
    "SnapshotError",
    "architecture_differences",
    "has_biases",
    "learned_positions",
    "read",
    "restore",
    "write",
]
