"""state/GENERATION.pt: what a generation has beside its snapshot: optimizer moments and the data position.

The moments are stored in full, by parameter name, as plain tensors: they can be read without running code, and continue
on any number of processes.
"""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict, TypeGuard

import torch
from torch import Tensor

import storage
from engine.checkpoint.manifest import GenerationRecord
from model.snapshot import container
from model.snapshot.vetting import SnapshotError, refuse_newer

FOLDER = "state"
FORMAT = 1  # which a file of it does not say
MOMENTS = ("exp_avg", "exp_avg_sq")  # Muon may keep the first only
SOAP = ("soap_gram", "soap_basis")  # beside both, where SOAP scales Muon's updates
AVERAGE = "average"  # beside them: that of the weights, where a run averages them
_KEPT = ({MOMENTS[0]}, {*MOMENTS}, {*MOMENTS, *SOAP})


class OptimizerState(TypedDict):
    step: int  # 0: there are no moments yet
    moments: dict[str, dict[str, Tensor]]  # by parameter name, then by name of the moment; fp32, on the CPU


def path_of(folder: Path, generation: str) -> Path:
    return folder / FOLDER / f"{generation}.pt"


def contents_of(generation: str, optimizer: OptimizerState, data: Mapping[str, object]) -> dict[str, Any]:
    """What `write` writes: plain tensors and JSON, which keeps every bit of a float."""
    return {"generation": generation, "optimizer": optimizer if optimizer.get("step") else {}, "data": json.dumps(data)}


def make_folder(folder: Path) -> Path:
    """Make state/ for its owner alone and return it. Raises OSError."""
    path = folder / FOLDER
    path.mkdir(mode=0o700, exist_ok=True)
    with contextlib.suppress(PermissionError):  # on a mount that shows another owner
        path.chmod(0o700)
    return path


def write(folder: Path, contents: dict[str, Any]) -> str:
    """Write a generation's state and return the file's SHA-256. Raises OSError or SnapshotError."""
    make_folder(folder)
    path = path_of(folder, contents["generation"])
    with storage.replacing(path) as fresh:
        return container.write(fresh, contents)


def read(folder: Path, record: GenerationRecord | None) -> tuple[OptimizerState, dict[str, Any]]:
    """A generation's optimizer state and data position.

    Raises SnapshotError when the file is missing, damaged, or another generation's, NewerFormat for a later version's.
    """
    if record is None:
        raise SnapshotError("It holds weights only.")
    path = path_of(folder, record.generation)
    if record.state_sha256 not in (None, sha256(path, folder)):
        raise SnapshotError(f"{path}: is damaged, or belongs to another generation.")
    contents = container.read(path)
    if isinstance(contents, dict):
        refuse_newer(path, contents.get("format"), FORMAT)
    if not isinstance(contents, dict) or contents.get("generation") != record.generation:
        raise SnapshotError(f"{path}: belongs to another generation.")
    try:
        optimizer = contents["optimizer"] or {"step": 0, "moments": {}}
        data = json.loads(contents["data"])
    except (KeyError, TypeError, ValueError, RecursionError):
        optimizer = data = None
    if not (_is_optimizer(optimizer) and isinstance(data, dict) and isinstance(data.get("loader"), dict | None)):
        raise SnapshotError(f"{path}: is not what this program writes.")
    return optimizer, data


def remove_others(folder: Path, records: Mapping[str, GenerationRecord]) -> None:
    """Remove the state of every generation that is not in `records`. Raises OSError."""
    kept = {path_of(folder, record.generation) for record in records.values()}
    for path in (folder / FOLDER).glob("*.pt"):
        if path not in kept:
            path.unlink(missing_ok=True)


def sha256(path: Path, folder: Path) -> str:
    """The SHA-256 of a file in `folder`. Raises SnapshotError, also where a symbolic link leads out of the folder."""
    try:
        storage.refuse_escape(path, folder)
        return container.sha256(path)
    except FileNotFoundError:
        raise SnapshotError(f"{path}: is missing.") from None
    except OSError as error:
        raise SnapshotError(f"{path}: cannot be read ({storage.os_error_reason(error)}).") from None


def _is_optimizer(state: Any) -> TypeGuard[OptimizerState]:
    """Whether it has a step count and finite moments, those of one parameter of one shape."""
    if not (isinstance(state, dict) and isinstance(state.get("step"), int) and isinstance(state.get("moments"), dict)):
        return False
    return all(map(_are_moments, state["moments"].values()))


def _are_moments(moments: Any) -> bool:
    if not isinstance(moments, dict) or moments.keys() - {AVERAGE} not in _KEPT:
        return False
    if not all(isinstance(tensor, Tensor) and bool(torch.isfinite(tensor).all()) for tensor in moments.values()):
        return False
    return len({tensor.shape for tensor in moments.values()}) == 1
