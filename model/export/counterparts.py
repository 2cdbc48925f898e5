"""The models of transformers that compute what ours compute, read off its code (5.24), and how they are described.

To add one, add a row to COUNTERPARTS. Common to all: pre-norm blocks, attention scaled by 1 / sqrt(head size), as many
key heads as query heads. QK-norm is an RMSNorm over each head before the rotation, and rotation turns the pairs
(i, i + d / 2), as in transformers' Llama, Qwen3, Apertus, Arcee and Dots1. LayerNorm has torch's epsilon, 1e-5.
"""

import itertools
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from pydantic import ValidationError
from torch import Tensor

from ..attention import NORM_EPS
from ..config import ModelConfig
from ..config.size import expert_size, inner_size
from ..positions import BASE, rope_base
from .architecture import Architecture
from .errors import ExportError

ACTIVATIONS = {"gelu": "gelu", "squared_relu": "relu2", "swiglu": "silu"}  # "gelu" is the exact one there too
LAYER_NORM_EPS = 1e-5


@dataclass(frozen=True)
class Counterpart(Architecture):
    """An architecture of transformers; `name` is its class.

    `derived` and `fixed` are keys of config.json that follow from a ModelConfig or are the same for all.
    """

    model_type: str
    keys: Mapping[str, str]  # of config.json -> ours
    derived: Mapping[str, Callable[[ModelConfig], Any]]
    fixed: Mapping[str, Any]
    transposed: tuple[str, ...] = ()  # our modules whose matrices stand there with rows for columns

    def describe(self, config: ModelConfig) -> dict[str, Any]:
        """All keys of config.json that decide what the model computes, but for the vocabulary size."""
        return {
            "model_type": self.model_type,
            **{theirs: getattr(config, ours) for theirs, ours in self.keys.items()},
            **{theirs: value(config) for theirs, value in self.derived.items()},
            **self.fixed,
        }

    def oriented(self, name: str, tensor: Tensor) -> Tensor:
        """Our tensor as it stands there, and the other way round."""
        return tensor.T if tensor.ndim == 2 and any(f".{module}" in name for module in self.transposed) else tensor


