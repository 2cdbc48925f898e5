"""A folder that `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained` open without remote code.

Weights stand in model.safetensors; beyond SHARD_BYTES in several files with an index, as transformers writes them.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from ..config import ModelConfig
from ..snapshot import Snapshot
from .architecture import choose, exported_tensors
from .counterparts import COUNTERPARTS, Counterpart
from .errors import ExportError
from .target import require_free, staged
from .tokenizer_files import exported_tokenizer, tokenizer_config

SHARD_BYTES = 5 * 10**9
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def write_folder(target: Path, snapshot: Snapshot, config: ModelConfig, dtype: str, card: Callable[[str], str]) -> str:
    """Write the model as a folder; return the name of its class there, of which `card` makes the model card.

    Raises ExportError where transformers has no counterpart of the model or its tokenizer, the target is not free, or
    it cannot be written.
    """
    try:
        from safetensors.torch import save_file
    except ImportError as error:
        raise ExportError("exporting to a folder needs safetensors; pip install 'forethought[export]'.") from error
    if dtype not in DTYPES:
        raise ExportError(f"dtype {dtype!r} is none of {', '.join(DTYPES)}, which a folder can have.")
    counterpart = choose(COUNTERPARTS, config, "transformers")
    assert snapshot.config is not None and snapshot.tokenizer is not None, "a whole snapshot"
    eos, vocab_size = snapshot.config["eos_token_id"], snapshot.config["vocab_size"]
    tokenizer = Tokenizer.from_str(snapshot.tokenizer)
    weights = {
        name: tensor
        for ours, whole in exported_tensors(snapshot.model, vocab_size).items()
        for name, tensor in _split(counterpart, ours, whole)
    }
    ids = {"bos_token_id": eos, "eos_token_id": eos, "pad_token_id": eos}
    files = {
        "config.json": _config(counterpart, config) | {"vocab_size": vocab_size, "dtype": dtype} | ids,
        "generation_config.json": ids,
        "tokenizer.json": exported_tokenizer(tokenizer, eos),
        "tokenizer_config.json": tokenizer_config(tokenizer, eos, config.seq_length),
    }
    texts = {name: json.dumps(contents, indent=2, ensure_ascii=False) + "\n" for name, contents in files.items()}
    texts["README.md"] = card(counterpart.name)
    sizes = {name: tensor.numel() * DTYPES[dtype].itemsize for name, tensor in weights.items()}
    require_free(target, sum(sizes.values()) + sum(len(text.encode()) for text in texts.values()) + 2**20)
    shards = _shards(sizes)
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": {}}
        index["weight_map"] = {name: file for file, names in shards.items() for name in names}
        texts["model.safetensors.index.json"] = json.dumps(index, indent=2) + "\n"
    with staged(target) as folder:
        folder.mkdir()
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
        for file, names in shards.items():
            tensors = {name: converted(name, weights[name], DTYPES[dtype]) for name in names}
            try:
                save_file(tensors, folder / file, metadata={"format": "pt"})
            except Exception as error:  # the library's own exception, for a full disk too
                raise OSError(str(error)) from error
    return counterpart.name


def converted(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A contiguous copy on the CPU. Raises ExportError where a finite value becomes infinite."""
    result = tensor.detach().to("cpu", dtype, copy=True).contiguous()
    if not torch.isfinite(result).all():
        raise ExportError(f"{name} does not fit into {str(dtype).removeprefix('torch.')}; export it as float32.")
    return result


def _config(counterpart: Counterpart, config: ModelConfig) -> dict[str, Any]:
    """config.json, but for vocabulary and dtype."""
    described = counterpart.describe(config)
    if "rope_parameters" in described:  # where transformers before 5 looks; it has another base by default
        parameters = described["rope_parameters"]
        scaling = None if parameters["rope_type"] == "default" else parameters
        described |= {"rope_theta": parameters["rope_theta"], "rope_scaling": scaling}
    return {"architectures": [counterpart.name], **described}


def _split(counterpart: Counterpart, name: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
    """Our tensor as the tensors that it is there."""
    names = counterpart.their_names(name)
    parts = tensor.chunk(len(names))
    return [(theirs, counterpart.oriented(name, part)) for theirs, part in zip(names, parts, strict=True)]


def _shards(sizes: Mapping[str, int]) -> dict[str, list[str]]:
    """The tensors of each file: as many as fit into SHARD_BYTES, at least one."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    return {f"model-{n:05}-of-{len(shards):05}.safetensors": names for n, names in enumerate(shards, 1)}
