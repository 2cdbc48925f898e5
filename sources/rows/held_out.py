"""Texts kept out of training for evaluation, and samples of the training texts for a tokenizer.

Whether a text is held out depends on nothing but the text (filters.py), so every rank, every run and every tokenizer
agrees, and the same text in two sources is held out of both.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch

from sources.config import DataConfig
from sources.registry import OpenedSources
from sources.rows.filters import is_held_out
from sources.rows.packing import ids_dtype, pack_all
from sources.rows.tokenizer import TextTokenizer
from sources.source import Source, SourceError, read_on

SCAN_FACTOR = 100  # how many times the wanted tokens a source is searched for
BYTES_PER_TOKEN = 4  # an estimate, for the bound above only
OPEN_SHARDS = 8
BURST = 4  # documents from one shard before the next shard's turn


@dataclass
class HeldOut:
    """Packed held-out rows, as a Batch has them: `source_ids` (N,) indexes the configuration, the others are (N, T)."""

    input_ids: torch.Tensor
    labels: torch.Tensor
    segment_ids: torch.Tensor
    source_ids: torch.Tensor
    bytes_per_source: dict[str, int]  # UTF-8 bytes of the texts that the labels cover
    texts: dict[str, list[str]]
    whole: bool = True  # every source was read as far as was wanted


@dataclass
class _Collected:
    texts: list[str] = field(default_factory=list)
    ids: list[np.ndarray] = field(default_factory=list)
    total: int = 0
    whole: bool = True

    def add(self, text: str, ids: np.ndarray) -> None:
        self.texts.append(text)
        self.ids.append(ids)
        self.total += len(ids) + 1


def collect_held_out(
    opened: OpenedSources, config: DataConfig, tokenizer: TextTokenizer, *, seq_length: int, eval_tokens: int
) -> HeldOut:
    """Collect up to `eval_tokens` held-out tokens, in equal parts from the open sources, packed source by source.

    Documents are taken whole and none is longer than a quarter of its source's part, so that no single one decides;
    where a source holds only longer ones, the beginning of the shortest is used. A source that cannot be read to the
    end here contributes what it has given so far, and the rows are not `whole`; the loader will meet the same failure
    and report it.
    """
    names = [spec.source_name for spec in config.sources]
    wanted = eval_tokens // max(1, len(opened.sources))
    dtype = ids_dtype(tokenizer.vocab_size)
    packed, owners, texts, whole = [], [], {}, True
    for name, source in opened.sources.items():
        collected = _collect(source, config, tokenizer, wanted)
        block = pack_all(collected.ids, seq_length, tokenizer.eos_id, dtype, config.packing)
        packed.append(block.unpack())
        owners += [names.index(name)] * len(block)
        texts[name] = collected.texts
        whole &= collected.whole
    return HeldOut(
        *(torch.from_numpy(np.concatenate(arrays)) for arrays in zip(*packed, strict=True)),
        torch.tensor(owners, dtype=torch.int64),
        {name: sum(len(text.encode("utf-8", "surrogatepass")) for text in kept) for name, kept in texts.items()},
        texts,
        whole,
    )


def _collect(source: Source, config: DataConfig, tokenizer: TextTokenizer, wanted: int) -> _Collected:
    collected = _Collected()
    shortest_long: tuple[str, np.ndarray] | None = None
    scanned = 0
    for text in _spread_documents(source, collected):
        scanned += len(text)
        if _is_usable(text, config) and is_held_out(text):
            (ids,) = tokenizer.encode_batch([text])
            if len(ids) + 1 > wanted / 4:
                if shortest_long is None or len(ids) < len(shortest_long[1]):
                    shortest_long = text, ids
            elif collected.total + len(ids) + 1 > wanted:
                break  # at least three quarters are there
            else:
                collected.add(text, ids)
        if scanned > SCAN_FACTOR * BYTES_PER_TOKEN * wanted:
            break
    if not collected.texts and shortest_long is not None and wanted > 1:
        text, ids = shortest_long
        if len(ids) + 1 > wanted:
            ids = ids[: wanted - 1]
            text = tokenizer.decode(ids).rstrip("\N{REPLACEMENT CHARACTER}")  # the cut may fall inside a character
        collected.add(text, ids)
    return collected


def sample_training_texts(opened: OpenedSources, config: DataConfig, max_bytes: int) -> Iterator[str]:
    """Yield training texts (never held-out ones) in turn from all sources and shards, about `max_bytes` in all."""
    readers = [_spread_documents(source) for source in opened.sources.values()]
    total = 0
    while readers:
        for reader in list(readers):
            text = next((text for text in reader if _is_usable(text, config) and not is_held_out(text)), None)
            if text is None:
                readers.remove(reader)
                continue
            yield text
            total += len(text.encode("utf-8", "surrogatepass"))
            if total >= max_bytes:
                return


def _is_usable(text: str, config: DataConfig) -> bool:
    return len(text.strip()) >= max(1, config.min_text_length)


def _spread_documents(source: Source, collected: _Collected | None = None) -> Iterator[str]:
    """Yield each of a source's documents once, a few from each of several shards in turn, shards far apart first.

    Ends early where the source cannot be read, and says so in its notices and in `collected`.
    """
    step = max(1, source.num_shards // OPEN_SHARDS)
    order = [shard for first in range(step) for shard in range(first, source.num_shards, step)]
    waiting = iter(order)
    readers = [read_on(source, shard) for shard in islice(waiting, OPEN_SHARDS)]
    try:
        while readers:
            for reader in list(readers):
                for _ in range(BURST):
                    document = next(reader, None)
                    if document is None:
                        readers.remove(reader)
                        if (shard := next(waiting, None)) is not None:
                            readers.append(read_on(source, shard))
                        break
                    yield document[0]
    except SourceError as error:
        if collected is not None:
            collected.whole = False
        source.notices.append(f"reading stopped early while looking for held-out or sample texts: {error.reason}")
