"""The plain values of a snapshot, such as its preset and progress, read without torch and without its weights.

For a look before anything heavy is imported. Nothing is verified but the kind of file (vetting.py): a load reads the
file again with every check.
"""

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .vetting import SnapshotError, pickle_of, vet


class _PlainValues(pickle.Unpickler):
    """Unpickles dicts, lists and plain values; None stands in the place of a tensor."""

    def find_class(self, module: str, name: str) -> Any:
        return OrderedDict if (module, name) == ("collections", "OrderedDict") else lambda *arguments: None

    def persistent_load(self, pid: Any) -> None:
        return None  # a tensor's storage


def read_values(path: str | os.PathLike) -> dict[str, Any]:
    """Return what a snapshot holds beside its weights, by key; {} for a bare state dict.

    Raises SnapshotError, in one sentence, for a file that is missing, damaged or of another kind.
    """
    path = Path(path)
    vet(path, checksums=False)
    try:
        with zipfile.ZipFile(path) as archive:
            contents = _PlainValues(io.BytesIO(pickle_of(archive))).load()
    except Exception as error:  # damaged bytes fail in many ways
        raise SnapshotError(f"{path}: the checkpoint is damaged; use an older one or a copy.") from error
    keys = ("config", "preset", "progress")
    return {key: contents[key] for key in keys if isinstance(contents, Mapping) and key in contents}
