"""Decoding by the model itself, on any device; a step on a GPU is one CUDA graph. See decoder.Decoder."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention import RowCache
from ..latent.draft import Drafter
from ..memory import MemoryCache, SlotMemory
from ..transformer import TransformerLM
from .processing import probabilities
from .settings import GenerationSettings


class TorchDecoder:
    """A step computes all slots, whichever are asked for: shapes never change."""

    def __init__(self, model: TransformerLM, slots: int, drafter: Drafter | None = None):
        self.model, self.drafter = model, drafter
        self.draft_length = 0 if drafter is None else drafter.length
        self.window, self.vocab_size, self.lengths = model.config.seq_length, model.vocab_size, [0] * slots
        cache = model.new_cache(slots)
        self.cache = RowCache(cache)
        self.memory: SlotMemory | None = None
        if size := model.config.memory_tokens:
            present = torch.zeros(slots, size, dtype=torch.bool, device=cache.keys.device)
            self.cache = behind = MemoryCache(cache, present)
            self.memory = SlotMemory(model, behind, model.config.hidden_size)
        self._tokens = torch.zeros(slots, 1, dtype=torch.int64, device=self.cache.keys.device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._result: tuple[Tensor, Tensor] | None = None
        self.hidden = self.cache.keys.new_empty(0, model.config.hidden_size)

    @torch.inference_mode()
    def read(self, slot: int, tokens: Sequence[int], every: bool = False) -> Tensor:
        row = self.cache.row(slot, self.lengths[slot])
        ids = torch.tensor([list(tokens)], device=self._tokens.device)
        hidden = self.model.hidden_states(ids, row)[0]
        start, self.lengths[slot] = self.lengths[slot], self.lengths[slot] + len(hidden)
        if self.memory is not None:
            self.memory.keep([slot] * len(hidden), range(start, self.lengths[slot]), hidden)
        self.hidden = hidden
        return self.model.logits(hidden if every else hidden[-1:])

    @torch.inference_mode()
    def step(self, slots: Sequence[int], tokens: Sequence[int]) -> Tensor:
        positions = [min(length, self.window - 1) for length in self.lengths]
        rows = [0] * len(self.lengths)
        for slot, token in zip(slots, tokens, strict=True):
            rows[slot] = token
            self.lengths[slot] += 1
        self.cache.positions.copy_(torch.tensor(positions), non_blocking=True)
        self._tokens.copy_(torch.tensor(rows)[:, None], non_blocking=True)
        logits, hidden = self._replay() if self._tokens.is_cuda else self._forward(max(positions) + 1)
        every = list(slots) == list(range(len(self.lengths)))
        self.hidden = hidden if every else hidden[list(slots)]
        if self.memory is not None:
            self.memory.keep(slots, [positions[slot] for slot in slots], self.hidden)
        return logits if every else logits[list(slots)]

    def reorder(self, slots: Sequence[int], start: int = 0) -> None:
        self.lengths = [self.lengths[slot] for slot in slots]
        if self.memory is not None:
            self.memory.reorder(slots)
        self.cache.reorder(list(slots), start)

    def place(self) -> None:
        self.cache.positions.copy_(torch.tensor(self.lengths), non_blocking=True)

    def verify(self, tokens: Tensor) -> Tensor:
        assert self.memory is None, "it would keep states of tokens that may not stand"
        rows, count = tokens.shape
        self.cache.window = self.window
        every = F.pad(tokens, (0, 0, 0, len(self.lengths) - rows))  # what the other slots get lies beyond their ends
        self.hidden = self.model.hidden_states(every, self.cache)[:rows].flatten(0, 1)
        for slot in range(rows):
            self.lengths[slot] += count
        return self.model.logits(self.hidden).unflatten(0, (rows, count))

    def last_block(self, slot: int) -> tuple[Tensor, Tensor]:
        keys, values = (
            part[-1, slot : slot + 1, :, : self.lengths[slot]] for part in (self.cache.keys, self.cache.values)
        )
        return keys, values

    def draft(self, slot: int, hidden: Tensor, token: Tensor) -> Tensor:
        assert self.drafter is not None
        position, rotary = self.cache.positions[slot], self.model.rotary
        text = self.cache.keys[-1, slot : slot + 1], self.cache.values[-1, slot : slot + 1]
        read = torch.arange(self.window, device=position.device) < position
        rotations = None if rotary is None else rotary.at(position[None], self.window)
        dtype = self.drafter.up.weight.dtype
        embedding = self.model.tokens(token)[None, None].to(dtype)
        states = self.drafter(hidden[None, None].to(dtype), embedding, text, read[None, None, None], rotations)
        return self.model.logits(states[:, 0, 0].to(hidden.dtype))

    def condition(self, logits: Tensor, previous: Tensor) -> Tensor:
        assert self.drafter is not None
        markov = self.drafter.after.weight[: self.vocab_size] @ self.drafter.before(previous)
        return logits + markov

    def shares(self, scores: Tensor, settings: GenerationSettings) -> Tensor:
        return probabilities(scores, settings)

    def _forward(self, window: int) -> tuple[Tensor, Tensor]:
        self.cache.window = window
        hidden = self.model.hidden_states(self._tokens, self.cache)[:, -1]
        return self.model.logits(hidden), hidden

    def _replay(self) -> tuple[Tensor, Tensor]:
        """A step as one launch. What is written during warm-up and capture is written again by the replay."""
        if self._graph is None:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(2):
                    self._forward(self.window)
            torch.cuda.current_stream().wait_stream(stream)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._result = self._forward(self.window)
        self._graph.replay()
        assert self._result is not None
        return self._result
