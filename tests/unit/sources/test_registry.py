"""From specifications to open sources: what cannot be opened is named, and pins reopen the same data."""

import json
import shutil
from collections.abc import Callable

import pytest

from shard_cache import ShardCache
from sources.caching import cached_sources, description
from sources.config import DataConfig, FilesSpec
from sources.readers.files import FilesSource
from sources.registry import (
    OPENERS,
    AllSourcesFailed,
    LazySource,
    OpenedSources,
    open_sources,
    probe,
)
from sources.rows.filters import Filters, is_held_out
from sources.rows.pipeline_config import PipelineConfig
from sources.source import SourceError
from tests.helpers.sources import Flaky, Unreadable


@pytest.fixture
def config(tmp_path, texts, write_json_lines, monkeypatch) -> DataConfig:
    """Two sources, the second of which is small."""
    usable = [text for text in texts if not is_held_out(text)]
    write_json_lines(tmp_path / "a", [text[:300] for text in usable], 3)
    write_json_lines(tmp_path / "b", [*(text[:300] for text in usable[:12]), "too short"], 2)
    monkeypatch.setattr("sources.registry.SMALL_SOURCE", 4_000)
    return DataConfig(sources=[{"type": "files", "path": str(tmp_path / name), "name": name} for name in "ab"])


def read_all(source) -> list[str]:
    return [text for shard in range(source.num_shards) for text, _ in source.read(shard, None)]


def with_missing(config: DataConfig, tmp_path) -> DataConfig:
    missing = {"type": "files", "path": str(tmp_path / "none"), "name": "missing"}
    return DataConfig(sources=[missing, *(spec.model_dump() for spec in config.sources)])


def test_a_source_that_fails_does_not_stop_the_others(config, tmp_path):
    opened = open_sources(with_missing(config, tmp_path))
    assert list(opened.sources) == ["a", "b"] and list(opened.failures) == ["missing"]
    assert "does not exist" in opened.failures["missing"]
    opened.check()


def test_a_source_of_few_characters_is_small(config):
    opened = open_sources(config)
    assert opened.small == {"b"}
    assert opened.sources["b"].notices == ["it is small, with 12 texts to train on"]
    assert opened.amounts.keys() == {"b"} and opened.amounts["b"].num_bytes > 0 and opened.amounts["b"].sample


def test_files_without_rows_are_part_of_why_a_source_is_dropped(config, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.jsonl").write_text('{"text": null}\n')
    (tmp_path / "empty" / "b.jsonl").write_text("\n")
    empty = {"type": "files", "path": str(tmp_path / "empty"), "name": "empty"}
    opened = open_sources(DataConfig(sources=[empty, *(spec.model_dump() for spec in config.sources)]))
    assert list(opened.sources) == ["a", "b"]
    for part in ("b.jsonl: holds no rows", "no text to train on", "1 files without rows", "1 rows without text"):
        assert part in opened.failures["empty"]
    assert opened.failures["empty"].endswith('name a column that has text in "text_field" or "fields"')
    (tmp_path / "empty" / "c.docx").write_bytes(b"PK\0")
    failure = open_sources(DataConfig(sources=[{**empty, "glob": "*.docx"}])).failures["empty"]
    assert failure == "it holds no text to train on (1 binary files); save Word documents and the like as text or PDF"


def test_pins_keep_the_shards_and_what_was_not_open_closed(config, tmp_path, texts):
    """On another rank, also where a file was added; a restart opens what had failed as well."""
    pins = json.loads(json.dumps(open_sources(config).pins()))
    (tmp_path / "b" / "02.jsonl").write_text(json.dumps({"text": texts[0]}) * 2)
    wider = with_missing(config, tmp_path)
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "later.txt").write_text(texts[1])
    elsewhere = open_sources(wider, pins)
    assert {name: source.num_shards for name, source in elsewhere.sources.items()} == {"a": 3, "b": 2}
    assert elsewhere.small == {"b"} and elsewhere.pins()["a"] == pins["a"]
    assert elsewhere.failures == {"missing": "the first rank could not open it"}
    restarted = open_sources(wider, pins, only_pinned=False)
    assert list(restarted.sources) == ["missing", "a", "b"] and not restarted.failures


