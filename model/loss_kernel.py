"""A Triton kernel for a GPU: each row of logits becomes its cross-entropy and, where asked for, its gradient in place.

Written out in torch, log-softmax and its gradient read and write a chunk of logits some ten times in fp32; here a row
is read twice and written once, in the dtype that the matrix product left it in. (The same plan as Liger's kernels,
arXiv 2410.10989.)
"""

import functools

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

BLOCK, WARPS = 4096, 8  # logits that a program holds at a time, and its warps


if triton is not None:  # it comes with torch's builds for GPUs

    @triton.jit
    def _nll_and_gradient(
        logits_ptr,
        row_stride,
        labels_ptr,
        weights_ptr,
        nll_ptr,
        ignored,
        COLUMNS: tl.constexpr,
        HAS_WEIGHTS: tl.constexpr,
        WITH_GRADIENTS: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        row = tl.program_id(0).to(tl.int64)
        logits_ptr += row * row_stride
        label = tl.load(labels_ptr + row)
        counted = label != ignored
        # read before anything is written: no thread may come too late for it
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
                # d NLL / d logits = softmax - onehot(label), and nothing where the label is ignored
                gradient = tl.exp(x - largest) * scale - tl.where(at == label, weight, 0.0)
                tl.store(logits_ptr + at, gradient.to(logits_ptr.dtype.element_ty), mask=at < COLUMNS)


def nll_and_gradient(
    logits: Tensor, labels: Tensor, token_weights: Tensor | None, token_nll: Tensor, ignored: int, with_gradients: bool
) -> None:
    """Fills token_nll (N,) fp32 with the NLLs in nats of labels (N,) under logits (N, V), 0 where they are `ignored`;
    `with_gradients`, the logits become the gradient of the sum of the NLLs, each times its token_weights (N,)."""
    assert logits.stride(1) == 1, "a row lies in one piece"
    weights = token_nll if token_weights is None else token_weights  # not read without
    with torch.cuda.device_of(logits):  # else Triton takes the current GPU, whichever the logits are on
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
    """Whether the kernel runs there. Only a launch tells: Triton needs a GPU that it knows, a C compiler, Python's
    headers and a folder to write to."""
    if triton is None or device.type != "cuda":
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
    except Exception:  # whatever goes wrong in a foreign compiler, torch's operators do the same, slower
        return False
    return True
