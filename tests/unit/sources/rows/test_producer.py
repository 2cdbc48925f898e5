"""Blocks from the cache, from the source, and past a damaged shard when the source is gone."""

import json
from collections import Counter

import numpy as np

from shard_cache import BLOCKS_PER_SHARD, ShardCache
from sources.caching import cached_sources
from sources.config import DataConfig
from sources.registry import open_sources
from sources.rows.filters import Filters, is_held_out
from sources.rows.pipeline import PipelineCallbacks
from sources.rows.pipeline_config import PipelineConfig
from sources.rows.producer import LocalProducer, ProducerSetup
from sources.source import SourceError
from tests.helpers.sources import Unreadable


def same(one, other) -> bool:
    return all(np.array_equal(getattr(one.block, name), getattr(other.block, name)) for name in ("ids", "pieces"))


def make_config(tokenizer, **options) -> PipelineConfig:
    usual = {
        "packing": "best_fit",
        "filters": Filters(50),
        "shuffle": True,
        "seed": 3,
        "retry_minutes": 10.0,
        "whole_epochs": True,
    }
    return PipelineConfig(tokenizer=tokenizer, **(usual | options))


def test_rows_without_text_count_once_in_a_shared_shard(tmp_path, texts, tokenizer):
    rows = [{"text": text[:300]} for text in texts] + [{"text": None}, {"text": " "}, {"other": "x"}] * 5
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "not JSON\n")
    config = DataConfig(sources=[{"type": "files", "path": str(tmp_path), "name": "rows"}])
    setup = ProducerSetup(open_sources(config).sources, make_config(tokenizer, seq_length=64, num_lanes=16), {})
    producer = LocalProducer(setup, PipelineCallbacks())
    for source in setup.sources.values():
        source.counts.clear()
    counts: Counter[str] = Counter()
    for lane in range(16):
        state = None
        while state is None or state["pass"] == 0:
            result = producer.produce("rows", lane, state)
            state = result.after
            counts.update(result.filtered)
    assert counts["rows without text"] == 15 and counts["lines that are not JSON"] == 1
    assert counts["held out for evaluation"] == sum(is_held_out(text[:300]) for text in texts)


def test_a_damaged_shard_is_made_again_or_skipped(tmp_path, texts, tokenizer, write_json_lines):
    """It is skipped where the source is gone."""
    write_json_lines(tmp_path / "texts", texts, 2)
    config = DataConfig(sources=[{"type": "files", "path": str(tmp_path / "texts"), "name": "texts"}])
    pipeline = make_config(tokenizer, seq_length=16, num_lanes=1)
    events: list[tuple[str, str, str]] = []

    def producer(readable: bool = True) -> LocalProducer:
        sources = open_sources(config).sources
        if not readable:
            sources = {name: Unreadable(source) for name, source in sources.items()}
        cached = cached_sources(ShardCache(tmp_path / "cache", 1.0), sources, config, pipeline)
        callbacks = PipelineCallbacks(lambda *event: events.append(event))
        return LocalProducer(ProducerSetup(sources, pipeline, cached), callbacks)

    filling, states, blocks = producer(), [None], []
    for _ in range(2 * BLOCKS_PER_SHARD + 3):
        blocks.append(filling.produce("texts", 0, states[-1]))
        states.append(blocks[-1].after)
    filling.flush()
    tars = sorted((tmp_path / "cache").rglob("*.tar"))
    assert [tar.stem for tar in tars] == ["000000", f"{BLOCKS_PER_SHARD:06}", f"{2 * BLOCKS_PER_SHARD:06}"]
    reading = producer(readable=False)
    assert all(same(reading.produce("texts", 0, state), block) for state, block in zip(states, blocks, strict=False))

    damaged = bytearray(tars[1].read_bytes())
    damaged[len(damaged) // 2] ^= 4
    tars[1].write_bytes(damaged)
    reading, state, found = producer(readable=False), None, []
    while len(found) < BLOCKS_PER_SHARD + 3:
        found.append(reading.produce("texts", 0, state))
        state = found[-1].after
    expected = [*blocks[:BLOCKS_PER_SHARD], *blocks[2 * BLOCKS_PER_SHARD :]]
    assert all(same(one, other) for one, other in zip(found, expected, strict=True))
    assert any(what == "skipped" and "they are skipped" in message for _, what, message in events)
    assert any("is damaged (" in message for _, _, message in events)

    mending, state = producer(), None
    for block in blocks:
        made = mending.produce("texts", 0, state)
        assert same(made, block)
        state = made.after
    mending.flush()
    reading = producer(readable=False)
    assert all(same(reading.produce("texts", 0, state), block) for state, block in zip(states, blocks, strict=False))


def test_cached_blocks_tell_what_was_packed_and_filtered(tmp_path, texts, tokenizer):
    rows = [{"text": text[:300]} for text in texts] + [{"text": None}, {"text": "short"}] * 5
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "not JSON\n")
    config = DataConfig(sources=[{"type": "files", "path": str(tmp_path / "rows.jsonl"), "name": "rows"}])
    pipeline = make_config(tokenizer, seq_length=64, num_lanes=2)

    def counts() -> dict[str, int]:
        sources, total = open_sources(config).sources, Counter()
        sources["rows"].counts["found when it was opened"] = 1
        cached = cached_sources(ShardCache(tmp_path / "cache", 1.0), sources, config, pipeline)
        producer = LocalProducer(ProducerSetup(sources, pipeline, cached), PipelineCallbacks())
        for lane in range(2):
            state = None
            for _ in range(3):
                result = producer.produce("rows", lane, state)
                state = result.after
                total.update(result.filtered)
                total["documents"] += result.documents
        producer.flush()
        return dict(total)

    made = counts()
    assert made["rows without text"] >= 5 and made["found when it was opened"] == 1 and made["documents"] > 10
    assert counts() == made


def test_a_hole_in_the_cache_is_filled_patiently(tmp_path, texts, tokenizer, write_json_lines, monkeypatch):
    """A block that the cache lacks is not waited for where it has later ones; the next one, if absent too, is."""
    monkeypatch.setattr("sources.retries.LONGEST_WAIT", 0.01)
    write_json_lines(tmp_path / "texts", texts, 2)
    config = DataConfig(sources=[{"type": "files", "path": str(tmp_path / "texts"), "name": "texts"}])
    pipeline = make_config(tokenizer, seq_length=16, num_lanes=1)

    def producer() -> LocalProducer:
        sources = open_sources(config).sources
        cached = cached_sources(ShardCache(tmp_path / "cache", 1.0), sources, config, pipeline)
        return LocalProducer(ProducerSetup(sources, pipeline, cached), PipelineCallbacks())

    filling, states = producer(), [None]
    for _ in range(2 * BLOCKS_PER_SHARD):
        states.append(filling.produce("texts", 0, states[-1]).after)
    reading = producer()
    source, failures = reading.sources["texts"], []
    read = source.read

    def flaky(shard, cursor):
        for document in read(shard, cursor):
            if failures:
                raise failures.pop()
            yield document

    source.read = flaky
    for path in (tmp_path / "cache").rglob("000000.*"):
        path.unlink()
    made = [reading.produce("texts", 0, state) for state in states[:2]]
    for path in (tmp_path / "cache").rglob(f"{BLOCKS_PER_SHARD:06}.*"):
        path.unlink()
    failures += [SourceError("the connection was lost", transient=True)] * 2
    made += [reading.produce("texts", 0, state) for state in states[2:BLOCKS_PER_SHARD]]
    assert not failures and [block.after for block in made] == states[1 : len(made) + 1]
