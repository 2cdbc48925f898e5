"""How sources use the shard cache: what decides whether cached rows fit, and small records kept beside them."""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import storage
from shard_cache import CachedSource, NotACache, ShardCache
from shard_cache.space import RESERVE_BYTES
from sources.config import DataConfig, FilesSpec, PdfSpec, Spec
from sources.rows.filters import HELD_OUT_SHARE, NGRAM, RECENT
from sources.rows.pipeline_config import PART_CHARACTERS, SMALL_SOURCE, PipelineConfig
from sources.source import Source
from storage import JSON, Damaged, digest

__all__ = [
    "NotACache",
    "ShardCache",
    "cached_sources",
    "description",
    "lack_of_room",
    "open_cache",
    "read_record",
    "write_record",
]

BYTES_PER_TOKEN = 4.5  # of a cached row at most: an id of 4 bytes, lengths and pieces
ROWS_FORMAT = 3  # of the rows themselves; raised whenever the same settings would give other rows


def open_cache(config: DataConfig) -> ShardCache | None:
    """Open the cache if the configuration asks for one. Raises NotACache."""
    return ShardCache(Path(config.cache_dir).expanduser(), config.cache_max_gb) if config.cache else None


def cached_sources(
    cache: ShardCache, sources: dict[str, Source], config: DataConfig, pipeline: PipelineConfig
) -> dict[str, CachedSource]:
    """Open each source's part of the cache: the one that holds exactly the rows that `pipeline` makes."""
    shared = _fingerprint(pipeline)
    opened = {}
    for spec in config.sources:
        if (source := sources.get(name := spec.source_name)) is None:
            continue
        known = {"fingerprint": source.fingerprint(), "small": name in pipeline.shared}
        # The name seeds the order of shards and rows.
        fingerprint = {**shared, "name": name, "source": known["fingerprint"], "small": known["small"]}
        pin = source.pin()
        is_folder = isinstance(pin, Mapping) and "path" in pin
        about = {**known, "source": pin, "num_shards": source.num_shards}
        opened[name] = cache.source(fingerprint, description(spec, config, is_folder), about)
    return opened


def description(spec: Spec, config: DataConfig, is_folder: bool = False) -> JSON:
    """Return what a preset says of a source, and what else decides whether it is small.

    `is_folder`: its dataset means a folder. From another working directory a path means another source.
    """
    described = {
        "spec": spec.model_dump(mode="json"),
        "min_text_length": config.min_text_length,
        "small_source": SMALL_SOURCE,
    }
    if is_folder or isinstance(spec, (FilesSpec, PdfSpec)):
        described["path"] = os.path.abspath(os.path.expanduser(getattr(spec, spec.named_after)))
    return described


def _fingerprint(pipeline: PipelineConfig) -> dict[str, JSON]:
    """Return what rows depend on beside their source."""
    filters = pipeline.filters
    long_texts = {"long_text_length": filters.long_text_length} if filters.long_text_length else {}
    return {
        **long_texts,
        "rows_format": ROWS_FORMAT,
        "tokenizer": hashlib.blake2b(pipeline.tokenizer.to_json().encode(), digest_size=16).hexdigest(),
        "eos_id": pipeline.tokenizer.eos_id,
        "seq_length": pipeline.seq_length,
        "packing": pipeline.packing,
        "block_rows": pipeline.block_rows,
        "part_characters": PART_CHARACTERS,
        "min_text_length": filters.min_text_length,
        "deduplicate": RECENT if filters.deduplicate else 0,
        "decontaminate": [NGRAM, digest(sorted(filters.forbidden))] if filters.forbidden else None,
        "held_out_share": HELD_OUT_SHARE,
        "near_copies": filters.near_copies.digest(),
        "lanes": pipeline.num_lanes,
        "seed": pipeline.seed,
        "shuffle": pipeline.shuffle,
        "whole_passes": pipeline.whole_epochs,
    } | ({"windows": pipeline.windows} if pipeline.windows > 1 else {})


def lack_of_room(config: DataConfig, tokens: int) -> str | None:
    """Return a sentence where the cache's disk has no room for the rows of `tokens` tokens; None where it has."""
    folder = Path(config.cache_dir).expanduser().absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    needed, free = BYTES_PER_TOKEN * tokens, max(0, shutil.disk_usage(existing).free - RESERVE_BYTES)
    if needed < free:
        return None
    return (
        f"The cache has no room for the rows of a run: they take about {needed / 1e9:.1f} GB, and the disk of "
        f"{config.cache_dir} has {free / 1e9:.1f} GB beside the {RESERVE_BYTES / 2**30:g} GiB that are kept free. Free "
        "some space, or give another data.cache_dir; otherwise the rest is not cached."
    )


def read_record(path: Path | None) -> dict[str, Any] | None:
    """Return what `write_record` wrote; None where it is absent or damaged, for it can be made again."""
    with contextlib.suppress(OSError, Damaged):
        return None if path is None else storage.read_record(path)
    return None


def write_record(path: Path, record: Mapping[str, object]) -> None:
    """Write a small record into the cache, where the disk allows it."""
    with contextlib.suppress(OSError):
        storage.write_record(path, record)
