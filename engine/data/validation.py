"""The validation set on every rank: rows that rank 0 collects from the sources or reads from an earlier start."""

import contextlib
import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

import storage
from engine.data.opening import announce_to
from engine.device.ranks import Ranks
from engine.events import EventLog
from model.snapshot import SnapshotError, container
from sources.caching import ShardCache
from sources.config import DataConfig
from sources.held_out import ValidationSet, collect_validation_set, texts_in_rows
from sources.registry import OpenedSources, Pin
from sources.rows.near_copies import NearCopies
from sources.rows.tokenizer import TextTokenizer

FILE_NAME = "held_out.pt"
SAVED = ("input_ids", "labels", "segment_ids", "source_ids", "bytes_per_source")
SAVED_LATER = ("texts", "shortfalls")  # which files of 0.2.0 lack


@dataclass(frozen=True)
class ValidationSource:
    """What decides the rows: the sources as pinned, the tokenizer and the shape."""

    opened: OpenedSources
    pins: Mapping[str, Pin]  # the lineage's; a source that cannot be opened this time keeps its part
    data: DataConfig
    tokenizer: TextTokenizer
    seq_length: int
    eval_tokens: int
    windows: int = 1  # of a row, each of seq_length

    def rows(self, folder: Path, cache: ShardCache | None, ranks: Ranks, log: EventLog) -> ValidationSet:
        """Return the rows on every rank; they are kept in the checkpoint folder and in the shard cache, if any."""
        rows = self._rows_of_main(folder, cache, log) if ranks.is_main else None
        head = ranks.broadcast(rows and (len(rows.input_ids), rows.bytes_per_source, rows.texts, rows.shortfalls))
        if rows is None:
            number, *rest = head
            tokens = torch.empty(number, self.windows * self.seq_length, dtype=torch.int64)
            segment_ids = torch.empty_like(tokens, dtype=torch.int32)
            source_ids = torch.empty(number, dtype=torch.int64)
            rows = ValidationSet(tokens, tokens.clone(), segment_ids, source_ids, *rest)
        for tensor in (rows.input_ids, rows.labels, rows.segment_ids, rows.source_ids):
            ranks.broadcast_tensor(tensor)
        return rows

    def near_copies(self, rows: ValidationSet) -> NearCopies:
        """Return what recognizes near-copies of the rows' texts; of an older file's, only the rows are known."""
        texts = itertools.chain.from_iterable(rows.texts.values())
        return NearCopies.of(texts if rows.texts else texts_in_rows(rows, self.tokenizer))

    def _rows_of_main(self, folder: Path, cache: ShardCache | None, log: EventLog) -> ValidationSet:
        key = self._key()
        paths = [folder / FILE_NAME]
        if cache is not None:
            paths.append(cache.remember(f"held-out-{key[:16]}.pt"))
        rows = next((found for path in paths if (found := _read(path, key)) is not None), None)
        if rows is None:
            rows = collect_validation_set(
                self.opened.sources,
                self.data,
                self.tokenizer,
                seq_length=self.seq_length,
                eval_tokens=self.eval_tokens,
                announce=announce_to(log),
                windows=self.windows,
            )
        is_whole = rows.whole and self._pins().keys() <= self.opened.sources.keys()
        for path in paths if is_whole else []:  # otherwise the next start collects again
            if not path.exists() or _read(path, key) is None:
                _write(path, key, rows)
        return rows

    def _pins(self) -> dict[str, Pin]:
        opened, names = self.opened.pins(), [spec.source_name for spec in self.data.sources]
        return {name: pin for name in names if (pin := opened.get(name, self.pins.get(name))) is not None}

    def _key(self) -> str:
        parts = {
            "data": self.data.model_dump(mode="json", include={"sources", "min_text_length", "packing"}),
            "pins": self._pins(),
            "tokenizer": hashlib.sha256(self.tokenizer.to_json().encode()).hexdigest(),
            "seq_length": self.seq_length,
            "eval_tokens": self.eval_tokens,
        } | ({"windows": self.windows} if self.windows > 1 else {})
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _read(path: Path, key: str) -> ValidationSet | None:
    try:
        storage.refuse_escape(path, path.parent)
        saved = container.read(path)
        if saved["key"] != key:
            return None
        later = {name: saved.get(name, {}) for name in SAVED_LATER}
        return ValidationSet(**{name: saved[name] for name in SAVED}, **later)
    except Exception:  # absent or damaged: the rows can always be collected again
        return None


def _write(path: Path, key: str, rows: ValidationSet) -> None:
    # Only a cache: a full disk is reported at the next save.
    with contextlib.suppress(OSError, SnapshotError), storage.replacing(path) as temporary:
        container.write(temporary, {"key": key, **{name: getattr(rows, name) for name in SAVED + SAVED_LATER}})
