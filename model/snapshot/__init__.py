"""What one .pth file holds: written durably, read without running code, loaded into a model that may differ.

A name is imported when it is asked for: torch takes seconds, and vetting.py and values.py do without it.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_FILES = {
    "file": ("Snapshot", "read", "write"),
    "state_dict": ("LoadReport", "architecture_differences", "has_biases", "learned_positions", "restore"),
    "vetting": ("NewerFormat", "SnapshotError"),
}


def __getattr__(name: str) -> Any:
    file = next((file for file, names in _FILES.items() if name in names), None)
    if file is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{file}", __name__), name)
