"""The validation set, and samples of the training texts for a tokenizer.

Whether a text is held out depends on the text alone (rows/filters.py), so every rank, run and tokenizer agrees, and a
text that stands in two sources is held out of both. Near-copies of what is in the validation set are kept out of
training too (rows/near_copies.py); the tokenizer, which comes first, may have been trained on them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch

from sources.config import DataConfig
from sources.retries import Announce, Retries, read_on, silent
from sources.rows.filters import ONE_IN, is_held_out
from sources.rows.packing import IGNORE, ids_dtype, pack_all
from sources.rows.tokenizer import TextTokenizer
from sources.source import Source, SourceError

SCAN_FACTOR = 100  # a source is searched for at most so many times the wanted tokens
BYTES_PER_TOKEN = 4  # an estimate, for the bound above only
OPEN_SHARDS = 8
BURST = 4  # documents from one shard before the next shard's turn


@dataclass
class ValidationSet:
    """N packed rows of T held-out tokens, those of all their windows, as a Batch has them."""

    input_ids: torch.Tensor  # (N, T) int64
    labels: torch.Tensor  # (N, T) int64, -100 is padding
    segment_ids: torch.Tensor  # (N, T) int32, -1 is padding
    source_ids: torch.Tensor  # (N,) int64 index into the configuration's sources
    bytes_per_source: dict[str, int]  # UTF-8 bytes of the texts that the labels cover
    texts: dict[str, list[str]]  # by source
    shortfalls: dict[str, str] = field(default_factory=dict)  # why a source gave less than its part
    whole: bool = True  # no source failed before enough of it was read


@dataclass
class _Collected:
    """Held-out documents of one source."""

    texts: list[str] = field(default_factory=list)
    ids: list[np.ndarray] = field(default_factory=list)
    tokens: int = 0
    shortfall: str = ""
    whole: bool = True

    def add(self, text: str, ids: np.ndarray) -> None:
        self.texts.append(text)
        self.ids.append(ids)
        self.tokens += len(ids) + 1


def collect_validation_set(
    sources: Mapping[str, Source],
    config: DataConfig,
    tokenizer: TextTokenizer,
    *,
    seq_length: int,
    eval_tokens: int,
    announce: Announce = silent,
    windows: int = 1,
) -> ValidationSet:
    """Collect up to `eval_tokens` held-out tokens, in equal parts from the open `sources`, packed source by source.

    Documents are taken whole, and none is longer than a quarter of its source's part, so that no single one decides.
    Where a source holds only longer ones, the beginning of the shortest is used. A source that fails contributes what
    it has given so far, and the set is not `whole`; the loader meets the same failure and reports it. `shortfalls` says
    of each source that gave less than three quarters of its part what ended the search in it.
    """
    names = [spec.source_name for spec in config.sources]
    wanted = eval_tokens // max(1, len(sources))
    collected = {name: _collect(source, config, tokenizer, wanted, announce) for name, source in sources.items()}
    dtype = ids_dtype(tokenizer.vocab_size)
    blocks = [
        pack_all(found.ids, seq_length, tokenizer.eos_id, dtype, config.packing, windows)
        for found in collected.values()
    ]
    owners = [names.index(name) for name, block in zip(collected, blocks, strict=True) for _ in range(len(block))]
    unpacked = zip(*(block.unpack() for block in blocks), strict=True)
    input_ids, labels, segment_ids = (torch.from_numpy(np.concatenate(arrays)) for arrays in unpacked)
    return ValidationSet(
        input_ids,
        labels,
        segment_ids,
        source_ids=torch.tensor(owners, dtype=torch.int64),
        bytes_per_source={name: sum(map(_utf8_bytes, found.texts)) for name, found in collected.items()},
        texts={name: found.texts for name, found in collected.items()},
        shortfalls={name: found.shortfall for name, found in collected.items() if found.shortfall}
        | {name: "is not open" for name in names if name not in sources},
        whole=all(found.whole for found in collected.values()),
    )


def _collect(
    source: Source, config: DataConfig, tokenizer: TextTokenizer, wanted: int, announce: Announce
) -> _Collected:
    """Collect up to `wanted` held-out tokens of one source."""
    collected = _Collected()
    shortest_long: tuple[str, np.ndarray] | None = None
    scanned, limit = 0, SCAN_FACTOR * BYTES_PER_TOKEN * wanted
    for text in _spread_documents(source, config, announce, collected):
        scanned += len(text)
        if _is_usable(text, config) and is_held_out(text):
            try:
                (ids,) = tokenizer.encode_batch([text])
            except SourceError as error:
                collected.whole = False
                source.notices.append(f"a text of the validation set is left out: {error.reason}")
                continue
            if len(ids) + 1 > wanted / 4:
                if shortest_long is None or len(ids) < len(shortest_long[1]):
                    shortest_long = text, ids
            elif collected.tokens + len(ids) + 1 > wanted:
                return collected  # at least three quarters are there
            else:
                collected.add(text, ids)
        if scanned > limit:
            collected.shortfall = f"was searched in {limit:,} characters only, {SCAN_FACTOR} times its part"
            break
    else:
        reason = "holds no more documents that are held out"
        if not collected.texts and shortest_long is None:
            reason = f"has no document that is held out, as one in {ONE_IN} is; add documents"
        collected.shortfall = collected.shortfall or reason
    if not collected.texts and shortest_long is not None and wanted > 1:
        text, ids = shortest_long
        if len(ids) + 1 > wanted:
            ids = ids[: wanted - 1]
            text = tokenizer.decode(ids.tolist()).rstrip("\N{REPLACEMENT CHARACTER}")  # of a character that is cut
        collected.add(text, ids)
    if collected.tokens >= wanted * 3 / 4:
        collected.shortfall = ""
    return collected


def texts_in_rows(rows: ValidationSet, tokenizer: TextTokenizer) -> list[str]:
    """Return the texts of rows, as far as no row's end cuts them."""
    texts = []
    for labels, segment_ids in zip(rows.labels.numpy(), rows.segment_ids.numpy(), strict=True):
        for segment in np.unique(segment_ids[labels != IGNORE]):
            ids = labels[(segment_ids == segment) & (labels != IGNORE)]
            texts.append(tokenizer.decode(ids[ids != tokenizer.eos_id].tolist()))
    return texts


