"""kernel.c and sampling.c as one library for ctypes, compiled once for this machine and kept in the user's cache.

Without a C compiler there is no kernel, and decoding uses torch.
"""

import ctypes
from ctypes import POINTER, Structure, c_double, c_float, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path

from ..c_library import compiled_library
from ..config import ModelConfig

SOURCES = tuple(Path(__file__).with_name(name) for name in ("kernel.c", "sampling.c"))
# Sums may be reordered, so that they use vectors; infinities and NaN stay what they are.
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fassociative-math", "-fno-signed-zeros")


class Linear(Structure):
    _fields_ = [("weight", c_void_p), ("scale", c_void_p), ("bias", c_void_p)]


class Norm(Structure):
    _fields_ = [("weight", c_void_p), ("bias", c_void_p), ("eps", c_float)]


class Layer(Structure):
    _fields_ = [
        *((name, Norm) for name in ("attention_norm", "query_norm", "key_norm", "mlp_norm")),
        *((name, Linear) for name in ("qkv", "out", "up", "down")),
        *((name, c_void_p) for name in ("scales", "skip", "output_gate", "value_gate", "value_table")),
        ("value_projection", Linear),
        ("skip_from", c_int32),
    ]


class Model(Structure):
    _fields_ = [
        *((name, c_int32) for name in ("layers", "hidden", "heads", "inner", "vocab", "window", "slots")),
        *((name, c_int32) for name in ("format", "rms_norm", "mlp", "threads", "embedding_norm", "exclusive", "skips")),
        ("context_tokens", c_int32),
        ("context", POINTER(Linear)),
        ("unit", Norm),
        *((name, c_void_p) for name in ("embedding", "bigrams")),
        ("bigram_rows", c_int64),
        *((name, c_void_p) for name in ("read", "learned", "rotary")),
        ("layer", POINTER(Layer)),
        ("final_norm", Norm),
        ("head", Linear),
        ("keys", c_void_p),
        ("values", c_void_p),
    ]


class Drafter(Structure):
    _fields_ = [
        *((name, c_int32) for name in ("length", "rank")),
        *((name, Norm) for name in ("state_norm", "token_norm", "query_norm", "out_norm")),
        *((name, Linear) for name in ("query", "recall", "up", "direct", "down", "after")),
        ("before", c_void_p),
    ]


def knows(config: ModelConfig) -> bool:
    """Whether kernel.c computes what such a model does; torch decodes what it does not know."""
    return not {"logit_softcap", "embedding_size", "memory_tokens"}.intersection(config.additions)


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernel; None where there is no compiler, or where it fails."""
    loaded = compiled_library("decoding", SOURCES, FLAGS)
    if loaded is None:
        return None
    loaded.scratch_size.argtypes = [POINTER(Model), c_int32]
    loaded.scratch_size.restype = c_int64
    loaded.forward.argtypes = [POINTER(Model), c_int32, c_void_p, c_void_p, c_void_p, c_int32, c_void_p, c_void_p]
    loaded.draw.argtypes = [
        c_void_p, c_int32, c_int32, c_float, c_int64, c_double, c_float, POINTER(c_double), POINTER(c_int64), c_int32,
    ]  # fmt: skip
    loaded.shares.argtypes = [c_void_p, c_int32, c_int32, c_float, c_int64, c_double, c_float, c_int32]
    loaded.shares.restype = None
    model, drafter = POINTER(Model), POINTER(Drafter)
    loaded.draft_scratch_size.argtypes, loaded.draft_scratch_size.restype = [model, drafter], c_int64
    loaded.draft.argtypes = [model, drafter, c_void_p, c_int64, c_int32, c_int32, c_void_p, c_void_p]
    loaded.condition.argtypes = [model, drafter, c_int64, c_void_p]
    loaded.forward.restype = loaded.draw.restype = loaded.draft.restype = loaded.condition.restype = None
    return loaded
