"""Held-out cross-entropy, perplexity and bits per byte, over the same documents for the whole lineage.

Bits per byte counts every token's loss, the end of each document included, over the documents' UTF-8 bytes, so models
with different vocabularies can be compared, and compressors with them.
"""

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import deepspeed
import torch

import storage
from engine.config.preset import Preset
from engine.device.ranks import Ranks
from model.snapshot import container
from model.snapshot.vetting import SnapshotError
from sources.caching import ShardCache
from sources.registry import OpenedSources
from sources.rows.held_out import ValidationSet, collect_validation_set
from sources.rows.tokenizer import TextTokenizer

CACHE_NAME = "held_out.pt"
KEPT = ("input_ids", "labels", "segment_ids", "source_ids", "bytes_per_source")


def held_out_rows(
    opened: OpenedSources,
    preset: Preset,
    tokenizer: TextTokenizer,
    ranks: Ranks,
    folder: Path,
    cache: ShardCache | None,
) -> ValidationSet:
    """The evaluation rows on every rank. Rank 0 collects them, or reads what an earlier start kept in `folder` or the
    shard cache."""
    held_out = None
    if ranks.is_main:
        key = _fingerprint(opened, preset, tokenizer)
        places = [folder / CACHE_NAME, *([cache.remember(f"held-out-{key[:16]}.pt")] if cache is not None else [])]
        held_out = next((found for place in places if (found := _read_cache(place, key)) is not None), None)
        if held_out is None:
            held_out = collect_validation_set(
                opened.sources,
                preset.data,
                tokenizer,
                seq_length=preset.model.seq_length,
                eval_tokens=preset.train.eval_tokens,
            )
        for place in places if held_out.whole else []:  # what a failure left is collected again by the next start
            if not place.exists() or _read_cache(place, key) is None:
                _write_cache(place, key, held_out)
    head = ranks.broadcast_json(
        {"rows": len(held_out.input_ids), "bytes": held_out.bytes_per_source} if held_out is not None else None
    )
    if held_out is None:
        shape = (head["rows"], preset.model.seq_length)
        empty = [torch.empty(shape, dtype=dtype) for dtype in (torch.int64, torch.int64, torch.int32)]
        held_out = ValidationSet(*empty, torch.empty(head["rows"], dtype=torch.int64), head["bytes"], {})
    for tensor in (held_out.input_ids, held_out.labels, held_out.segment_ids, held_out.source_ids):
        ranks.broadcast_tensor(tensor)
    return held_out


@torch.no_grad()
def evaluate(
    engine: deepspeed.DeepSpeedEngine,
    held_out: ValidationSet,
    source_names: list[str],
    ranks: Ranks,
    batch_size: int,
    each_pass: Callable[[Iterable], Iterable] = iter,
    document_mask: bool = False,
) -> dict[str, Any]:
    """Cross-entropy in nats per token over the held-out rows, in all and by source; every rank takes its share.

    All ranks must call it, and all make the same number of passes, since stage 3 fetches weights in each. `each_pass`
    hands on the passes and may raise, on all ranks alike, to give up.
    """
    begin = time.perf_counter()
    nll = torch.zeros(len(source_names), dtype=torch.float64)
    tokens = torch.zeros(len(source_names), dtype=torch.float64)
    engine.eval()
    rows = len(held_out.input_ids)
    stride = batch_size * ranks.world_size
    for first in each_pass(range(0, rows, stride)):
        index = torch.arange(first + ranks.rank, first + stride, ranks.world_size)
        # Rows past the end repeat row 0 as padding, so that every pass has the shape that was compiled.
        beyond = index >= rows
        index = index.masked_fill(beyond, 0)
        labels = held_out.labels[index].masked_fill(beyond[:, None], -100)
        segment_ids = held_out.segment_ids[index].to(ranks.device) if document_mask else None
        _, token_nll = engine(held_out.input_ids[index].to(ranks.device), labels.to(ranks.device), segment_ids)
        nll.index_add_(0, held_out.source_ids[index], token_nll.double().sum(1).cpu())
        tokens.index_add_(0, held_out.source_ids[index], (labels != -100).sum(1).double())
    engine.train()
    ranks.sum_tensor(nll), ranks.sum_tensor(tokens)
    present = [i for i in range(len(source_names)) if tokens[i] > 0]
    by_source = {
        source_names[i]: _figures(nll[i].item(), tokens[i].item(), held_out.bytes_per_source[source_names[i]])
        for i in present
    }
    total = _figures(nll.sum().item(), tokens.sum().item(), sum(held_out.bytes_per_source.values()))
    return {**total, "sources": by_source, "tokens": int(tokens.sum()), "seconds": time.perf_counter() - begin}


def _figures(nll: float, tokens: float, text_bytes: int) -> dict[str, float]:
    ce = nll / max(tokens, 1.0)
    return {"ce": ce, "perplexity": math.exp(min(ce, 700.0)), "bits_per_byte": nll / math.log(2) / max(text_bytes, 1)}


def _fingerprint(opened: OpenedSources, preset: Preset, tokenizer: TextTokenizer) -> str:
    """What decides the evaluation rows: the sources as pinned, the tokenizer and the shape."""
    parts = {
        "data": preset.data.model_dump(mode="json", include={"sources", "min_text_length", "packing"}),
        "pins": opened.pins(),
        "tokenizer": hashlib.sha256(tokenizer.to_json().encode()).hexdigest(),
        "seq_length": preset.model.seq_length,
        "eval_tokens": preset.train.eval_tokens,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _read_cache(path: Path, key: str) -> ValidationSet | None:
    try:
        storage.refuse_way_out(path, path.parent)
        cached = container.read(path)
        if cached["key"] != key:
            return None
        return ValidationSet(**{name: cached[name] for name in KEPT}, texts={})
    except Exception:  # absent or damaged: the rows can always be collected again
        return None


def _write_cache(path: Path, key: str, held_out: ValidationSet) -> None:
    fresh = storage.temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        container.write(fresh, {"key": key, **{name: getattr(held_out, name) for name in KEPT}})
        os.replace(fresh, path)
    except (OSError, SnapshotError):  # only a cache: a full disk shows itself, with a sentence, at the next save
        storage.discard(fresh)
