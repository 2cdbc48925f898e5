"""Validation cross-entropy, perplexity and bits per byte, over the same documents for the whole lineage.

Bits per byte counts every token's loss, each document's end included, over the documents' UTF-8 bytes, so that models
with different vocabularies can be compared.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from engine.device.deepspeed_engine import Engine
from engine.device.ranks import Ranks
from model.loss import IGNORE_INDEX
from model.memory import behind_memory
from sources.held_out import ValidationSet


@dataclass(frozen=True)
class Evaluator:
    """Evaluates in micro-batches of the shape that training has: another shape would be compiled again."""

    rows: ValidationSet
    source_names: list[str]
    micro_batch_size: int
    document_mask: bool
    ranks: Ranks
    window: int | None = None  # tokens of one, for a model with memory tokens; else None

    @property
    def is_empty(self) -> bool:
        """Whether no text was found that is held out; the rows' `shortfalls` say why."""
        return not len(self.rows.input_ids)

    @property
    def num_tokens(self) -> int:
        return int((self.rows.labels != IGNORE_INDEX).sum())

    @torch.no_grad()
    def evaluate(self, engine: Engine, wrap: Callable[[Iterable], Iterable] = iter) -> dict[str, Any]:
        """Return nats per token over the validation rows, in total and by source; every rank takes its share. With
        memory tokens, `memory` has those of the labels behind a memory, as they are and with the memory taken away.

        All ranks must call it and run the same number of micro-batches, since ZeRO stage 3 fetches weights in each.
        `wrap` iterates over the micro-batches and may raise, on all ranks alike, to give up.
        """
        begin = time.perf_counter()
        held_out, ranks = self.rows, self.ranks
        nll = torch.zeros(len(self.source_names), dtype=torch.float64)
        tokens = torch.zeros(len(self.source_names), dtype=torch.float64)
        memory = torch.zeros(3, dtype=torch.float64)
        engine.eval()
        rows = len(held_out.input_ids)
        stride = self.micro_batch_size * ranks.world_size
        for first in wrap(range(0, rows, stride)):
            index = torch.arange(first + ranks.rank, first + stride, ranks.world_size)
            # Past the end, row 0 is repeated as padding, so that every micro-batch has the compiled shape.
            padding = index >= rows
            index = index.masked_fill(padding, 0)
            labels = held_out.labels[index].masked_fill(padding[:, None], IGNORE_INDEX)
            documents = held_out.segment_ids[index]
            batch = held_out.input_ids[index].to(ranks.device), labels.to(ranks.device)
            segment_ids = documents.to(ranks.device) if self.document_mask else None
            if self.window is None:
                _, token_nll = engine(*batch, segment_ids)
            else:
                token_nll = engine(*batch, segment_ids, documents=documents.to(ranks.device)).token_nll.clone()
                memory += self._without_memory(engine, batch, segment_ids, documents, token_nll)
            nll.index_add_(0, held_out.source_ids[index], token_nll.double().sum(1).cpu())
            tokens.index_add_(0, held_out.source_ids[index], (labels != IGNORE_INDEX).sum(1).double())
        engine.train()
        for sums in (nll, tokens, memory):
            ranks.sum_tensor(sums)
        by_source = {
            name: _figures(nll[i].item(), tokens[i].item(), held_out.bytes_per_source[name])
            for i, name in enumerate(self.source_names)
            if tokens[i] > 0
        }
        total = _figures(nll.sum().item(), tokens.sum().item(), sum(held_out.bytes_per_source.values()))
        counts = {"tokens": int(tokens.sum()), "seconds": time.perf_counter() - begin}
        return {**total, "sources": by_source, **counts, **_of_memory(memory.tolist())}

    def _without_memory(
        self,
        engine: Engine,
        batch: Sequence[torch.Tensor],
        segment_ids: torch.Tensor | None,
        documents: torch.Tensor,
        nll: torch.Tensor,
    ) -> torch.Tensor:
        """Return (3,) fp64: the sums of the NLLs of the labels behind a memory, with it and without it, and their
        number."""
        assert self.window is not None
        apart = torch.full_like(documents, -1).to(nll.device)  # no window goes on with the one before
        without = engine(*batch, segment_ids, documents=apart).token_nll
        behind = behind_memory(documents, self.window).to(nll.device) & (batch[1] != IGNORE_INDEX)
        sums = [part.double().masked_fill(~behind, 0.0).sum() for part in (nll, without)]
        return torch.stack([*sums, behind.sum().double()]).cpu()


def _of_memory(sums: list[float]) -> dict[str, Any]:
    with_memory, without, number = sums
    if not number:
        return {}
    return {"memory": {"ce": with_memory / number, "ce_without": without / number, "tokens": int(number)}}


def _figures(nll: float, tokens: float, text_bytes: int) -> dict[str, float]:
    ce = nll / max(tokens, 1.0)
    return {"ce": ce, "perplexity": math.exp(min(ce, 700.0)), "bits_per_byte": nll / math.log(2) / max(text_bytes, 1)}