def _rotary_names(norms: tuple[str, str], up: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    attention = "model.layers.{}.self_attn."
    return {
        "tokens": ("model.embed_tokens",),
        "blocks.{}.attention_norm": (f"model.layers.{{}}.{norms[0]}",),
        "blocks.{}.attention.in_proj": (f"{attention}q_proj", f"{attention}k_proj", f"{attention}v_proj"),
        "blocks.{}.attention.query_norm": (f"{attention}q_norm",),
        "blocks.{}.attention.key_norm": (f"{attention}k_norm",),
        "blocks.{}.attention.out_proj": (f"{attention}o_proj",),
        "blocks.{}.mlp_norm": (f"model.layers.{{}}.{norms[1]}",),
        "blocks.{}.mlp.up": tuple(f"model.layers.{{}}.mlp.{name}" for name in up),
        "blocks.{}.mlp.down": ("model.layers.{}.mlp.down_proj",),
        "final_norm": ("model.norm",),
        "lm_head": ("lm_head",),
    }


_LLAMA_NORMS = ("input_layernorm", "post_attention_layernorm")
_GATED = ("gate_proj", "up_proj")  # our `up` holds the rows of the gate before those of the value
_ROTARY_KEYS = {
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_heads",
    "max_position_embeddings": "seq_length",
    "tie_word_embeddings": "tie_embeddings",
    "attention_dropout": "dropout",
    "initializer_range": "init_std",
    "attention_bias": "bias",
}


def rope_parameters(config: ModelConfig) -> dict[str, Any]:
    """How rotations are described; a larger base alone needs no type of its own."""
    if config.rope_factor == 1 or config.rope_scaling == "ntk":
        return {"rope_type": "default", "rope_theta": rope_base(config)}
    described = {"rope_type": config.rope_scaling, "rope_theta": BASE, "factor": config.rope_factor}
    if config.rope_scaling == "yarn":
        described["original_max_position_embeddings"] = config.rope_original_length
    return described


_ROTARY_DERIVED: dict[str, Callable[[ModelConfig], Any]] = {
    "intermediate_size": lambda config: inner_size(config.hidden_size, config.mlp),
    "hidden_act": lambda config: ACTIVATIONS[config.mlp],
    "rope_parameters": rope_parameters,
}
_HEAD_DIM: dict[str, Callable[[ModelConfig], Any]] = {"head_dim": lambda config: config.hidden_size // config.num_heads}
_ROTARY_FIXED = {"rms_norm_eps": NORM_EPS}
_NO_WINDOW: dict[str, Callable[[ModelConfig], Any]] = {
    "layer_types": lambda config: ["full_attention"] * config.num_layers
}


def _rotary(qk_norm: bool, mlp: tuple[str, ...], bias: tuple[bool, ...]) -> dict[str, tuple[Any, ...]]:
    return {"positions": ("rotary",), "norm": ("rms",), "qk_norm": (qk_norm,), "mlp": mlp, "bias": bias}


COUNTERPARTS = (
    Counterpart(
        name="GPT2LMHeadModel",
        model_type="gpt2",
        options={
            "positions": ("learned",),
            "norm": ("layer",),
            "qk_norm": (False,),
            "mlp": ("gelu", "squared_relu"),
            "bias": (True,),
        },
        keys={
            "n_embd": "hidden_size",
            "n_layer": "num_layers",
            "n_head": "num_heads",
            "n_positions": "seq_length",
            "tie_word_embeddings": "tie_embeddings",
            "embd_pdrop": "dropout",
            "attn_pdrop": "dropout",
            "resid_pdrop": "dropout",
            "initializer_range": "init_std",
        },
        derived={
            "n_inner": lambda config: inner_size(config.hidden_size, config.mlp),
            "activation_function": lambda config: ACTIVATIONS[config.mlp],
        },
        fixed={
            "layer_norm_epsilon": LAYER_NORM_EPS,
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "reorder_and_upcast_attn": False,
            "add_cross_attention": False,
        },
        names={
            "tokens": ("transformer.wte",),
            "positions": ("transformer.wpe",),
            "blocks.{}.attention_norm": ("transformer.h.{}.ln_1",),
            "blocks.{}.attention.in_proj": ("transformer.h.{}.attn.c_attn",),
            "blocks.{}.attention.out_proj": ("transformer.h.{}.attn.c_proj",),
            "blocks.{}.mlp_norm": ("transformer.h.{}.ln_2",),
            "blocks.{}.mlp.up": ("transformer.h.{}.mlp.c_fc",),
            "blocks.{}.mlp.down": ("transformer.h.{}.mlp.c_proj",),
            "final_norm": ("transformer.ln_f",),
            "lm_head": ("lm_head",),
        },
        transposed=("attention.in_proj", "attention.out_proj", "mlp.up", "mlp.down"),  # its Conv1D is (in, out)
    ),
    Counterpart(
        name="ApertusForCausalLM",
        model_type="apertus",
        options=_rotary(qk_norm=True, mlp=("squared_relu", "gelu"), bias=(False,)),
        keys=_ROTARY_KEYS,
        derived=_ROTARY_DERIVED,
        fixed=_ROTARY_FIXED,
        names=_rotary_names(("attention_layernorm", "feedforward_layernorm"), ("up_proj",)),
    ),
    Counterpart(
        name="Qwen3ForCausalLM",
        model_type="qwen3",
        options=_rotary(qk_norm=True, mlp=("swiglu",), bias=(False,)),
        keys=_ROTARY_KEYS,
        derived=_ROTARY_DERIVED | _HEAD_DIM | _NO_WINDOW,
        fixed=_ROTARY_FIXED | {"use_sliding_window": False, "sliding_window": None},
        names=_rotary_names(_LLAMA_NORMS, _GATED),
    ),
    Counterpart(
        name="Dots1ForCausalLM",  # Qwen3's attention with DeepSeek-V3's experts
        model_type="dots1",
        options=_rotary(qk_norm=True, mlp=("swiglu",), bias=(False,)) | {"moe_layers": ("all",)},
        keys=_ROTARY_KEYS
        | {
            "n_routed_experts": "num_experts",
            "num_experts_per_tok": "experts_per_token",
            "n_shared_experts": "shared_experts",
            "moe_intermediate_size": "expert_hidden_size",
        },
        derived=_ROTARY_DERIVED
        | _HEAD_DIM
        | _NO_WINDOW
        | {
            "moe_intermediate_size": expert_size,
            "routed_scaling_factor": lambda config: float(config.experts_per_token),
        },
        fixed=_ROTARY_FIXED
        | {"sliding_window": None, "first_k_dense_replace": 0, "norm_topk_prob": True, "n_group": 1, "topk_group": 1},
        names=_rotary_names(_LLAMA_NORMS, _GATED)
        | {
            "blocks.{}.mlp.router": ("model.layers.{}.mlp.gate",),
            "blocks.{}.mlp.experts.{}.up": tuple(f"model.layers.{{}}.mlp.experts.{{}}.{name}" for name in _GATED),
            "blocks.{}.mlp.experts.{}.down": ("model.layers.{}.mlp.experts.{}.down_proj",),
            "blocks.{}.mlp.shared.up": tuple(f"model.layers.{{}}.mlp.shared_experts.{name}" for name in _GATED),
            "blocks.{}.mlp.shared.down": ("model.layers.{}.mlp.shared_experts.down_proj",),
        },
        sparse=True,
    ),
    Counterpart(
        name="ArceeForCausalLM",
        model_type="arcee",
        options=_rotary(qk_norm=False, mlp=("squared_relu", "gelu"), bias=(False, True)),
        keys=_ROTARY_KEYS | {"mlp_bias": "bias"},
        derived=_ROTARY_DERIVED | _HEAD_DIM,
        fixed=_ROTARY_FIXED,
        names=_rotary_names(_LLAMA_NORMS, ("up_proj",)),
    ),
    Counterpart(
        name="LlamaForCausalLM",
        model_type="llama",
        options=_rotary(qk_norm=False, mlp=("swiglu",), bias=(False, True)),
        keys=_ROTARY_KEYS | {"mlp_bias": "bias"},
        derived=_ROTARY_DERIVED | _HEAD_DIM,
        fixed=_ROTARY_FIXED,
        names=_rotary_names(_LLAMA_NORMS, _GATED),
    ),
)


def recognise(description: Mapping[str, Any]) -> tuple[Counterpart, ModelConfig]:
    """The counterpart that a config.json describes, and our model of it.

    Raises ExportError, in one sentence, where that computes something that no model of ours computes.
    """
    model_type = description.get("model_type")
    counterpart = next((row for row in COUNTERPARTS if row.model_type == model_type), None)
    if counterpart is None:
        known = ", ".join(row.model_type for row in COUNTERPARTS)
        raise ExportError(f"has model_type {str(model_type)[:80]!r}, and only {known} can be read.")
    shared = {ours: description[theirs] for theirs, ours in counterpart.keys.items() if theirs in description}
    shared |= _rope_options(description)
    problems: list[list[str]] = []
    for values in itertools.product(*counterpart.options.values()):
        try:
            config = ModelConfig(**{**shared, **dict(zip(counterpart.options, values, strict=True))})
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise ExportError(f"has sizes that no model here has: {first['loc'][0]}, {first['msg']}.") from error
        expected = counterpart.describe(config)
        problems.append([key for key, value in expected.items() if not _same(description.get(key, ...), value)])
        if not problems[-1]:
            return counterpart, config
    key = min(problems, key=len)[0]
    said = f"has {key} {json.dumps(description[key])[:80]}" if key in description else f"lacks {key}"
    raise ExportError(f"{said}, which no {counterpart.name} that equals a model of this package does.")


def _rope_options(description: Mapping[str, Any]) -> dict[str, Any]:
    """The options of ModelConfig by which `rope_parameters` may have described rotations; it is asked again."""
    described = description.get("rope_parameters")
    keys = ("max_position_embeddings", "hidden_size", "num_attention_heads")
    sizes = [description.get(key) for key in keys]
    if not isinstance(described, Mapping) or not all(type(n) is int and n > 0 for n in sizes):
        return {}
    length, size, heads = cast(list[int], sizes)
    kind, factor, base = described.get("rope_type"), described.get("factor"), described.get("rope_theta")
    if kind == "default" and isinstance(base, float) and base > BASE and size // heads > 2:
        kind, factor = "ntk", (base / BASE) ** (1 - 2 / (size // heads))
    if kind not in ("linear", "yarn", "ntk") or not isinstance(factor, (int, float)) or not 1 < factor < math.inf:
        return {}
    return {"rope_scaling": kind, "rope_original_length": round(length / factor)}


def _same(found: Any, expected: Any) -> bool:
    """Equal, and not as True equals 1."""
    return found == expected and isinstance(found, bool) == isinstance(expected, bool)
