"""What one .pth holds; checking it, and loading it into a model that need not be identical.

A snapshot is one file of tensors and primitives (container.py) that needs no unpickling of code (`weights_only=True`).
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import AuxiliaryConfig, ModelConfig
from ..positions import extended_rows
from ..transformer import TransformerLM
from . import container
from .vetting import SnapshotError

FORMAT = 1
_KEYS = ("format", "model", "config", "tokenizer", "preset", "progress")
_SIZES = ("hidden_size", "num_layers", "num_heads", "seq_length", "vocab_size", "eos_token_id")
_COUNTS = ("run", "step", "tokens_in_run", "tokens_total", "skipped")
_WRAPPER_PREFIXES = ("module.", "_orig_mod.")
_NOT_ARCHITECTURE = ("seq_length", "dropout", "init_std", "eos_token_id")


@dataclass(frozen=True)
class Snapshot:
    """The contents of one file; config and tokenizer are None when it was a bare state dict."""

    model: dict[str, Tensor]
    config: dict[str, Any] | None  # ModelConfig's fields, vocab_size, eos_token_id
    tokenizer: str | None  # tokenizer.json
    preset: dict[str, Any] = field(default_factory=dict)
    progress: dict[str, Any] = field(default_factory=dict)

    def auxiliary(self) -> AuxiliaryConfig:
        """The preset's section that says which parts of the latent core the model has; none where there is no preset.

        Raises pydantic's ValidationError for a value that cannot be used.
        """
        known = AuxiliaryConfig.model_fields.keys()
        section = self.preset.get("auxiliary") or {}
        return AuxiliaryConfig(**{key: value for key, value in section.items() if key in known})


@dataclass
class LoadReport:
    """Parameter names by what became of them in `restore`."""

    loaded: list[str] = field(default_factory=list)
    extended: list[str] = field(default_factory=list)  # loaded, with rows added to or ignored from the file's
    new: list[str] = field(default_factory=list)  # in the model only: they keep their initialisation
    left_out: list[str] = field(default_factory=list)  # in the file only, or of another shape

    def summary(self) -> str:
        """One or two sentences for the console."""
        sentences = [f"Loaded {len(self.loaded)} of {len(self.loaded) + len(self.new)} parameters"]
        if self.extended:
            sentences[0] += f" (resized: {self._few(self.extended)})"
        notes = []
        if self.new:
            notes.append(f"starting fresh: {self._few(self.new)}")
        if self.left_out:
            notes.append(f"in the file but not used: {self._few(self.left_out)}")
        if notes:
            notes = "; ".join(notes)
            sentences.append(notes[0].upper() + notes[1:])
        return ". ".join(sentences) + "."

    def _few(self, names: list[str]) -> str:
        """The first of them in a sentence; a part of the latent core of which nothing was loaded is one thing there,
        however many tensors it has."""
        loaded = {_part(name) for name in self.loaded}
        names = list(dict.fromkeys(name if _part(name) in loaded else _part(name) for name in names))
        shown = ", ".join(names[:4])
        return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"


def _part(name: str) -> str:
    """The part of the latent core that a parameter belongs to; the parameter itself where it is no part's."""
    return re.sub(r"^(latent\.\w+)\..*", r"\1", name)


