"""What the cache knows of a source, and records beside the cached rows."""

from pathlib import Path

from shard_cache import ShardCache
from sources.caching import cached_sources, description, read_record, write_record
from sources.config import DataConfig
from sources.registry import LazySource, open_sources
from sources.rows.filters import Filters
from sources.rows.pipeline_config import PipelineConfig

RECORD = {"text": "{}", "eos_id": 0, "pad_id": None, "fast": True}


def test_a_record_with_a_flipped_bit_is_absent(tmp_path: Path):
    path = tmp_path / "tokenizer.json"
    assert read_record(path) is None and read_record(None) is None
    write_record(path, RECORD)
    assert read_record(path) == RECORD
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert read_record(path) in (None, RECORD)
    path.write_bytes(whole[:-3])
    assert read_record(path) is None


def test_a_folder_that_is_not_there_takes_none(tmp_path: Path):
    write_record(tmp_path / "absent" / "tokenizer.json", RECORD)
    assert not list(tmp_path.iterdir())


def test_the_cache_knows_which_sources_are_small(tmp_path, tokenizer):
    """For the same texts, and unless a pin says otherwise. A hub source found in the cache is not opened."""

    def config(**data) -> DataConfig:
        return DataConfig(sources=[{"type": "hf", "dataset": "owner/name", "name": "name"}], **data)

    cache = ShardCache(tmp_path / "cache", 1.0)
    known = {"source": {"commit": "0123"}, "small": True, "num_shards": 3, "fingerprint": "0123"}
    remembered = LazySource("name", known, lambda: None)
    pipeline = PipelineConfig(tokenizer, 16, "best_fit", Filters(50), 16, True, 3, 10.0, replicated=frozenset({"name"}))
    cached_sources(cache, {"name": remembered}, config(), pipeline)
    assert open_sources(config(), cache=cache).small == {"name"}
    pins = {"name": {"source": known["source"], "small": False}}
    assert open_sources(config(), pins, cache=cache).small == set()
    for min_text_length in (config().min_text_length, 7):
        found = cache.find(description(config().sources[0], config(min_text_length=min_text_length)))
        assert (found is not None) == (min_text_length == config().min_text_length)
