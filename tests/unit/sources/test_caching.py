"""What the cache knows of a source, and records beside the cached rows."""

from dataclasses import replace
from pathlib import Path

from sources.caching import cached_sources, open_cache, read_record, write_record
from sources.config import DataConfig
from sources.registry import open_sources
from sources.rows.filters import Filters
from sources.rows.near_copies import NearCopies
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


def test_rows_of_other_near_copies_are_other_rows(tmp_path: Path, texts, tokenizer):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "one.txt").write_text(texts[0])
    spec = {"type": "files", "path": str(tmp_path / "texts"), "name": "texts"}
    config = DataConfig(sources=[spec], cache=True, cache_dir=str(tmp_path / "cache"))
    sources, cache = open_sources(config).sources, open_cache(config)
    folders = set()
    for known in ([], texts[:3], texts[:3], texts[:4]):
        filters = Filters(50, near_copies=NearCopies.of(known))
        pipeline = PipelineConfig(tokenizer, 16, "best_fit", filters, 16, True, 3, 10.0)
        folders.add(cached_sources(cache, sources, config, pipeline)["texts"].folder)
    assert len(folders) == 3
    of_windows = replace(pipeline, windows=2)
    assert cached_sources(cache, sources, config, of_windows)["texts"].folder not in folders