def sample_training_texts(
    sources: Mapping[str, Source], config: DataConfig, max_bytes: int, announce: Announce = silent
) -> Iterator[str]:
    """Yield training texts (never held-out ones) in turn from all sources and shards, about `max_bytes` in all."""
    readers = [_spread_documents(source, config, announce) for source in sources.values()]
    total = 0
    while readers:
        for reader in list(readers):
            text = next((text for text in reader if _is_usable(text, config) and not is_held_out(text)), None)
            if text is None:
                readers.remove(reader)
                continue
            yield text
            total += _utf8_bytes(text)
            if total >= max_bytes:
                return


def _is_usable(text: str, config: DataConfig) -> bool:
    return len(text.strip()) >= max(1, config.min_text_length)


def _utf8_bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _spread_documents(
    source: Source, config: DataConfig, announce: Announce, collected: _Collected | None = None
) -> Iterator[str]:
    """Yield each of a source's documents once, a few from each of several shards in turn, shards far apart first.

    When the source fails, this ends early and says so in its notices and in `collected`.
    """

    def read(shard: int) -> Iterator[tuple[str, object]]:
        return read_on(source, shard, Retries.before_training(source.name, config.retry_minutes, announce))

    step = max(1, source.num_shards // OPEN_SHARDS)
    waiting = iter([shard for first in range(step) for shard in range(first, source.num_shards, step)])
    readers = [read(shard) for shard in islice(waiting, OPEN_SHARDS)]
    try:
        while readers:
            for reader in list(readers):
                given = 0
                for text, _ in islice(reader, BURST):
                    yield text
                    given += 1
                if given < BURST:
                    readers.remove(reader)
                    readers += [read(shard) for shard in islice(waiting, 1)]
    except SourceError as error:
        if collected is not None:
            collected.whole = False
            collected.shortfall = f"could not be read to its end ({error.reason})"
        source.notices.append(f"reading stopped early while looking for held-out or sample texts: {error.reason}")
