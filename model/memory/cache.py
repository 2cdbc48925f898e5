"""Keys and values of a window's tokens, and before them those of the memory tokens of each row."""

import torch
from torch import Tensor

from ..attention import Attended, KeyValueCache, RowCache


class MemoryCache(RowCache):
    """A RowCache whose first M columns hold memory tokens; present (B, M) booleans: those that there are."""

    def __init__(self, cache: KeyValueCache, present: Tensor):
        super().__init__(cache)
        self.present = present
        self.window -= present.shape[1]
        self._columns = self._columns[: self.window]

    def row(self, number: int, length: int) -> "MemoryCache":
        rows = slice(number, number + 1)
        tokens = None if self.tokens is None else self.tokens[rows]
        row = MemoryCache(KeyValueCache(self.keys[:, rows], self.values[:, rows], tokens=tokens), self.present[rows])
        row.positions.fill_(length)
        return row

    def memory_of(self, number: int, tokens: int) -> KeyValueCache:
        """The columns of a row's newest `tokens` memory tokens, empty; from now on there are these."""
        size = self.present.shape[1]
        columns, rows = slice(size - tokens, size), slice(number, number + 1)
        self.present[number] = torch.arange(size, device=self.present.device) >= size - tokens
        return KeyValueCache(self.keys[:, rows, :, columns], self.values[:, rows, :, columns])

    def reorder(self, rows: list[int], start: int = 0) -> None:
        super().reorder(rows)
        self.present.copy_(self.present[rows])

    def append(self, layer: int, keys: Tensor, values: Tensor, causal_mask: Tensor | None) -> Attended:
        size = self.present.shape[1]
        positions = self._positions[:, None] + self._columns[: keys.shape[2]]
        self.keys[layer, self._rows[:, None], :, size + positions] = keys.transpose(1, 2)
        self.values[layer, self._rows[:, None], :, size + positions] = values.transpose(1, 2)
        seen, end = self._columns[: self.window] <= positions[..., None], size + self.window
        mask = torch.cat([self.present[:, None].expand(-1, seen.shape[1], -1), seen], dim=2)
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end], mask[:, None]