def test_a_lost_source_is_named_and_the_last_one_ends_it(config):
    opened = open_sources(config)
    without = opened.without("a", "the disk is gone")
    assert list(opened.sources) == ["a", "b"] and list(without.sources) == ["b"] and without.small == {"b"}
    without.check()
    with pytest.raises(AllSourcesFailed, match=r"Every source failed: a: the disk is gone; b: so is this\.") as caught:
        without.without("b", "so is this").check()
    assert caught.value.reasons == {"a": "the disk is gone", "b": "so is this"}
    with pytest.raises(AllSourcesFailed):
        OpenedSources({}, {}).check()


def test_a_cached_source_is_opened_when_it_is_read(config):
    real = open_sources(config).sources["a"]
    known = {"source": real.pin(), "small": False, "num_shards": real.num_shards, "fingerprint": real.fingerprint()}
    opened = []
    lazy = LazySource("a", known, lambda: opened.append(1) or real)
    assert (lazy.num_shards, lazy.pin(), lazy.fingerprint()) == (3, real.pin(), real.fingerprint()) and not opened
    assert read_all(lazy) == read_all(real) and opened == [1] and lazy.counts is real.counts
    other = LazySource("a", known | {"fingerprint": "another"}, lambda: real)
    with pytest.raises(SourceError, match="a is not what it was when it was cached; start again, or remove"):
        read_all(other)


def test_an_unreadable_source_is_dropped_when_it_is_opened(config, monkeypatch):
    monkeypatch.setitem(OPENERS, FilesSpec, lambda spec, pin: Unreadable(FilesSource(spec, pin)))
    opened = open_sources(config)
    assert not opened.sources and opened.failures == {"a": "the data is gone", "b": "the data is gone"}


def test_a_probe_looks_and_loads_nothing(config, tmp_path):
    assert [probe(spec) for spec in config.sources] == [None, None]
    nowhere, nothing = (FilesSpec(type="files", path=str(tmp_path / name), glob="*.md") for name in ("none", "a"))
    assert probe(nowhere) == f"{tmp_path / 'none'} does not exist"
    assert probe(nothing) == f'{tmp_path / "a"} holds no file that matches "*.md"'
    (pdf,) = DataConfig(sources=[{"type": "pdf", "path": str(tmp_path / "a")}]).sources
    assert "holds no file that matches" in probe(pdf)
    (tmp_path / "a" / "paper.PDF").write_bytes(b"")
    assert probe(pdf) is None


def test_a_lost_connection_at_the_start_does_not_drop_a_source(config, monkeypatch):
    monkeypatch.setattr("sources.retries.FIRST_WAIT", 0.01)
    sources = open_sources(config)
    monkeypatch.setitem(OPENERS, FilesSpec, lambda spec, pin: Flaky(FilesSource(spec, pin), 5, 3))
    again = open_sources(config)
    assert set(again.sources) == {"a", "b"} and not again.failures and again.small == sources.small


def test_the_cache_knows_which_sources_are_small(tmp_path, tokenizer):
    """For the same texts, and unless a pin says otherwise. A hub source found in the cache is not opened."""

    def config(**data) -> DataConfig:
        return DataConfig(sources=[{"type": "hf", "dataset": "owner/name", "name": "name"}], **data)

    cache = ShardCache(tmp_path / "cache", 1.0)
    known = {"source": {"commit": "0123"}, "small": True, "num_shards": 3, "fingerprint": "0123"}
    remembered = LazySource("name", known, lambda: None)
    pipeline = PipelineConfig(tokenizer, 16, "best_fit", Filters(50), 16, True, 3, 10.0, shared=frozenset({"name"}))
    cached_sources(cache, {"name": remembered}, config(), pipeline)
    assert open_sources(config(), cache=cache).small == {"name"}
    pins = {"name": {"source": known["source"], "small": False}}
    assert open_sources(config(), pins, cache=cache).small == set()
    for min_text_length in (config().min_text_length, 7):
        found = cache.pins(description(config().sources[0], config(min_text_length=min_text_length)))
        assert bool(found) == (min_text_length == config().min_text_length)


