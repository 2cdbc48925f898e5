"""Memory: a batch that does not fit is refused, with what to lower; the garbage collector stays out of the steps."""

import contextlib
import gc
import itertools
from collections.abc import Iterator

import torch

from engine.config import Preset
from engine.device import machine
from engine.device.ranks import Ranks
from engine.errors import PresetError


def require_memory_for_weights(preset: Preset, model: torch.nn.Module, ranks: Ranks) -> None:
    """Refuses a model, given on the meta device, whose weights alone cannot fit."""
    needed = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    if needed > machine.total_memory_each(torch.device("cpu")):  # where it is made, for every rank
        train = preset.train.model_copy(update={"per_gpu_batch_size": 1})
        raise too_large(preset.model_copy(update={"train": train}), ranks)


def require_memory(preset: Preset, rows: int, model: torch.nn.Module, ranks: Ranks) -> None:
    """Refuses passes of `rows` rows that cannot fit: on a CPU the kernel would kill the process without a word."""
    shape = preset.model
    tokens = rows * shape.seq_length
    # Of what a layer keeps for its backward pass this counts only what is certain: 12 activations of hidden_size
    # in two bytes. Weights, gradients and AdamW's two moments are fp32, and a ZeRO stage divides some of them.
    divided = {0: 0, 1: 8, 2: 12, 3: 16}[preset.train.zero_stage]
    of_parameters = (16 - divided + divided / ranks.world_size) * model.num_parameters()
    if tokens * shape.num_layers * shape.hidden_size * 12 * 2 + of_parameters > machine.total_memory_each(ranks.device):
        raise too_large(preset, ranks)


def is_out_of_memory(error: RuntimeError) -> bool:
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in text or "not enough memory" in text


def too_large(preset: Preset, ranks: Ranks) -> PresetError:
    """What to lower where a pass of preset.train.per_gpu_batch_size rows does not fit; the rows of a step stay."""
    rows, passes = preset.train.per_gpu_batch_size, preset.train.accumulation_steps
    if rows == 1:
        return PresetError(
            f"One row of {preset.model.seq_length} tokens does not fit into the memory of "
            f"{machine.describe(ranks.device)}: lower model.seq_length, model.hidden_size or model.num_layers."
        )
    of_step = rows * passes
    more = next(n for n in itertools.count(-(-of_step // (rows // 2))) if of_step % n == 0)  # of at most half the rows
    change = "set train.probe_batch to false and lower it" if preset.train.probe_batch else "lower it"
    return PresetError(
        f"train.per_gpu_batch_size: {rows} rows of {preset.model.seq_length} tokens do not fit into the memory of "
        f"{machine.describe(ranks.device)}; {change} to {of_step // more} and "
        f"train.accumulation_steps to {more}, which keeps the batch."
    )


@contextlib.contextmanager
def collected_between_steps() -> Iterator[None]:
    """In the block Python collects no garbage by itself, and never looks through what is there already: in a step that
    would hold all ranks up, at another moment on each. Whoever is in it calls gc.collect()."""
    enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if enabled:
            gc.enable()


def never_look_through_again() -> None:
    """In such a block: what is there by now stays out of all later collections."""
    gc.collect()
    gc.freeze()
