"""Streams that every block can read: the embedding, the outputs of earlier blocks, and values of tokens.

- Scales: block i reads a_i * x + b_i * x0 instead of x, where x0 is the embedding, normalised; a_i = 1 and b_i = 0 at
  first. (The idea: "value residual" and x0 streams of the GPT-2 speedruns; nanochat.)
- Skips: the outputs of the first half of the blocks are added, with learned scales that are 0 at first, to what the
  blocks of the second half read, the last of them to the first, as in a U-net.
- Value embeddings: in every second block, counted from the last, the values of attention get an embedding of the token
  added, by a gate of each head (block.py): from a table of its own, or as a projection of x0.

What a block reads is complete before the block: `TransformerLM.states` returns it as `before_last`.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import NORM_EPS
from ..config import ModelConfig
from ..config.size import value_layers


class StreamScale(nn.Module):
    """a * x + b * other, of learned scalars (a, b)."""

    def __init__(self, own: float, other: float):
        super().__init__()
        self.scales = nn.Parameter(torch.tensor([own, other]))

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        """Both (B, T, D) -> (B, T, D)."""
        own_scale, other_scale = self.scales.unbind()
        return own_scale * x + other_scale * other


class Skip(nn.Module):
    """x + c * earlier, of a learned scalar c, 0 at first."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, earlier: Tensor) -> Tensor:
        """Both (B, T, D) -> (B, T, D)."""
        return x + self.scale * earlier


class ValueProjection(nn.Module):
    """A matrix (D, D), zero at first."""

    def __init__(self, size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size, size))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return F.linear(x, self.weight)


class Streams(nn.Module):
    """Those that a configuration has on, for a trunk whose embedding has `vocab_rows` rows."""

    def __init__(self, config: ModelConfig, vocab_rows: int):
        super().__init__()
        layers, size = config.num_layers, config.hidden_size
        self.scales = nn.ModuleList(StreamScale(1.0, 0.0) for _ in range(layers)) if config.stream_scales else None
        self.skips = nn.ModuleList(Skip() for _ in range(layers // 2)) if config.skip_connections else None
        self.values = nn.ModuleDict()
        for layer in value_layers(config):
            self.values[str(layer)] = _values(config.value_embeddings, vocab_rows, size)
        self.first_skip = layers - layers // 2  # the first block that gets an earlier one's output
        self.from_ids = config.value_embeddings == "tables"

    @classmethod
    def create(cls, config: ModelConfig, vocab_rows: int) -> "Streams | None":
        """None where every stream is off."""
        on = config.stream_scales or config.skip_connections or config.value_embeddings != "none"
        return cls(config, vocab_rows) if on else None

    def into_block(self, layer: int, x: Tensor, first: Tensor, outputs: list[Tensor]) -> Tensor:
        """What block `layer` reads, (B, T, D): of x, the embedding `first`, normalised, and the `outputs` of the blocks
        before it."""
        if self.skips is not None and layer >= self.first_skip:
            number = layer - self.first_skip
            x = self.skips[number](x, outputs[len(self.skips) - 1 - number])
        return x if self.scales is None else self.scales[layer](x, first)

    def values_of(self, layer: int, input_ids: Tensor | None, first: Tensor) -> Tensor | None:
        """What block `layer` adds to its values (B, T, D); None where it adds nothing. A table adds zeros to what
        stands before the tokens input_ids, None: there are none."""
        name = str(layer)
        if name not in self.values or (self.from_ids and input_ids is None):
            return None
        if not self.from_ids or input_ids is None:
            return self.values[name](first)
        values = self.values[name](input_ids)
        before = first.shape[1] - values.shape[1]
        return F.pad(values, (0, 0, before, 0)) if before else values


def normalised(embedding: Tensor) -> Tensor:
    """(..., D) -> (..., D) of a root mean square of 1."""
    return F.rms_norm(embedding, embedding.shape[-1:], eps=NORM_EPS)


def _values(kind: Literal["none", "tables", "projections"], vocab_rows: int, size: int) -> nn.Module:
    if kind == "tables":
        return nn.Embedding(vocab_rows, size, _weight=torch.zeros(vocab_rows, size))
    return ValueProjection(size)
