"""One file, or an exported folder, to the LanguageModel in it; nothing in either runs code."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .config import ModelConfig
from .decoding.decoder import Precision
from .decoding.fitted import Fitted
from .export import read_folder
from .language_model import LanguageModel
from .snapshot import Snapshot, SnapshotError, learned_positions, read, restore
from .transformer import TransformerLM


def load(
    path: str | os.PathLike,
    device: str | torch.device | None = None,
    precision: Precision | Literal["auto"] = "auto",
) -> LanguageModel:
    """Read a snapshot file that training wrote, and return its LanguageModel.

    The weights are in fp32 and in evaluation mode, on `device`; None means CUDA if available, else the CPU.
    `precision` is that of their copies from which text is written: "auto" is bf16 on a GPU that has it, else fp32;
    "int8" has one scale for each row of a matrix. Scores are always fp32's.

    All of the model is built from the file: weights, configuration, tokenizer and lookahead core. `.model` of the
    result is the TransformerLM, `.tokenizer` the tokenizers.Tokenizer.

    Raises SnapshotError, a ValueError, when the file is damaged or does not hold a whole model.
    """
    path = Path(path)
    return _language_model(path, read(path), device, precision)


def from_transformers(
    folder: str | os.PathLike,
    device: str | torch.device | None = None,
    precision: Precision | Literal["auto"] = "auto",
) -> LanguageModel:
    """Read a folder that `export` wrote or transformers saved, to the bit; return its LanguageModel, as `load` does.

    No code of the folder runs, and no pickle is read. Raises ValueError for a model that is none of this package's.
    """
    return _language_model(Path(folder), read_folder(Path(folder)), device, precision)


def _language_model(
    path: Path, contents: Snapshot, device: str | torch.device | None, precision: Precision | Literal["auto"]
) -> LanguageModel:
    if contents.config is None or contents.tokenizer is None:
        raise SnapshotError(
            f"{path}: holds weights only, without configuration and tokenizer; give a checkpoint that training wrote."
        )
    config = dict(contents.config)
    vocab_size, eos_token_id = config.pop("vocab_size"), config.pop("eos_token_id")
    try:
        parts = ModelConfig(**config), vocab_size, contents.auxiliary()
        with torch.device("meta"), _NoValues():
            sketch = TransformerLM(*parts)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:  # of sizes that no tensor has
        raise SnapshotError(
            f"{path}: its configuration does not describe a model of this version; use the version that wrote it."
        ) from error
    _require_match(path, sketch, contents.model)
    model = TransformerLM(*parts)
    restore(model, contents.model)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        model = model.to(device).eval()
        lm = LanguageModel(model, contents.tokenizer, eos_token_id, contents.preset, contents.progress, precision)
        lm.fitted = Fitted.from_values(contents.fitted)
        return lm
    except ValueError as error:
        raise SnapshotError(f"{path}: {error}") from error


class _NoValues(TorchFunctionMode):
    """Skips what only changes values, which a model on the meta device has none of: torch would import its compiler for
    that, which takes most of a second."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (nn.init.normal_, nn.init.uniform_, Tensor.tril):
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def _require_match(path: Path, sketch: TransformerLM, weights: Mapping[str, Tensor]) -> None:
    """Raise SnapshotError unless `weights` are those of `sketch`, a model on the meta device.

    Compared before anything is allocated: a configuration of a few bytes can ask for any size.
    """
    seq_length = sketch.config.seq_length
    missing = sketch.positions is not None and learned_positions(weights) < seq_length
    report = restore(sketch, {name: tensor.to("meta") for name, tensor in weights.items()})
    if report.new or report.left_out or missing:
        raise SnapshotError(f"{path}: weights and configuration do not match. {report.summary()}")
    size = sum(tensor.nbytes for tensor in (*sketch.parameters(), *sketch.buffers()))
    if size > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):  # masks and rotations are in no file
        raise SnapshotError(f"{path}: the model takes {size / 1e9:,.0f} GB, more than this machine has.")
