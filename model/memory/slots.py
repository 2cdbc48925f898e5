"""The memories of a decoder's slots, each of which reads a document of its own."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from .cache import MemoryCache
from .rolling import Rolling
from .window_memory import Trunk, read_memory


class SlotMemory:
    """Keeps the final states of each slot's window, so that what falls out can be summed up."""

    def __init__(self, trunk: Trunk, cache: MemoryCache, hidden_size: int):
        self._trunk, self._cache = trunk, cache
        self._states = cache.keys.new_empty(len(cache.present), cache.window, hidden_size)
        self._rolling: dict[int, Rolling] = {}  # of the slots whose window has moved on

    def begin(self, slot: int) -> None:
        """Forget what the slot has read."""
        if self._rolling.pop(slot, None) is not None:
            self._cache.memory_of(slot, 0)

    def keep(self, slots: Sequence[int], positions: Sequence[int], hidden: Tensor) -> None:
        """Keep the final states (n, D) of tokens at the n positions of the n slots."""
        self._states[list(slots), list(positions)] = hidden.to(self._states.dtype)

    def slide(self, slot: int) -> int:
        """Sum up the older half of a full window; returns the tokens of the other half."""
        assert self._trunk.memory is not None
        length = self._states.shape[1]
        rolling = self._rolling.setdefault(slot, Rolling(self._trunk.memory))
        rolling.add(self._states[slot, : length // 2])
        read_memory(self._trunk, rolling.tokens[None], self._cache.memory_of(slot, len(rolling.tokens)))
        return length - length // 2

    def reorder(self, slots: Sequence[int]) -> None:
        """Let slot i remember what slots[i] does; the cache is reordered by itself."""
        self._states = self._states[list(slots)]
        self._rolling = {at: self._rolling[slot] for at, slot in enumerate(slots) if slot in self._rolling}


class Slots(Protocol):
    """What is asked of a decoder; `memory` is None without memory tokens."""

    window: int
    lengths: list[int]
    memory: SlotMemory | None


def begin(decoder: Slots, slot: int) -> None:
    """Let a slot read another document."""
    decoder.lengths[slot] = 0
    if decoder.memory is not None:
        decoder.memory.begin(slot)


@torch.inference_mode()
def slide(decoder: Slots, slot: int) -> int:
    """Move the window of a full slot on, which is empty then. Returns how many of a document's newest tokens are to be
    read next, the one that did not fit among them: half a window, and with a memory what it does not sum up."""
    decoder.lengths[slot] = 0
    if decoder.memory is None:
        return max(1, decoder.window // 2)
    return decoder.memory.slide(slot) + 1
