"""A folder of transformers -> a snapshot, to the bit. Reading it runs no code.

Only JSON and safetensors are read: pickles never, and a folder that names code of its own (`auto_map`) is refused. The
memory that a folder can make this process allocate is bounded by the size of its files: shapes are compared with those
of the model that config.json describes before a tensor is read, and rows are at most MAX_SEQ_LENGTH tokens long.
"""

import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import ModelConfig
from ..snapshot import Snapshot
from ..transformer import TransformerLM
from .architecture import exported_tensors, imported_tensors, with_padding
from .counterparts import Counterpart, recognise
from .errors import ExportError
from .tokenizer_files import imported_tokenizer

MAX_SEQ_LENGTH = 2**15  # whose causal mask has a gigabyte
JSON_BYTES = 2**28
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {"F32", "F16", "BF16"}


def read_folder(folder: Path) -> Snapshot:
    """Read a folder that `export` wrote, or transformers, of a model that equals one of this package.

    Raises ExportError, in one or two sentences, for anything else.
    """
    try:
        from safetensors import SafetensorError
    except ImportError as error:
        raise ExportError("reading such a folder needs safetensors; pip install 'forethought[export]'.") from error
    try:
        return _read(folder)
    except ExportError as error:
        raise ExportError(f"{folder}: {error}") from error
    except (SafetensorError, OSError) as error:
        raise ExportError(f"{folder}: its weights cannot be read; export it again, or use a copy.") from error


def _read(folder: Path) -> Snapshot:
    description = _json(folder, "config.json")
    for key in ("auto_map", "quantization_config", "rope_scaling"):
        said_twice = key == "rope_scaling" and description.get(key) == description.get("rope_parameters")
        if description.get(key) and not said_twice:
            raise ExportError(f"config.json has {key}; code, quantized weights and other rotations are not read.")
    counterpart, config = _described(description)
    vocab_size, eos = description.get("vocab_size"), description.get("eos_token_id")
    if type(vocab_size) is not int or type(eos) is not int or not 0 <= eos < vocab_size < 2**31:
        raise ExportError("config.json lacks a vocab_size and one eos_token_id below it.")
    tokenizer = imported_tokenizer(_json(folder, "tokenizer.json"), eos)
    with torch.device("meta"):
        model = TransformerLM(config, vocab_size)
    weights = _weights(folder, counterpart, model)
    described = config.model_dump() | {"vocab_size": vocab_size, "eos_token_id": eos}
    return Snapshot(weights, described, tokenizer.to_str())


def _described(description: Mapping[str, Any]) -> tuple[Counterpart, ModelConfig]:
    try:
        counterpart, config = recognise(description)
    except ExportError as error:
        raise ExportError(f"config.json {error}") from error
    if config.seq_length > MAX_SEQ_LENGTH:
        raise ExportError(f"config.json has rows of {config.seq_length} tokens; at most {MAX_SEQ_LENGTH} can be read.")
    return counterpart, config


def _weights(folder: Path, counterpart: Counterpart, model: TransformerLM) -> dict[str, Tensor]:
    """The model's state dict, in fp32."""
    from safetensors import safe_open

    where: dict[str, Any] = {}
    for path in _weight_files(folder):
        file = safe_open(path, "pt")
        for name in file.keys():  # noqa: SIM118 (no mapping)
            if name in where:
                raise ExportError(f"{path.name}: {name} is in another file too.")
            where[name] = file
    weights = {}
    for ours, like in exported_tensors(model.state_dict(), model.vocab_size).items():
        names = counterpart.their_names(ours)
        expected = counterpart.oriented(ours, like.chunk(len(names))[0]).shape
        parts = []
        for name in names:
            if name not in where:
                raise ExportError(f"its weights lack {name}.")
            found = where[name].get_slice(name)
            if tuple(found.get_shape()) != expected or found.get_dtype() not in DTYPES:
                raise ExportError(
                    f"{name} has {found.get_dtype()} of {tuple(found.get_shape())}; config.json asks for "
                    f"floating-point numbers of {tuple(expected)}."
                )
            parts.append(counterpart.oriented(ours, where.pop(name).get_tensor(name)).float())
        whole = torch.cat(parts) if len(parts) > 1 else parts[0]
        if not torch.isfinite(whole).all():
            raise ExportError(f"{names[0]} holds NaN or infinity; export another checkpoint.")
        weights[ours] = with_padding(ours, whole, model.padded_vocab_size).contiguous()
    if where:
        raise ExportError(f"it holds {min(where)}, which a {counterpart.name} of this description has not.")
    return imported_tensors(weights)


def _weight_files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS).exists():
        return [_regular(folder, WEIGHTS)]
    if (folder / INDEX).exists():
        weight_map = _json(folder, INDEX).get("weight_map")
        names = sorted({str(name) for name in weight_map.values()}) if isinstance(weight_map, dict) else []
        if names and all(Path(name).name == name and name.endswith(".safetensors") for name in names):
            return [_regular(folder, name) for name in names]
        raise ExportError(f"{INDEX} is no list of .safetensors files in this folder.")
    raise ExportError(f"there is no {WEIGHTS}; pickled weights are never read, so save it as safetensors.")


def _json(folder: Path, name: str) -> dict[str, Any]:
    path = _regular(folder, name)
    if path.stat().st_size > JSON_BYTES:
        raise ExportError(f"{name} is larger than {JSON_BYTES >> 20} MiB.")
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ExportError(f"{name} is no JSON; export it again, or use a copy.") from error
    if not isinstance(contents, dict):
        raise ExportError(f"{name} is no JSON object; export it again, or use a copy.")
    return contents


def _regular(folder: Path, name: str) -> Path:
    """A regular file in the folder, or a link to one as in the hub's cache; no device, which might have no end."""
    path = folder / name
    try:
        is_regular = stat.S_ISREG(path.stat().st_mode)
    except OSError as error:
        raise ExportError(f"{name} cannot be opened ({error.strerror}); check the path.") from error
    if not is_regular:
        raise ExportError(f"{name} is no file.")
    return path
