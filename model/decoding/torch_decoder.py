"""Decoding by the model itself, on any device; a step on a GPU is one CUDA graph. See decoder.Decoder."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..attention import RowCache
from ..latent.draft import Drafter
from ..transformer import TransformerLM
from .processing import probabilities
from .settings import GenerationSettings


class TorchDecoder:
    """A step computes all slots, whichever are asked for: shapes never change."""

    def __init__(self, model: TransformerLM, slots: int, drafter: Drafter | None = None):
        self.model, self.drafter = model, drafter
        self.draft_length = 0 if drafter is None else drafter.length
        self.window, self.vocab_size, self.lengths = model.config.seq_length, model.vocab_size, [0] * slots
        self.cache = RowCache(model.new_cache(slots))
        self._tokens = torch.zeros(slots, 1, dtype=torch.int64, device=self.cache.keys.device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits: Tensor | None = None

    @torch.inference_mode()
    def read(self, slot: int, tokens: Sequence[int], every: bool = False) -> Tensor:
        row = self.cache.row(slot, self.lengths[slot])
        ids = torch.tensor([list(tokens)], device=self._tokens.device)
        hidden = self.model.hidden_states(ids, row)[0]
        self.lengths[slot] = row.length
        self.hidden = hidden if every else hidden[-1:]
        return self.model.logits(self.hidden)

    @torch.inference_mode()
    def step(self, slots: Sequence[int], tokens: Sequence[int]) -> Tensor:
        positions = [min(length, self.window - 1) for length in self.lengths]
        rows = [0] * len(self.lengths)
        for slot, token in zip(slots, tokens, strict=True):
            rows[slot] = token
            self.lengths[slot] += 1
        self.cache.positions.copy_(torch.tensor(positions), non_blocking=True)
        self._tokens.copy_(torch.tensor(rows)[:, None], non_blocking=True)
        logits = self._replay() if self._tokens.is_cuda else self._forward(max(positions) + 1)
        return logits if list(slots) == list(range(len(self.lengths))) else logits[list(slots)]

    def reorder(self, slots: Sequence[int]) -> None:
        self.lengths = [self.lengths[slot] for slot in slots]
        self.cache.reorder(list(slots))

    def place(self) -> None:
        self.cache.positions.copy_(torch.tensor(self.lengths), non_blocking=True)

    def verify(self, slot: int, tokens: Tensor) -> Tensor:
        assert len(self.lengths) == 1, "one row at a time"
        self.cache.window = self.window
        self.hidden = self.model.hidden_states(tokens[None], self.cache)[0]
        self.lengths[slot] += len(tokens)
        return self.model.logits(self.hidden)

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

    def _forward(self, window: int) -> Tensor:
        self.cache.window = window
        return self.model.logits(self.model.hidden_states(self._tokens, self.cache)[:, -1])

    def _replay(self) -> Tensor:
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
                self._logits = self._forward(self.window)
        self._graph.replay()
        assert self._logits is not None
        return self._logits