def write(path: str | os.PathLike, snapshot: Snapshot) -> str:
    """Write `snapshot` to exactly `path` (floating-point tensors as fp32), fsync it and read it back.

    Returns the file's SHA-256. Raises SnapshotError when a weight is NaN or infinite, the disk is full, the file cannot
    be written, or it does not read back equal; what was written so far is then removed.
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
    container.require_space(path, contents)
    _require_finite(path, snapshot.model)
    weights = {name: container.owned(tensor) for name, tensor in snapshot.model.items()}
    return container.write(path, {**contents, "model": weights})


def verify(path: str | os.PathLike) -> Snapshot:
    """Read a snapshot and check everything: checksums, keys, format, and that every weight is finite."""
    return read(path, verify=True)


def read(path: str | os.PathLike, verify: bool = True) -> Snapshot:
    """Read a snapshot or a bare state dict; verify=False skips the checksums and the search for NaN and infinity.

    Raises SnapshotError, in one sentence, for a file that is missing, damaged, cut short, of another kind or format, or
    that would have to run code to be read.
    """
    path = Path(path)
    # Unverified means in passing (a progress, a configuration): mapped, the weights are not even read.
    snapshot = _from_contents(path, container.read(path, checksums=verify, mapped=not verify))
    if verify:
        _require_finite(path, snapshot.model)
    return snapshot


def _require_finite(path: Path, weights: Mapping[str, Tensor]) -> None:
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise SnapshotError(f"{path}: {name} holds NaN or infinity; use an older checkpoint.")


def _from_contents(path: Path, contents: Any) -> Snapshot:
    """Tell a snapshot from a bare state dict and check that nothing is missing."""
    if not isinstance(contents, Mapping) or not contents:
        raise SnapshotError(f"{path}: holds no model; give a checkpoint of this program or a state dict.")
    if all(isinstance(value, Tensor) for value in contents.values()):
        contents = {
            "format": FORMAT,
            "model": contents,
            "config": None,
            "tokenizer": None,
            "preset": {},
            "progress": {},
        }
    if "format" not in contents or "model" not in contents:
        raise SnapshotError(f"{path}: holds no model; give a checkpoint of this program or a state dict.")
    if contents["format"] != FORMAT:
        raise SnapshotError(
            f"{path}: has format {contents['format']}, and this version reads format {FORMAT}; "
            "use the version that wrote it."
        )
    missing = [key for key in _KEYS if key not in contents]
    if missing:
        raise SnapshotError(f"{path}: lacks {', '.join(missing)}; use an older checkpoint or a copy.")
    weights, progress, preset = contents["model"], contents["progress"], contents["preset"]
    config, tokenizer = contents["config"], contents["tokenizer"]
    sound = (
        isinstance(weights, Mapping)
        and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in weights.items())
        and isinstance(tokenizer, str | None)
        and (config is None or _has_integers(config, _SIZES, required=True))
        and _has_integers(progress, _COUNTS, required=False)
        and isinstance(progress.get("evaluation"), dict | None)
        and isinstance(preset, dict)
        and all(isinstance(preset.get(section) or {}, dict) for section in ("model", "train", "data", "auxiliary"))
        and isinstance((preset.get("data") or {}).get("sources", []), list)
    )
    if not sound:
        raise SnapshotError(f"{path}: a part has the wrong type; use an older checkpoint or a copy.")
    return Snapshot(dict(weights), config, tokenizer, preset, progress)


def _has_integers(values: Any, keys: tuple[str, ...], *, required: bool) -> bool:
    """Whether `values` is a dict, whose values at these keys, if they are there or required, are integers from 0."""
    return isinstance(values, dict) and all(
        type(values[key]) is int and values[key] >= 0 if key in values else not required for key in keys
    )


@torch.no_grad()
def restore(model: TransformerLM, state_dict: Mapping[str, Tensor]) -> LoadReport:
    """Load what fits into `model`, in place, and report the rest; never raises for names or shapes.

    More positions in the file extend the model first; fewer are extended as positions.py describes. Vocabulary rows may
    differ in padding only. Wrapper prefixes ("module.", "_orig_mod.") are removed.
    """
    weights = {_bare_name(name): tensor for name, tensor in state_dict.items()}
    report = LoadReport()

    positions = weights.get("positions.weight")
    own = None if model.positions is None else model.positions.weight
    if positions is not None and own is not None and positions.shape[1:] == own.shape[1:] and len(positions) > len(own):
        model.extend_max_seq_len(len(positions))
        report.extended.append("positions.weight")

    for name, parameter in model.named_parameters():
        tensor = weights.pop(name, None)
        rows = None if tensor is None else _fitted_rows(model, name, tensor, parameter)
        if rows is None:
            report.new.append(name)
            if tensor is not None:
                report.left_out.append(name)
            continue
        parameter[: len(rows)] = rows
        report.loaded.append(name)
        if rows.shape != tensor.shape:
            report.extended.append(name)
    report.left_out.extend(weights)
    return report


def learned_positions(state_dict: Mapping[str, Tensor]) -> int:
    """How many positions are learned in it; 0 where none are, or where they are rotary."""
    return next((len(rows) for name, rows in state_dict.items() if _bare_name(name) == "positions.weight"), 0)


def _bare_name(name: str) -> str:
    while name.startswith(_WRAPPER_PREFIXES):
        name = name.split(".", 1)[1]
    return name.replace("._orig_mod.", ".")


def _fitted_rows(model: TransformerLM, name: str, tensor: Tensor, parameter: Tensor) -> Tensor | None:
    """The leading rows of `parameter` that `tensor` provides, or None when it does not fit."""
    if tensor.shape == parameter.shape:
        return tensor
    if tensor.ndim != 2 or tensor.shape[1] != parameter.shape[1]:
        return None
    if name == "positions.weight":
        return extended_rows(tensor, len(parameter))
    if name in ("tokens.weight", "lm_head.weight"):
        widest = -(-model.vocab_size // 128) * 128  # 64 and 128 are the paddings in use; beyond is another vocabulary
        if model.vocab_size <= len(tensor) <= widest:
            return tensor[: model.vocab_size]
    return None


def architecture_differences(checkpoint: Mapping[str, Any], preset: Mapping[str, Any]) -> list[str]:
    """One sentence per key in which two configurations describe different networks.

    Sequence length, dropout and the initial spread do not count: weights load across them. A key that one side lacks
    has its default there.
    """
    defaults = {name: info.default for name, info in ModelConfig.model_fields.items()}
    names = [name for name in dict.fromkeys([*checkpoint, *preset]) if name not in _NOT_ARCHITECTURE]
    pairs = [(name, checkpoint.get(name, defaults.get(name)), preset.get(name, defaults.get(name))) for name in names]
    return [
        f"{name} {ours} in the checkpoint, {theirs} in the preset" for name, ours, theirs in pairs if ours != theirs
    ]