@pytest.fixture
def remember(tmp_path, tokenizer) -> Callable[[OpenedSources, DataConfig], ShardCache]:
    """Opens a source's part of a cache, as a run does."""

    def remember(opened: OpenedSources, config: DataConfig) -> ShardCache:
        cache = ShardCache(tmp_path / "cache", 1.0)
        small = frozenset(opened.small)
        pipeline = PipelineConfig(tokenizer, 16, "best_fit", Filters(50), 16, True, 3, 10.0, shared=small)
        cached_sources(cache, opened.sources, config, pipeline)
        return cache

    return remember


def test_the_cache_stands_in_for_what_is_gone(config, tmp_path, remember):
    with_source = open_sources(config)
    cache = remember(with_source, config)
    for name in "ab":
        shutil.rmtree(tmp_path / name)
    (tmp_path / "b").mkdir()  # as where a disk is not mounted
    opened = open_sources(config, cache=cache)
    assert opened.small == {"b"} and not opened.failures
    assert opened.pins() == json.loads(json.dumps(with_source.pins()))
    for name, reason in (("a", "does not exist"), ("b", "holds no file")):
        (notice,) = opened.sources[name].notices
        assert notice.startswith(f"its cached rows are used: {tmp_path / name} {reason}")
        with pytest.raises(SourceError, match=f"more of it is needed than the cache holds: .*{reason}"):
            read_all(opened.sources[name])
    assert open_sources(config, opened.pins(), cache=cache).pins() == opened.pins()
    assert open_sources(config).failures.keys() == {"a", "b"}
    other = {"a": {"source": {**opened.pins()["a"]["source"], "digest": "another"}, "small": False}}
    assert "does not exist" in open_sources(config, other, cache=cache).failures["a"]


def test_the_cache_does_not_stand_in_for_what_has_changed(config, tmp_path, remember, texts):
    cache = remember(open_sources(config), config)
    kept = tmp_path / "kept"
    (tmp_path / "a").rename(kept)
    opened = open_sources(config, cache=cache)
    kept.rename(tmp_path / "a")
    (tmp_path / "a" / "00.jsonl").write_text(json.dumps({"text": texts[0]}) + "\n")
    with pytest.raises(SourceError, match="a is not what it was when it was cached"):
        read_all(opened.sources["a"])
    assert isinstance(open_sources(config, cache=cache).sources["a"], FilesSource)
    for path in (tmp_path / "b").iterdir():
        path.write_bytes(b"")
    assert "holds no file" in open_sources(config, cache=cache).failures["b"]


def test_a_lineage_finds_the_rows_of_its_own_pin(config, tmp_path, remember, texts):
    """Though the folder has changed since, and gone afterwards."""
    pins = [open_sources(config).pins()]
    remember(open_sources(config), config)
    (tmp_path / "a" / "03.jsonl").write_text(json.dumps({"text": texts[0]}) + "\n")
    pins.append(open_sources(config).pins())
    cache = remember(open_sources(config), config)
    shutil.rmtree(tmp_path / "a")
    for pin in pins:
        assert open_sources(config, pin, cache=cache).pins()["a"] == pin["a"]
    assert open_sources(config, cache=cache).pins()["a"] == pins[1]["a"]


def test_a_path_means_a_source_of_its_own_working_directory(tmp_path, remember, monkeypatch, texts):
    config = DataConfig(sources=[{"type": "files", "path": "notes"}, {"type": "hf", "dataset": "owner/notes"}])
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "one")
    for folder in ("notes", "owner/notes"):
        (tmp_path / "one" / folder).mkdir(parents=True)
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (tmp_path / "one" / folder / "train.jsonl").write_text(lines)
    cache = remember(open_sources(config), config)
    for folder in ("notes", "owner"):
        (tmp_path / "one" / folder).rename(tmp_path / "other" / f"away-{folder}")
    for _ in range(2):
        opened = open_sources(config, cache=cache)
        assert not opened.failures and all("are used" in source.notices[0] for source in opened.sources.values())
        remember(opened, config)
    monkeypatch.chdir(tmp_path / "other")
    assert open_sources(config, cache=cache).failures.keys() == {"notes", "owner/notes"}
