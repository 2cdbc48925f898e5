"""Text for benchmarks.lookahead: held-out documents in two halves, and training text as the models had it."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.config import Preset
from model import LanguageModel
from model.loss import IGNORE_INDEX
from sources.held_out import collect_validation_set
from sources.loading.loader import Batch, BatchShape, Loader, LoaderOptions
from sources.registry import OpenedSources, open_sources
from sources.rows.tokenizer import TextTokenizer

MAX_TOKENS = 1024  # of a document, so that no single one decides
ROWS = 2  # of a batch of training text: of 16 rows a step, the core's rollouts have two


@dataclass(frozen=True)
class Documents:
    """Rows of T tokens, each of one document; longer documents have several rows."""

    input_ids: Tensor  # (N, T)
    labels: Tensor  # (N, T), IGNORE_INDEX behind the document's end
    document: Tensor  # (N,) from 0
    source: Tensor  # (N,) index of the source's name

    def __len__(self) -> int:
        return int(self.document.max()) + 1

    @property
    def remaining(self) -> Tensor:
        """(N, T): how many labels a row still has, this one counted."""
        return (self.labels != IGNORE_INDEX).flip(1).cumsum(1).flip(1)

    def half(self, odd: bool) -> "Documents":
        """Every second document, numbered anew."""
        rows = (self.document % 2).bool() == odd
        parts = [part[rows] for part in (self.input_ids, self.labels, self.document, self.source)]
        return Documents(*parts[:2], parts[2] // 2, parts[3])


@dataclass(frozen=True)
class Text:
    """`tune` is for fitting and choosing, `test` for the figures: no document is in both, none was trained on."""

    preset: Preset
    opened: OpenedSources
    tokenizer: TextTokenizer
    tune: Documents
    test: Documents
    probe_tokens: int  # of training text for each baseline that is trained

    def training(self, tokens: int, seed: int) -> Iterator[Batch]:
        """Training text up to so many tokens, in the order of that seed."""
        loader = Loader(
            self.opened,
            self.preset.data,
            self.tokenizer,
            BatchShape(ROWS, 1, self.preset.model.seq_length),
            LoaderOptions(seed=seed),
        )
        try:
            for batch in loader:
                yield batch
                if (tokens := tokens - batch.num_tokens) <= 0:
                    return
        finally:
            loader.close()


def collect(preset: Preset, lm: LanguageModel, held_out_tokens: int, probe_tokens: int, device: torch.device) -> Text:
    """What `preset` reads, cut into tokens as `lm` does."""
    opened = open_sources(preset.data)
    tokenizer = TextTokenizer.from_json(lm.tokenizer.to_str(), lm.eos_token_id)
    length = preset.model.seq_length
    held_out = collect_validation_set(
        opened.sources, preset.data, tokenizer, seq_length=length, eval_tokens=held_out_tokens
    )
    rows, documents, sources = [], [], []
    for source, texts in enumerate(held_out.texts.values()):
        for text in texts:
            ids = torch.tensor([tokenizer.eos_id, *lm.encode(text)[:MAX_TOKENS], tokenizer.eos_id])
            first = documents[-1] + 1 if documents else 0
            for start in range(0, len(ids) - 1, length):
                row = ids[start : start + length + 1]
                rows.append(torch.nn.functional.pad(row, (0, length + 1 - len(row)), value=IGNORE_INDEX))
                documents.append(first)
                sources.append(source)
    whole = torch.stack(rows).to(device)
    every = Documents(whole[:, :-1].clamp_min(0), whole[:, 1:], torch.tensor(documents), torch.tensor(sources))
    return Text(preset, opened, tokenizer, every.half(odd=True), every.half(odd=False), probe_tokens)
