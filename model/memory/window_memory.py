"""The learned parts of memory: a group's states to a memory token, and the places before a window.

A window of T tokens has M groups of T / M. A memory token is a projection of the mean of its group's final states; it
stands before the next window, in the place of its group, so that the newest is the nearest. To the blocks it is one
more embedding: attention reads it in every layer. (Prefixes of summaries: RMT, arXiv 2207.06881; AutoCompressors,
arXiv 2305.14788.)
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import KeyValueCache
from ..config import AuxiliaryConfig, ModelConfig
from ..positions import RotaryPositions
from ..tensors import Memory, States
from .reconstruction import Reconstruction


class WindowMemory(nn.Module):
    """M = config.memory_tokens tokens for a trunk of `config`. Raises ValueError where they are no even divisor of
    seq_length."""

    def __init__(self, config: ModelConfig, auxiliary: AuxiliaryConfig | None):
        super().__init__()
        self.projection = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.places = nn.Embedding(config.memory_tokens, config.hidden_size)  # added to the tokens, the oldest first
        self.extend(config.seq_length)
        weight = 0.0 if auxiliary is None else auxiliary.memory_reconstruction_weight
        self.reconstruction_weight = weight
        self.reconstruction = Reconstruction(config) if weight else None
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=config.init_std)

    @classmethod
    def create(cls, config: ModelConfig, auxiliary: AuxiliaryConfig | None) -> "WindowMemory | None":
        """With initial weights, None where it is off; torch's global generator is left as it was."""
        if not config.memory_tokens:
            return None
        with torch.random.fork_rng(devices=[]):
            return cls(config, auxiliary)

    @property
    def size(self) -> int:
        """M."""
        return self.places.num_embeddings

    @property
    def group(self) -> int:
        """How many tokens a memory token sums up."""
        return self.length // self.size

    def extend(self, length: int) -> None:
        """Sum up windows of `length` tokens. Raises ValueError where memory_tokens are no even divisor of it."""
        if self.size % 2 or length % self.size:
            raise ValueError(f"memory_tokens {self.size} is no even divisor of seq_length {length}; make it one.")
        self.length = length

    def summarise(self, hidden: Tensor, counted: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Final states (B, n * group, D) -> memory tokens (B, n, D), and which there are (B, n): those of groups with a
        state that is `counted` (B, n * group); None: all are."""
        states = hidden.unflatten(1, (-1, self.group))
        if counted is None:
            return self.projection(states.mean(dim=2)), states.new_ones(states.shape[:2], dtype=torch.bool)
        kept = counted.unflatten(1, (-1, self.group))
        number = kept.sum(dim=2)
        mean = (states * kept[..., None]).sum(dim=2) / number.clamp_min(1)[..., None]
        return self.projection(mean), number > 0

    def placed(self, tokens: Tensor) -> Tensor:
        """The newest tokens (B, n, D), n up to M, as the first block reads them."""
        # A call, not the weights: ZeRO stage 3 fetches them for calls.
        return tokens + self.places(torch.arange(self.size - tokens.shape[1], self.size, device=tokens.device))

    def rotations(self, rotary: RotaryPositions, number: int) -> Tensor:
        """Those of the newest `number` tokens, (2, number, d): of the middle of each one's group, which lies before
        position 0."""
        groups = torch.arange(-number, 0, dtype=torch.float64, device=rotary.table.device)
        return rotary.at_places(groups * self.group + (self.group - 1) / 2)


class Trunk(Protocol):
    """What is asked of TransformerLM."""

    memory: WindowMemory | None
    rotary: RotaryPositions | None

    def through_blocks(
        self,
        x: Tensor,
        input_ids: Tensor | None,
        cache: KeyValueCache | None,
        mask: Tensor | None,
        rotations: Tensor | None,
    ) -> States: ...


def behind(
    trunk: Trunk, memory: Memory, x: Tensor, mask: Tensor, rotations: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Embeddings (B, T, D), mask (B or 1, 1, T, T) and rotations of a window -> the same with memory tokens before
    it."""
    own, rotary = trunk.memory, trunk.rotary
    assert own is not None, "this trunk has no memory tokens"
    number = memory.tokens.shape[1]
    if rotary is not None and rotations is not None:
        rotations = torch.cat([own.rotations(rotary, number), rotations], dim=1)
    return torch.cat([own.placed(memory.tokens).to(x.dtype), x], dim=1), memory_mask(memory, mask), rotations


def read_memory(trunk: Trunk, tokens: Tensor, cache: KeyValueCache) -> None:
    """Let an empty cache of n columns read memory tokens (1, n, D), which see nothing but each other."""
    assert trunk.memory is not None, "this trunk has no memory tokens"
    rotations = None if trunk.rotary is None else trunk.memory.rotations(trunk.rotary, tokens.shape[1])
    trunk.through_blocks(trunk.memory.placed(tokens), None, cache, None, rotations)


def memory_mask(memory: Memory, mask: Tensor) -> Tensor:
    """The mask (B or 1, 1, T, T) of a window's tokens -> (B, 1, n + T, n + T) with n memory tokens before them, True
    where attention is allowed.

    Memory tokens see themselves and those before them that there are; a token sees all of these, if it may.
    """
    present, length = memory.present, mask.shape[-1]
    batch, size = present.shape
    ones = torch.ones(size, size, dtype=torch.bool, device=present.device)
    among = (ones.tril() & present[:, None, :]) | torch.eye(size, dtype=torch.bool, device=present.device)
    above = F.pad(among, (0, length))
    readers = present[:, None, :].expand(-1, length, -1)
    if memory.readers is not None:
        readers = readers & memory.readers[..., None]
    below = torch.cat([readers, mask[:, 0].expand(batch, -1, -1)], dim=2)
    return torch.cat([above, below], dim=1)[:, None]
