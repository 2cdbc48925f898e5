"""A GGUF file for llama.cpp, with its tokenizer.

The table is read off llama.cpp's graphs (src/models) and its converter (conversion/), whose rules are followed: names
of tensors, one-dimensional tensors and positions in fp32, and for Llama and Arcee the rows of queries and keys in
another order, because llama.cpp turns the pairs (2i, 2i + 1) there and the pairs (i, i + d / 2) elsewhere.

Two things are not the converter's. Apertus' activation, xIELU, is alpha_p x^2 + beta x above 0 and
alpha_n (exp(x) - 1 - x) + beta x below: squared ReLU with alpha_p = 1 and the others 0, which llama.cpp reads as
numbers of which it takes the softplus. And llama.cpp computes GPT-2's GELU by the tanh approximation, which the
weights were not trained with.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from torch import Tensor

from ..attention import NORM_EPS
from ..config import ModelConfig
from ..config.size import inner_size
from ..positions import rope_base
from ..snapshot import Snapshot
from .architecture import Architecture, choose, exported_tensors
from .counterparts import LAYER_NORM_EPS, rope_parameters
from .errors import ExportError
from .gguf_tokenizer import add_tokenizer
from .target import require_free, staged

DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}
POSITIONS = "position_embd.weight"  # always in fp32
TANH_GELU = "llama.cpp approximates its GELU by a tanh, so logits there differ a little from the model's own."
LEFT_F16 = "Matrices whose rows q8_0 cannot divide into 32s are in float16."

Keys = Mapping[str, Callable[[ModelConfig], Any]]


@dataclass(frozen=True)
class GGUFArchitecture(Architecture):
    """A graph of llama.cpp; `name` is its own."""

    keys: Keys = field(default_factory=dict)  # metadata; {} stands for the name
    interleaved: bool = False  # it turns the pairs (2i, 2i + 1) of queries and keys
    needs_head: bool = False  # it does not read the embedding as the head of a tied model
    note: str = ""


def _names(**more: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    names: dict[str, tuple[str, ...]] = {
        "tokens": ("token_embd",),
        "blocks.{}.attention_norm": ("blk.{}.attn_norm",),
        "blocks.{}.attention.in_proj": ("blk.{}.attn_q", "blk.{}.attn_k", "blk.{}.attn_v"),
        "blocks.{}.attention.query_norm": ("blk.{}.attn_q_norm",),
        "blocks.{}.attention.key_norm": ("blk.{}.attn_k_norm",),
        "blocks.{}.attention.out_proj": ("blk.{}.attn_output",),
        "blocks.{}.mlp_norm": ("blk.{}.ffn_norm",),
        "blocks.{}.mlp.up": ("blk.{}.ffn_up",),
        "blocks.{}.mlp.down": ("blk.{}.ffn_down",),
        "final_norm": ("output_norm",),
        "lm_head": ("output",),
    }
    renamed = {"up": "blocks.{}.mlp.up", "in_proj": "blocks.{}.attention.in_proj"}
    return names | {renamed.get(name, name): theirs for name, theirs in more.items()}


_GATED = ("blk.{}.ffn_gate", "blk.{}.ffn_up")
_ALL: Keys = {
    "{}.context_length": lambda config: config.seq_length,
    "{}.embedding_length": lambda config: config.hidden_size,
    "{}.block_count": lambda config: config.num_layers,
    "{}.feed_forward_length": lambda config: inner_size(config.hidden_size, config.mlp),
    "{}.attention.head_count": lambda config: config.num_heads,
    "{}.attention.head_count_kv": lambda config: config.num_heads,
}
_ROTARY: Keys = {
    **_ALL,
    "{}.attention.layer_norm_rms_epsilon": lambda config: NORM_EPS,
    "{}.rope.freq_base": rope_base,
    "{}.rope.scaling.type": lambda config: config.rope_scaling if "factor" in rope_parameters(config) else None,
    "{}.rope.scaling.factor": lambda config: rope_parameters(config).get("factor"),
    "{}.rope.scaling.original_context_length": lambda config: rope_parameters(config).get(
        "original_max_position_embeddings"
    ),
    "{}.rope.dimension_count": lambda config: config.hidden_size // config.num_heads,
    "{}.attention.key_length": lambda config: config.hidden_size // config.num_heads,
    "{}.attention.value_length": lambda config: config.hidden_size // config.num_heads,
}
SOFTPLUS_IS_1, SOFTPLUS_IS_0 = 0.5413248546129181, -1000.0  # log(e - 1); far below the smallest number
_SQUARED_RELU: Keys = {
    "xielu.alpha_p": lambda config: SOFTPLUS_IS_1,
    "xielu.alpha_n": lambda config: SOFTPLUS_IS_0,
    "xielu.beta": lambda config: 0.0,
    "xielu.eps": lambda config: -1e-6,
}


def _rotary(qk_norm: bool, mlp: str, bias: tuple[bool, ...]) -> dict[str, tuple[Any, ...]]:
    return {"positions": ("rotary",), "norm": ("rms",), "qk_norm": (qk_norm,), "mlp": (mlp,), "bias": bias}


ARCHITECTURES = (
    GGUFArchitecture(
        name="gpt2",
        options={
            "positions": ("learned",),
            "norm": ("layer",),
            "qk_norm": (False,),
            "mlp": ("gelu",),
            "bias": (True,),
        },
        names=_names(in_proj=("blk.{}.attn_qkv",), positions=("position_embd",)),
        keys={**_ALL, "{}.attention.layer_norm_epsilon": lambda config: LAYER_NORM_EPS},
        note=TANH_GELU,
    ),
    GGUFArchitecture(
        name="apertus",
        options=_rotary(qk_norm=True, mlp="squared_relu", bias=(False,)),
        names=_names(),
        keys=_ROTARY | _SQUARED_RELU,
        needs_head=True,
    ),
    GGUFArchitecture(
        name="qwen3",
        options=_rotary(qk_norm=True, mlp="swiglu", bias=(False,)),
        names=_names(up=_GATED),
        keys=_ROTARY,
    ),
    GGUFArchitecture(
        name="arcee",
        options=_rotary(qk_norm=False, mlp="squared_relu", bias=(False,)),
        names=_names(),
        keys=_ROTARY,
        interleaved=True,
    ),
    GGUFArchitecture(
        name="llama",
        options=_rotary(qk_norm=False, mlp="swiglu", bias=(False, True)),
        names=_names(up=_GATED),
        keys=_ROTARY,
        interleaved=True,
    ),
)


def write_gguf(target: Path, snapshot: Snapshot, config: ModelConfig, dtype: str) -> tuple[str, tuple[str, ...]]:
    """Write the model as one file; return its architecture's name there, and what a user should know.

    Raises ExportError where llama.cpp has no such model or tokenizer, the target is not free, or it cannot be written.
    """
    try:
        import gguf
    except ImportError as error:
        raise ExportError("exporting to GGUF needs the package gguf; pip install 'forethought[export]'.") from error
    if dtype not in DTYPES:
        raise ExportError(f"dtype {dtype!r} is none of {', '.join(DTYPES)}, which a GGUF file can have.")
    architecture = choose(ARCHITECTURES, config, "llama.cpp")
    assert snapshot.config is not None and snapshot.tokenizer is not None, "a whole snapshot"
    vocab_size, eos = snapshot.config["vocab_size"], snapshot.config["eos_token_id"]
    tensors = _tensors(architecture, config, exported_tensors(snapshot.model, vocab_size))
    require_free(target, sum(4 * tensor.numel() for tensor in tensors.values()) + 2**24)
    notes = [architecture.note] if architecture.note else []
    with staged(target) as path:
        writer = gguf.GGUFWriter(path, architecture.name)
        try:
            writer.add_name(str(snapshot.preset.get("name") or "model"))
            writer.add_file_type(getattr(gguf.LlamaFileType, _file_type(dtype)))
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
            writer.add_vocab_size(vocab_size)
            for key, value in architecture.keys.items():
                found, name = value(config), key.format(architecture.name)
                if isinstance(found, float):
                    writer.add_float32(name, found)
                elif isinstance(found, str):
                    writer.add_string(name, found)
                elif found is not None:
                    writer.add_uint32(name, found)
            add_tokenizer(writer, Tokenizer.from_str(snapshot.tokenizer), eos, vocab_size)
            for name, tensor in tensors.items():
                array, kind = _quantized(name, tensor, dtype)
                if kind != DTYPES[dtype] and tensor.ndim > 1 and dtype == "q8_0" and LEFT_F16 not in notes:
                    notes.append(LEFT_F16)
                writer.add_tensor(name, array, raw_dtype=gguf.GGMLQuantizationType[kind])
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()
    return architecture.name, tuple(notes)


def _file_type(dtype: str) -> str:
    return "ALL_F32" if dtype == "float32" else f"MOSTLY_{DTYPES[dtype]}"


def _tensors(architecture: GGUFArchitecture, config: ModelConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the file, by their names there."""
    result: dict[str, Tensor] = {}
    for ours, whole in weights.items():
        names = architecture.their_names(ours)
        parts = list(whole.detach().cpu().float().chunk(len(names)))
        if architecture.interleaved and ".attention.in_proj" in ours:
            parts[:2] = [interleaved(part, config.num_heads) for part in parts[:2]]
        result |= dict(zip(names, parts, strict=True))
    if architecture.needs_head and config.tie_embeddings:
        result["output.weight"] = result["token_embd.weight"]
    return result


def interleaved(rows: Tensor, num_heads: int) -> Tensor:
    """Rows of queries or keys, of which each head's i and i + d / 2 become 2i and 2i + 1, as llama.cpp's Llama turns
    them (LlamaModel.permute in conversion/llama.py)."""
    return rows.unflatten(0, (num_heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def _quantized(name: str, tensor: Tensor, dtype: str) -> tuple[np.ndarray, str]:
    """A tensor's numbers, and the kind of them. Raises ExportError where a finite value becomes infinite."""
    import gguf

    array = np.ascontiguousarray(tensor.numpy())
    kind = "F32" if tensor.ndim == 1 or name == POSITIONS else DTYPES[dtype]
    if kind == "Q8_0" and array.shape[-1] % gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType.Q8_0][0]:
        kind = "F16"
    if kind == "F16" and np.abs(array).max(initial=0.0) > np.finfo(np.float16).max:
        raise ExportError(f"{name} does not fit into float16; export it as float32.")
    return gguf.quantize(array, gguf.GGMLQuantizationType[kind]), kind
