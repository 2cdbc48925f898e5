"""sgemm.c as a function of tensors. Without a C compiler there is none, and torch multiplies."""

import ctypes
from ctypes import c_int, c_int64, c_void_p
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from ..c_library import compiled_library

SOURCE = Path(__file__).with_name("sgemm.c")
FLAGS = ("-O3", "-march=native", "-ffp-contract=fast")


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernel; None where there is no compiler, or where it fails."""
    loaded = compiled_library("products", (SOURCE,), FLAGS)
    if loaded is not None:
        of_matrix = [c_void_p, c_int64, c_int64]
        loaded.sgemm.argtypes = [c_int64] * 3 + of_matrix * 2 + [c_void_p, c_int64, c_int, c_int]
        loaded.sgemm.restype = c_int
    return loaded


def multiply(a: Tensor, b: Tensor, out: Tensor, add: bool = False) -> Tensor:
    """Write a (m, k) times b (k, n), or with `add` add it, into out (m, n); return out.

    fp32 on a CPU. a and b have one stride of 1, and the rows of out are contiguous. Elements do not depend on the
    number of threads. Raises MemoryError where there is no room for the copies of a block.
    """
    loaded = library()
    assert loaded is not None, "who multiplies by the kernel has looked for it"
    (m, k), n = a.shape, b.shape[1]
    assert k == len(b) and out.shape == (m, n) and out.stride(1) == 1 and k > 0
    assert 1 in a.stride() and 1 in b.stride() and {a.dtype, b.dtype, out.dtype} == {torch.float32}
    # Of a single row or column torch may name any stride.
    a_row, a_depth = (a.stride(0), 1) if a.stride(1) == 1 else (1, a.stride(1))
    failed = loaded.sgemm(
        m, n, k, a.data_ptr(), a_row, a_depth, b.data_ptr(), *b.stride(), out.data_ptr(), out.stride(0), add,
        torch.get_num_threads(),
    )  # fmt: skip
    if failed:
        raise MemoryError("no memory for a matrix product")
    return out
