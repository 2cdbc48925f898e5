"""A Triton kernel: the cross-entropy of each row of logits and, if wanted, its gradient in place of the logits.

With torch's operators, log-softmax and its gradient read and write a chunk of logits some ten times in fp32; here a row
is read twice and written once, in the dtype of the matrix product. (As Liger's kernels do: arXiv 2410.10989.)
"""

import functools
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from torch import Tensor

BLOCK, WARPS = 4096, 8  # logits that a program holds at a time, and its warps

if find_spec("triton") is not None:  # it comes with torch's builds for GPUs
    triton, tl = import_module("triton"), import_module("triton.language")
    if TYPE_CHECKING:
        constexpr = int
    else:
        constexpr = tl.constexpr

    @triton.jit
    def _nll_and_gradient(
        logits_ptr,
        row_stride,
        labels_ptr,
        weights_ptr,
        nll_ptr,
        ignored,
        COLUMNS: constexpr,
        HAS_WEIGHTS: constexpr,
        WITH_GRADIENTS: constexpr,
        BLOCK: constexpr,
    ):
        row = tl.program_id(0).to(tl.int64)
        logits_ptr += row * row_stride
        label = tl.load(labels_ptr + row)
        counted = label != ignored
        # read before anything is written: another thread may overwrite it
        target = tl.load(logits_ptr + label, mask=counted, other=0.0).to(tl.float32)

        largest = tl.full((), float("-inf"), tl.float32)
        total = tl.full((), 0.0, tl.float32)
        for start in range(0, COLUMNS, BLOCK):
            at = start + tl.arange(0, BLOCK)
            x = tl.load(logits_ptr + at, mask=at < COLUMNS, other=float("-inf")).to(tl.float32)
            before, largest = largest, tl.maximum(largest, tl.max(x, 0))
            total = total * tl.exp(before - largest) + tl.sum(tl.exp(x - largest), 0)
        nll = tl.log(total) + largest - target
        tl.store(nll_ptr + row, tl.where(counted, nll, 0.0))

        if WITH_GRADIENTS:
            weight = tl.where(counted, 1.0, 0.0)
            if HAS_WEIGHTS:
                weight *= tl.load(weights_ptr + row).to(tl.float32)
            scale = weight / total
            for start in range(0, COLUMNS, BLOCK):
                at = start + tl.arange(0, BLOCK)
                x = tl.load(logits_ptr + at, mask=at < COLUMNS, other=float("-inf")).to(tl.float32)
                # d NLL / d logits = softmax - onehot(label), and 0 where the label is ignored
                gradient = tl.exp(x - largest) * scale - tl.where(at == label, weight, 0.0)
                tl.store(logits_ptr + at, gradient.to(logits_ptr.dtype.element_ty), mask=at < COLUMNS)


def nll_and_gradient(
    logits: Tensor, labels: Tensor, token_weights: Tensor | None, token_nll: Tensor, ignored: int, with_gradients: bool
) -> None:
    """Fill token_nll (N,) fp32 with the NLLs in nats of labels (N,) under logits (N, V), 0 where they are `ignored`;
    with_gradients, overwrite the logits with the gradient of the sum of NLLs times token_weights (N,)."""
    assert logits.stride(1) == 1, "the logits of a row must be contiguous"
    weights = token_nll if token_weights is None else token_weights  # not read without weights
    with torch.cuda.device_of(logits):  # else Triton uses the current GPU, not the logits' one
        _nll_and_gradient[(len(logits),)](
            logits,
            logits.stride(0),
            labels,
            weights,
            token_nll,
            ignored,
            COLUMNS=logits.shape[1],
            HAS_WEIGHTS=token_weights is not None,
            WITH_GRADIENTS=with_gradients,
            BLOCK=BLOCK,
            num_warps=WARPS,
        )


@functools.cache
def works_on(device: torch.device) -> bool:
    """Whether the kernel runs on `device`. Only a launch shows it: Triton needs a GPU that it supports, a C compiler,
    Python's headers and a writable folder."""
    if device.type != "cuda":
        return False
    try:
        nll_and_gradient(
            torch.zeros(1, 2, device=device, dtype=torch.bfloat16),
            torch.zeros(1, device=device, dtype=torch.int64),
            None,
            torch.zeros(1, device=device),
            ignored=-100,
            with_gradients=True,
        )
    except Exception:  # whatever failed in Triton or a compiler: torch's operators do the same, slower
        return False
    return True
