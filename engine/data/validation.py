"""The validation set on every rank: rows that rank 0 collects from the sources or reads from an earlier start."""

import contextlib
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch

import storage
from engine.device.ranks import Ranks
from model.snapshot import SnapshotError, container
from sources.caching import ShardCache
from sources.config import DataConfig
from sources.registry import OpenedSources
from sources.rows.held_out import ValidationSet, collect_validation_set
from sources.rows.tokenizer import TextTokenizer

FILE_NAME = "held_out.pt"
SAVED = ("input_ids", "labels", "segment_ids", "source_ids", "bytes_per_source")


@dataclass(frozen=True)
class ValidationSource:
    """What decides the rows: the sources as pinned, the tokenizer and the shape."""

    opened: OpenedSources
    data: DataConfig
    tokenizer: TextTokenizer
    seq_length: int
    eval_tokens: int

    def rows(self, folder: Path, cache: ShardCache | None, ranks: Ranks) -> ValidationSet:
        """Return the rows on every rank; they are kept in the checkpoint folder and in the shard cache, if any."""
        rows = self._rows_of_main(folder, cache) if ranks.is_main else None
        head = ranks.broadcast(rows and {"rows": len(rows.input_ids), "bytes": rows.bytes_per_source})
        if rows is None:
            tokens = torch.empty(head["rows"], self.seq_length, dtype=torch.int64)
            segment_ids = torch.empty_like(tokens, dtype=torch.int32)
            source_ids = torch.empty(head["rows"], dtype=torch.int64)
            rows = ValidationSet(tokens, tokens.clone(), segment_ids, source_ids, head["bytes"], {})
        for tensor in (rows.input_ids, rows.labels, rows.segment_ids, rows.source_ids):
            ranks.broadcast_tensor(tensor)
        return rows

    def _rows_of_main(self, folder: Path, cache: ShardCache | None) -> ValidationSet:
        key = self._key()
        paths = [folder / FILE_NAME]
        if cache is not None:
            paths.append(cache.remember(f"held-out-{key[:16]}.pt"))
        rows = next((found for path in paths if (found := _read(path, key)) is not None), None)
        if rows is None:
            rows = collect_validation_set(
                self.opened.sources, self.data, self.tokenizer, seq_length=self.seq_length, eval_tokens=self.eval_tokens
            )
        for path in paths if rows.whole else []:  # after a failed read the next start collects again
            if not path.exists() or _read(path, key) is None:
                _write(path, key, rows)
        return rows

    def _key(self) -> str:
        parts = {
            "data": self.data.model_dump(mode="json", include={"sources", "min_text_length", "packing"}),
            "pins": self.opened.pins(),
            "tokenizer": hashlib.sha256(self.tokenizer.to_json().encode()).hexdigest(),
            "seq_length": self.seq_length,
            "eval_tokens": self.eval_tokens,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _read(path: Path, key: str) -> ValidationSet | None:
    try:
        storage.refuse_escape(path, path.parent)
        saved = container.read(path)
        if saved["key"] != key:
            return None
        return ValidationSet(**{name: saved[name] for name in SAVED}, texts={})
    except Exception:  # absent or damaged: the rows can always be collected again
        return None


def _write(path: Path, key: str, rows: ValidationSet) -> None:
    # Only a cache: a full disk is reported at the next save.
    with contextlib.suppress(OSError, SnapshotError), storage.replacing(path) as temporary:
        container.write(temporary, {"key": key, **{name: getattr(rows, name) for name in SAVED}})
