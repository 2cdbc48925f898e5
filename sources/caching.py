"""How sources use the shard cache: what decides whether cached rows fit, and sources opened only when needed."""

import contextlib
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import storage
from shard_cache import CachedSource, ShardCache
from sources.config import DataConfig, Spec
from sources.rows.filters import HELD_OUT_SHARE, NGRAM, RECENT
from sources.rows.pipeline import PART_CHARACTERS, Recipe
from sources.source import JSON, Source, SourceError
from storage import Damaged, digest

__all__ = [
    "LazySource",
    "ShardCache",
    "cached_sources",
    "description",
    "open_cache",
    "read_record",
    "write_record",
]

ROWS_FORMAT = 2  # of the rows themselves; another one whenever the same settings would give other rows


class LazySource:
    """A source that the cache knows: opened when a block is asked for that the cache does not hold."""

    def __init__(self, name: str, known: dict[str, JSON], open_source: Callable[[], Source]):
        self.name = name
        self.num_shards: int = known["num_shards"]
        self.notices: list[str] = []
        self.counts: Counter[str] = Counter()
        self._known, self._open = known, open_source
        self._source: Source | None = None

    def pin(self) -> dict[str, JSON]:
        return self._known["source"]

    def fingerprint(self) -> JSON:
        return self._known["fingerprint"]

    def read(self, shard: int, cursor: JSON | None) -> Iterator[tuple[str, JSON]]:
        if self._source is None:
            source = self._open()
            if source.num_shards != self.num_shards:
                raise SourceError(f"{self.name} has other shards than when it was cached; remove its cache")
            self._source, self.notices, self.counts = source, source.notices, source.counts
        yield from self._source.read(shard, cursor)


def open_cache(config: DataConfig) -> ShardCache | None:
    """Open the cache that a preset asks for, if it does."""
    return ShardCache(Path(config.cache_dir).expanduser(), config.cache_max_gb) if config.cache else None


def read_record(path: Path | None) -> dict[str, JSON] | None:
    """What `write_record` left there; None where it is absent or damaged, for it can be made again."""
    with contextlib.suppress(OSError, Damaged):
        return None if path is None else storage.read_record(path)
    return None


def write_record(path: Path, record: dict[str, JSON]) -> None:
    with contextlib.suppress(OSError):  # only a cache
        storage.write_record(path, record)


def description(spec: Spec, config: DataConfig) -> JSON:
    """What a preset says of a source, and what else decides whether it is small."""
    return {"spec": spec.model_dump(mode="json"), "min_text_length": config.min_text_length}


def cached_sources(
    cache: ShardCache, sources: dict[str, Source], config: DataConfig, recipe: Recipe
) -> dict[str, CachedSource]:
    """Open each source's part of the cache: the one whose rows are these to the bit."""
    specs = {spec.source_name: spec for spec in config.sources}
    filters = recipe.filters
    tokenizer = hashlib.blake2b(recipe.tokenizer.to_json().encode(), digest_size=16).hexdigest()
    opened = {}
    for name, source in sources.items():
        small, fingerprint_of_source = name in recipe.replicated, source.fingerprint()
        fingerprint = {
            "rows_format": ROWS_FORMAT,
            "name": name,  # it seeds the order
            "source": fingerprint_of_source,
            "tokenizer": tokenizer,
            "eos_id": recipe.tokenizer.eos_id,
            "seq_length": recipe.seq_length,
            "packing": recipe.packing,
            "block_rows": recipe.block_rows,
            "part_characters": PART_CHARACTERS,
            "min_text_length": filters.min_text_length,
            "deduplicate": RECENT if filters.deduplicate else 0,
            "decontaminate": [NGRAM, digest(sorted(filters.forbidden))] if filters.forbidden else None,
            "held_out_share": HELD_OUT_SHARE,
            "lanes": recipe.num_lanes,
            "seed": recipe.seed,
            "shuffle": recipe.shuffle,
            "small": small,
            "whole_passes": recipe.whole_passes,
        }
        pin = {
            "source": source.pin(),
            "small": small,
            "num_shards": source.num_shards,
            "fingerprint": fingerprint_of_source,
        }
        opened[name] = cache.source(fingerprint, description(specs[name], config), pin)
    return opened
