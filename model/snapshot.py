"""What one .pth holds; writing it durably, reading it safely, and loading it into a model that need not be identical.

A snapshot is one zip file of tensors and primitives that needs no unpickling of code (`weights_only=True`).

Notable here
- torch.load does not check the zip's checksums: a flipped bit would load silently. `read` checks them first, and
  that the file holds nothing but tensors and plain values (container.py).
- `write` writes to exactly the path it is given and reads the file back; putting it in the place of an older one is the
  caller's business.
- A full disk shows in torch as "unexpected pos ..." with no errno: free space is checked first, and what still fails is
  translated.
"""

import contextlib
import os
import pickle
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.config import ModelConfig
from model.container import SnapshotError, check_container
from model.positions import extended_rows
from model.transformer import TransformerLM

FORMAT = 1
_KEYS = ("format", "model", "config", "tokenizer", "preset", "progress")
_WRAPPER_PREFIXES = ("module.", "_orig_mod.")
_MOST_VALUES = 100_000  # in the preset, the configuration and the progress together
_NOT_ARCHITECTURE = ("seq_length", "dropout", "init_std", "eos_token_id")


@dataclass(frozen=True)
class Snapshot:
    """The contents of one file; config and tokenizer are None when it was a bare state dict."""

    model: dict[str, Tensor]
    config: dict[str, Any] | None  # ModelConfig's fields, vocab_size, eos_token_id
    tokenizer: str | None  # tokenizer.json
    preset: dict[str, Any] = field(default_factory=dict)
    progress: dict[str, Any] = field(default_factory=dict)


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
            sentences[0] += f" (resized: {_few(self.extended)})"
        notes = []
        if self.new:
            notes.append(f"starting fresh: {_few(self.new)}")
        if self.left_out:
            notes.append(f"in the file but not used: {_few(self.left_out)}")
        if notes:
            notes = "; ".join(notes)
            sentences.append(notes[0].upper() + notes[1:])
        return ". ".join(sentences) + "."


def _few(names: list[str]) -> str:
    shown = ", ".join(names[:4])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"


def write(path: str | os.PathLike, snapshot: Snapshot) -> None:
    """Write `snapshot` to exactly `path` (floating-point tensors as fp32), fsync it and read it back.

    Raises SnapshotError when the disk is full, the file cannot be written, or it does not read back whole; what was
    written so far is then removed.
    """
    path = Path(path)
    needed = sum(4 * tensor.numel() for tensor in snapshot.model.values()) + 4 * len(snapshot.tokenizer or "") + 2**20
    created = False
    try:
        free = shutil.disk_usage(path.parent).free
        if free < needed:
            raise SnapshotError(
                f"{path}: {needed / 1e6:.0f} MB are needed and only {free / 1e6:.0f} MB are free; "
                "make room on that disk or choose another folder."
            )
        contents = {
            "format": FORMAT,
            "model": {name: _owned(tensor) for name, tensor in snapshot.model.items()},
            "config": snapshot.config,
            "tokenizer": snapshot.tokenizer,
            "preset": snapshot.preset,
            "progress": snapshot.progress,
        }
        with open(path, "wb") as file:
            created = True
            torch.save(contents, file)
            file.flush()
            os.fsync(file.fileno())
        verify(path)
    except (OSError, RuntimeError, SnapshotError) as error:
        if created:
            with contextlib.suppress(OSError):
                path.unlink()
        if isinstance(error, SnapshotError):
            raise
        # torch reports a failed write as its own RuntimeError and keeps the system's reason in the context
        reason = error if isinstance(error, OSError) else error.__context__
        reason = (reason.strerror if isinstance(reason, OSError) else None) or "the write was cut short"
        raise SnapshotError(
            f"{path}: the checkpoint could not be written ({reason}); check the disk's free space and permissions."
        ) from error


def _owned(tensor: Tensor) -> Tensor:
    """A contiguous fp32 (or integer) CPU tensor; torch.save would write the whole storage behind a view."""
    tensor = tensor.detach().to("cpu", torch.float32 if tensor.is_floating_point() else tensor.dtype).contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def verify(path: str | os.PathLike) -> Snapshot:
    """Read a snapshot and check everything: checksums, keys, format, and that every weight is finite."""
    return read(path, verify=True)


def read(path: str | os.PathLike, verify: bool = True) -> Snapshot:
    """Read a snapshot or a bare state dict; verify=False skips the checksums and the search for NaN and infinity.

    Raises SnapshotError, in one sentence, for a file that is missing, damaged, cut short, of another kind or format, or
    that would have to run code to be read.
    """
    path = Path(path)
    check_container(path, checksums=verify)
    try:
        # Unverified means in passing (a progress, a configuration): mapped, the weights are not even read.
        contents = torch.load(path, map_location="cpu", weights_only=True, mmap=not verify)
    except pickle.UnpicklingError as error:
        raise SnapshotError(
            f"{path}: the file asks for code to be run and was refused; use a checkpoint of tensors and plain values."
        ) from error
    except Exception as error:  # whatever the reader stumbles over in a damaged file: the kinds are many and unnamed
        raise SnapshotError(f"{path}: the checkpoint is damaged; use an older one or a copy.") from error

    snapshot = _from_contents(path, contents)
    if verify:
        for name, tensor in snapshot.model.items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise SnapshotError(f"{path}: {name} holds NaN or infinity; use an older checkpoint.")
    return snapshot


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
        and all(isinstance(name, str) and _is_whole(value) for name, value in weights.items())
        and isinstance(config, dict | None)
        and isinstance(tokenizer, str | None)
        and isinstance(preset, dict)
        and isinstance(progress, dict)
        and _is_plain([config, preset, progress])
    )
    if not sound:
        raise SnapshotError(f"{path}: a part has the wrong type; use an older checkpoint or a copy.")
    return Snapshot(dict(weights), config, tokenizer, preset, progress)


def _is_whole(value: Any) -> bool:
    """Whether this is a tensor with all its elements in the file: a terabyte can be a view of a single number."""
    return isinstance(value, Tensor) and value.nbytes <= value.untyped_storage().nbytes()


def _is_plain(value: Any) -> bool:
    """Whether a value is dicts and lists of primitives, and small: one that holds itself over and over has no end."""
    waiting = [value]
    for _ in range(_MOST_VALUES):
        if not waiting:
            return True
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple):
            waiting += value
        elif not isinstance(value, str | int | float | None):
            return False
    return False


@torch.no_grad()
def restore(model: TransformerLM, state_dict: Mapping[str, Tensor]) -> LoadReport:
    """Load what fits into `model`, in place, and report the rest; never raises for names or shapes.

    More positions in the file extend the model first; fewer are extended as positions.py describes. Vocabulary rows may
    differ in padding only. Wrapper prefixes ("module.", "_orig_mod.") are removed.
    """
    weights = {_bare_name(name): tensor for name, tensor in state_dict.items()}
    report = LoadReport()

    positions = weights.get("positions.weight")
    own = model.positions.weight
    if positions is not None and positions.shape[1:] == own.shape[1:] and len(positions) > len(own):
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
