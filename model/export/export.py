"""A snapshot to a folder of transformers or to a GGUF file, by the name of the target."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from ..config import ModelConfig
from ..snapshot import Snapshot
from ..streams.rescaling import folded
from . import gguf_file, transformers_folder
from .errors import ExportError
from .model_card import model_card

WITHOUT_LOOKAHEAD = "The model was exported without its lookahead core, which writing text does not need."


@dataclass(frozen=True)
class Exported:
    """What was written."""

    path: Path
    architecture: str  # as the other program calls it
    notes: tuple[str, ...]  # what a user should know, in sentences

    def summary(self) -> str:
        """One line for the console."""
        return " ".join([f"{self.path}: exported as {self.architecture}.", *self.notes])


def dtypes(target: str | os.PathLike) -> tuple[str, ...]:
    """The number formats that an export to `target` can have, the default first."""
    return tuple(gguf_file.DTYPES if Path(target).suffix == ".gguf" else transformers_folder.DTYPES)


def export(
    snapshot: Snapshot,
    target: str | os.PathLike,
    dtype: str = "float32",
    licences: Mapping[str, str] | None = None,
) -> Exported:
    """Write a whole snapshot to `target`: a GGUF file where its name ends in .gguf, else a folder of transformers.

    dtype: "float32", "float16" or "bfloat16"; in a GGUF file "q8_0" too. licences: those of the sources, by name, for
    the model card. Raises ExportError, in one or two sentences, where the other program has no such model, the target
    is not free, or it cannot be written; nothing is then left on the disk.
    """
    target = Path(target)
    try:
        config = ModelConfig.model_validate(
            {key: value for key, value in (snapshot.config or {}).items() if key in ModelConfig.model_fields}
        )
    except ValidationError as error:
        raise ExportError("the snapshot's configuration describes no model of this version.") from error
    weights, config = folded(snapshot.model, config)
    snapshot = replace(snapshot, model=weights)
    notes = (WITHOUT_LOOKAHEAD,) if any(name.startswith("latent.") for name in snapshot.model) else ()
    if target.suffix == ".gguf":
        architecture, more = gguf_file.write_gguf(target, snapshot, config, dtype)
        return Exported(target, architecture, (*notes, *more))
    card = partial(model_card, snapshot, config, notes, licences or {})
    return Exported(target, transformers_folder.write_folder(target, snapshot, config, dtype, card), notes)
