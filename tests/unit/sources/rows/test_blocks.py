"""Blocks from the cache, from the source, and past a damaged shard when the source is gone."""

import json
from collections import Counter

import numpy as np

from shard_cache import BLOCKS_PER_SHARD, ShardCache
from sources.caching import LazySource, cached_sources, description
from sources.config import DataConfig
from sources.registry import open_sources
from sources.rows.blocks import BlockMaker
from sources.rows.filters import Filters, is_held_out
from sources.rows.pipeline import Recipe, Surroundings
from sources.source import SourceError
from tests.helpers.sources import Unreadable


def same(one, other) -> bool:
    return all(np.array_equal(getattr(one.block, name), getattr(other.block, name)) for name in ("ids", "pieces"))


def make_recipe(tokenizer, **options) -> Recipe:
    usual = {
        "packing": "best_fit",
        "filters": Filters(50),
        "shuffle": True,
        "seed": 3,
        "retry_minutes": 10.0,
        "whole_passes": True,
    }
    return Recipe(tokenizer=tokenizer, **(usual | options))


def test_rows_without_text_are_counted_once_however_many_lanes_share_a_shard(tmp_path, texts, tokenizer):
    rows = [{"text": text[:300]} for text in texts] + [{"text": None}, {"text": " "}, {"other": "x"}] * 5
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "not JSON\n")
    config = DataConfig(sources=[{"type": "files", "path": str(tmp_path), "name": "rows"}])
    maker = BlockMaker(
        open_sources(config).sources, make_recipe(tokenizer, seq_length=64, num_lanes=16), {}, Surroundings()
    )
    for source in maker.sources.values():
        source.counts.clear()
    counts: Counter[str] = Counter()
    for lane in range(16):
        state = None
        while state is None or state["pass"] == 0:
            made = maker.make("rows", lane, state)
            state = made.after
            counts.update(made.counts)
    assert counts["rows without text"] == 15 and counts["lines that are not JSON"] == 1
    assert counts["held out for evaluation"] == sum(is_held_out(text[:300]) for text in texts)


def test_a_damaged_shard_is_made_again_or_skipped_where_the_source_is_gone(
    tmp_path, texts, tokenizer, write_json_lines
):
    write_json_lines(tmp_path / "texts", texts, 2)
    config = DataConfig(sources=[{"type": "files", "path": str(tmp_path / "texts"), "name": "texts"}])
    recipe = make_recipe(tokenizer, seq_length=16, num_lanes=1)
    told: list[tuple[str, str, str]] = []

    def maker(readable: bool = True) -> BlockMaker:
        sources = open_sources(config).sources
        if not readable:
            sources = {name: Unreadable(source) for name, source in sources.items()}
        cached = cached_sources(ShardCache(tmp_path / "cache", 1.0), sources, config, recipe)
        return BlockMaker(sources, recipe, cached, Surroundings(lambda *event: told.append(event)))

    filling, states, blocks = maker(), [None], []
    for _ in range(2 * BLOCKS_PER_SHARD + 3):
        blocks.append(filling.make("texts", 0, states[-1]))
        states.append(blocks[-1].after)
    filling.flush()
    tars = sorted((tmp_path / "cache").rglob("*.tar"))
    assert [tar.stem for tar in tars] == ["000000", f"{BLOCKS_PER_SHARD:06}", f"{2 * BLOCKS_PER_SHARD:06}"]
    reading = maker(readable=False)
    assert all(same(reading.make("texts", 0, state), block) for state, block in zip(states, blocks, strict=False))

    damaged = bytearray(tars[1].read_bytes())
    damaged[len(damaged) // 2] ^= 4
    tars[1].write_bytes(damaged)
    reading, state, found = maker(readable=False), None, []
    while len(found) < BLOCKS_PER_SHARD + 3:
        found.append(reading.make("texts", 0, state))
        state = found[-1].after
    expected = [*blocks[:BLOCKS_PER_SHARD], *blocks[2 * BLOCKS_PER_SHARD :]]
    assert all(same(one, other) for one, other in zip(found, expected, strict=True))
    assert any(what == "skipped" and "they are skipped" in message for _, what, message in told)
    assert any("is damaged (" in message for _, _, message in told)

    mending, state = maker(), None
    for block in blocks:
        made = mending.make("texts", 0, state)
        assert same(made, block)
        state = made.after
    mending.flush()
    reading = maker(readable=False)
    assert all(same(reading.make("texts", 0, state), block) for state, block in zip(states, blocks, strict=False))


def test_behind_a_hole_in_the_cache_a_source_is_waited_for(tmp_path, texts, tokenizer, write_json_lines, monkeypatch):
    """A block that the cache lacks is not waited for where it has later ones; the next one, if absent too, is."""
    monkeypatch.setattr("sources.rows.pipeline.LONGEST_WAIT", 0.01)
    write_json_lines(tmp_path / "texts", texts, 2)
    config = DataConfig(sources=[{"type": "files", "path": str(tmp_path / "texts"), "name": "texts"}])
    recipe = make_recipe(tokenizer, seq_length=16, num_lanes=1)

    def maker() -> BlockMaker:
        sources = open_sources(config).sources
        cached = cached_sources(ShardCache(tmp_path / "cache", 1.0), sources, config, recipe)
        return BlockMaker(sources, recipe, cached, Surroundings())

    filling, states = maker(), [None]
    for _ in range(2 * BLOCKS_PER_SHARD):
        states.append(filling.make("texts", 0, states[-1]).after)
    reading = maker()
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
    made = [reading.make("texts", 0, state) for state in states[:2]]
    for path in (tmp_path / "cache").rglob(f"{BLOCKS_PER_SHARD:06}.*"):
        path.unlink()
    failures += [SourceError("the connection was lost", transient=True)] * 2
    made += [reading.make("texts", 0, state) for state in states[2:BLOCKS_PER_SHARD]]
    assert not failures and [block.after for block in made] == states[1 : len(made) + 1]


def test_a_cache_tells_whether_a_source_is_small_only_of_the_same_texts_and_not_against_a_pin(tmp_path, tokenizer):
    """Found in the cache, a source of a hub is not opened, so there need be none here."""

    def config(**data) -> DataConfig:
        return DataConfig(sources=[{"type": "hf", "dataset": "owner/name", "name": "name"}], **data)

    cache = ShardCache(tmp_path / "cache", 1.0)
    known = {"source": {"commit": "0123"}, "small": True, "num_shards": 3, "fingerprint": "0123"}
    remembered = LazySource("name", known, lambda: None)
    recipe = make_recipe(tokenizer, seq_length=16, num_lanes=16, replicated=frozenset({"name"}))
    cached_sources(cache, {"name": remembered}, config(), recipe)
    assert open_sources(config(), cache=cache).small == {"name"}
    pins = {"name": {"source": known["source"], "small": False}}
    assert open_sources(config(), pins, cache=cache).small == set()
    for min_text_length in (config().min_text_length, 7):
        found = cache.find(description(config().sources[0], config(min_text_length=min_text_length)))
        assert (found is not None) == (min_text_length == config().min_text_length)
