"""Memory: refuse a model or a micro-batch that does not fit, and keep garbage collection out of the steps."""

import contextlib
import gc
import math
from collections.abc import Iterator
from dataclasses import replace

import psutil
import torch

from engine.config.footprint import Footprint
from engine.config.schema import MOST_ROWS
from engine.device import machine
from engine.device.ranks import Ranks
from engine.errors import PresetError
from model.transformer import TransformerLM
from sources.loading.shape import BatchShape

# DeepSpeed divides by stage: the two moments, then also gradients, then also weights; of 16 bytes a parameter.
DIVIDED_BYTES = {0: 0, 1: 8, 2: 12, 3: 16}


def require_memory_for_weights(model: torch.nn.Module, shape: BatchShape) -> None:
    """Raise PresetError when the weights of `model`, given on the meta device, cannot fit; every rank makes them on its
    CPU."""
    cpu = torch.device("cpu")
    if sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers())) > machine.total_memory_each(cpu):
        raise too_large(replace(shape, micro_batch_size=1), cpu)


def require_memory(model: TransformerLM, shape: BatchShape, stage: int, device: torch.device, probing: bool) -> None:
    """Raise PresetError when a micro-batch of `shape` cannot fit: on a CPU the kernel would kill the process silently.

    Of what a layer keeps for its backward pass this counts only what is certain: 12 activations of hidden_size in two
    bytes. Weights, gradients and AdamW's two moments are fp32.
    """
    activations = shape.row_length * model.config.num_layers * model.config.hidden_size * 12 * 2  # of a row
    divided = DIVIDED_BYTES[stage]
    state = (16 - divided + divided / shape.world_size) * model.num_parameters()
    most_rows = math.floor((machine.total_memory_each(device) - state) / activations)
    if most_rows < 1:
        raise too_large(replace(shape, micro_batch_size=1), device)
    if shape.micro_batch_size > most_rows:
        raise too_large(shape, device, probing, most_rows)


def memory_in_use(device: torch.device) -> int:
    """Return the bytes that this process has reserved on a GPU, or that it has resident in memory."""
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device)
    return psutil.Process().memory_info().rss


def choose_stage(asked: int | str, footprint: Footprint, ranks: Ranks) -> int:
    """Return the lowest ZeRO stage that fits on every rank where `asked`, which is train.zero_stage, is "auto"."""
    if asked != "auto":
        return int(asked)
    return footprint.lowest_stage(asked, min(ranks.gather(machine.total_memory_each(ranks.device))))


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an allocation failed, on a GPU or a CPU."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in text or "not enough memory" in text


def too_large(
    shape: BatchShape, device: torch.device, probing: bool = False, most_rows: int | None = None
) -> PresetError:
    """Return the error that says what to lower when a micro-batch of `shape` does not fit; the step keeps its rows.

    `probing` is train.probe_batch; `most_rows` is how many rows may fit at most, where that is known.
    """
    rows = shape.micro_batch_size
    where = f"the memory of {machine.describe(device)}"
    if rows == 1:
        return PresetError(
            f"One row of {shape.row_length} tokens does not fit into {where}: lower model.seq_length, "
            "model.hidden_size or model.num_layers."
        )
    divisors = {n for i in range(1, math.isqrt(rows) + 1) if rows % i == 0 for n in (i, rows // i)}
    fewer = max(n for n in divisors if n <= min(rows - 1, most_rows or rows))
    steps = shape.grad_accumulation_steps * (rows // fewer)
    change = "set train.probe_batch to false and lower it" if probing else "lower it"
    keeping = f" and train.accumulation_steps to {steps}, which keeps the batch" if steps <= MOST_ROWS else ""
    rows, fewer = rows * shape.windows, fewer * shape.windows  # of the preset, each of one window
    return PresetError(
        f"train.per_gpu_batch_size: {rows} rows of {shape.seq_length} tokens do not fit into {where}; {change} to "
        f"{fewer}{keeping}."
    )


@contextlib.contextmanager
def manual_gc() -> Iterator[None]:
    """Turn Python's automatic garbage collection off in the block: it would delay a step, on each rank at another
    moment. The caller runs gc.collect() on all ranks at once."""
    enabled = gc.isenabled()
    freeze_gc()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if enabled:
            gc.enable()


def freeze_gc() -> None:
    """Collect once, and exclude the objects that exist now from later collections."""
    gc.collect()
    gc.freeze()
