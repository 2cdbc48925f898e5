"""One snapshot file: what a .pth holds, writing it, and reading it with every check.

A snapshot is a container (container.py) of tensors and plain values: reading it runs no code.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import AuxiliaryConfig
from . import container
from .vetting import SnapshotError, refuse_newer, shown

FORMAT = 1
_KEYS = ("format", "model", "config", "tokenizer", "preset", "progress")
_SIZES = ("hidden_size", "num_layers", "num_heads", "seq_length", "vocab_size", "eos_token_id")
_COUNTS = ("run", "step", "tokens_in_run", "tokens_total", "skipped")


@dataclass(frozen=True)
class Snapshot:
    """The contents of one file; config and tokenizer are None when it was a bare state dict."""

    model: dict[str, Tensor]
    config: dict[str, Any] | None  # the fields of ModelConfig, vocab_size, eos_token_id
    tokenizer: str | None  # the contents of a tokenizer.json
    preset: dict[str, Any] = field(default_factory=dict)
    progress: dict[str, Any] = field(default_factory=dict)
    fitted: dict[str, Any] = field(default_factory=dict)  # decoding.fitted.Fitted.values; older versions ignore it

    def auxiliary(self) -> AuxiliaryConfig:
        """The `auxiliary` section of the preset, which says which parts the lookahead core has; defaults without one.

        Raises pydantic's ValidationError for a value that this version does not accept.
        """
        known = AuxiliaryConfig.model_fields.keys()
        section = self.preset.get("auxiliary") or {}
        return AuxiliaryConfig(**{key: value for key, value in section.items() if key in known})


def write(path: str | os.PathLike, snapshot: Snapshot) -> str:
    """Write `snapshot` to exactly `path` (floating-point tensors as fp32), fsync it and read it back.

    Returns the file's SHA-256. Raises SnapshotError when a weight is NaN or infinite, the disk is full, the file cannot
    be written, or it does not read back equal; an incomplete file is then removed.
    """
    path = Path(path)
    contents = {
        "format": FORMAT,
        "model": snapshot.model,
        "config": snapshot.config,
        "tokenizer": snapshot.tokenizer,
        "preset": snapshot.preset,
        "progress": snapshot.progress,
    }
    if snapshot.fitted:
        contents["fitted"] = snapshot.fitted
    container.require_space(path, contents)
    _require_finite(path, snapshot.model)
    weights = {name: container.owned(tensor) for name, tensor in snapshot.model.items()}
    return container.write(path, {**contents, "model": weights})


def read(path: str | os.PathLike, verify: bool = True) -> Snapshot:
    """Read a snapshot or a bare state dict. verify=False skips checksums and the search for NaN and infinity, and maps
    the weights without reading them: for a look at configuration or progress.

    Raises SnapshotError, in one sentence, for a file that is missing, damaged, cut short, of another kind or format
    (NewerFormat for a later one), or that would have to run code to be read.
    """
    path = Path(path)
    snapshot = _checked(path, container.read(path, checksums=verify, mapped=not verify))
    if verify:
        _require_finite(path, snapshot.model)
    return snapshot


def _require_finite(path: Path, weights: Mapping[str, Tensor]) -> None:
    for name, tensor in weights.items():
        if tensor.dtype == torch.float64:  # whose largest numbers are infinite in the model
            tensor = tensor.float()
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise SnapshotError(f"{path}: {shown(name)} holds NaN or infinity; use an older checkpoint.")


def _checked(path: Path, contents: Any) -> Snapshot:
    """`contents` as a snapshot, if every key is there with a value of its type; a bare state dict is one too."""
    no_model = SnapshotError(f"{path}: holds no model; give a checkpoint of this program or a state dict.")
    if not isinstance(contents, Mapping) or not contents:
        raise no_model
    if all(isinstance(value, Tensor) for value in contents.values()):
        return Snapshot(_by_name(path, contents), config=None, tokenizer=None)
    if "format" not in contents or "model" not in contents:
        raise no_model
    version = contents["format"]
    if type(version) is not int or not 0 <= version < 10**6:
        raise _wrong_type(path)
    refuse_newer(path, version, FORMAT)
    if version != FORMAT:
        raise SnapshotError(
            f"{path}: has format {version}, and this version reads format {FORMAT}; use another checkpoint."
        )
    missing = [key for key in _KEYS if key not in contents]
    if missing:
        raise SnapshotError(f"{path}: lacks {', '.join(missing)}; use an older checkpoint or a copy.")
    weights, progress, preset = contents["model"], contents["progress"], contents["preset"]
    config, tokenizer, fitted = contents["config"], contents["tokenizer"], contents.get("fitted", {})
    valid = (
        isinstance(tokenizer, str | None)
        and (config is None or _has_counts(config, _SIZES, required=True))
        and _has_counts(progress, _COUNTS, required=False)
        and isinstance(progress.get("evaluation"), dict | None)
        and isinstance(preset, dict)
        and isinstance(fitted, dict)
        and all(isinstance(preset.get(section) or {}, dict) for section in ("model", "train", "data", "auxiliary"))
        and isinstance((preset.get("data") or {}).get("sources", []), list)
    )
    if not valid:
        raise _wrong_type(path)
    return Snapshot(_by_name(path, weights), config, tokenizer, preset, progress, fitted)


def _by_name(path: Path, weights: Any) -> dict[str, Tensor]:
    """`weights` if they are tensors by name."""
    if isinstance(weights, Mapping) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in weights.items()
    ):
        return dict(weights)
    raise _wrong_type(path)


def _wrong_type(path: Path) -> SnapshotError:
    return SnapshotError(f"{path}: a part has the wrong type; use an older checkpoint or a copy.")


def _has_counts(values: Any, keys: tuple[str, ...], *, required: bool) -> bool:
    """Whether `values` is a dict with integers from 0 at `keys`; they may be missing unless `required`."""
    return isinstance(values, dict) and all(
        type(values[key]) is int and values[key] >= 0 if key in values else not required for key in keys
    )
