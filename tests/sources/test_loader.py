"""Lanes and loader: every document once per pass, the same rows on any number of ranks, resumes that change nothing."""

import json
import random
from collections import Counter

import pytest
import torch

from sources.config import DataConfig
from sources.held_out import is_held_out
from sources.loader import Loader, choose_num_lanes, merge_states
from sources.registry import AllSourcesFailed, OpenedSources, open_sources
from sources.source import SourceError

T = 32


@pytest.fixture
def corpus(tmp_path, texts, write_json_lines):
    """Two sources: 11 shards (more than the lanes) and 3 (fewer)."""
    short = [text[:700] for text in texts]
    many = write_json_lines(tmp_path / "many", short[: len(short) // 2], 11)
    few = write_json_lines(tmp_path / "few", short[len(short) // 2 :], 3)
    return [{"type": "files", "path": str(many), "name": "many"}, {"type": "files", "path": str(few), "name": "few"}]


def make(config, tokenizer, opened=None, **options) -> Loader:
    options = {"seq_length": T, "micro_batch_size": 4, "accumulation_steps": 2} | options
    return Loader(opened or open_sources(config), config, tokenizer, **options)


def take(loader: Loader, number: int) -> list:
    batches = [batch for batch, _ in zip(loader, range(number), strict=False)]
    loader.close()
    return batches


def rows_of(batch) -> list[tuple[int, tuple[int, ...], tuple[int, ...]]]:
    owners, inputs, labels = batch.source_ids.flatten(), batch.input_ids.view(-1, T), batch.labels.view(-1, T)
    return [(int(o), tuple(i.tolist()), tuple(x.tolist())) for o, i, x in zip(owners, inputs, labels, strict=True)]


def global_rows(config, tokenizer, world_size, steps) -> list:
    """The rows of all ranks in their global order; the global batch is the same for every world size."""
    ranks = [
        take(make(config, tokenizer, rank=r, world_size=world_size, micro_batch_size=8 // world_size), steps)
        for r in range(world_size)
    ]
    ordered = []
    for step in range(steps):
        per_rank = [rows_of(batches[step]) for batches in ranks]
        ordered += [per_rank[i % world_size][i // world_size] for i in range(world_size * len(per_rank[0]))]
    return ordered


def trained_documents(texts) -> list[str]:
    return [text for text in texts if len(text.strip()) >= 50 and not is_held_out(text)]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_every_document_exactly_once_per_pass(world_size, corpus, tokenizer):
    config = DataConfig(sources=corpus)
    opened = open_sources(config)
    rows = global_rows(config, tokenizer, world_size, 100)
    for owner, source in enumerate(opened.sources.values()):
        documents = [text for shard in range(source.num_shards) for text, _ in source.read(shard, None)]
        expected = Counter(trained_documents(documents))
        assert sum(expected.values()) > 20
        seen: Counter[str] = Counter()
        for lane in range(8):
            labels = [token for o, _, labels in rows[lane::8] if o == owner for token in labels]
            found = tokenizer.decode(labels).split("<|endoftext|>")[:-1]
            assert found.count(found[0]) > 1, "this lane has not finished its first pass"
            one_pass = found[: found.index(found[0], 1)]
            assert found == (one_pass * len(found))[: len(found)]
            seen.update(one_pass)
        assert seen == expected


def test_the_same_rows_in_the_same_steps_for_any_world(corpus, tokenizer):
    config = DataConfig(sources=corpus)
    assert global_rows(config, tokenizer, 1, 12) == global_rows(config, tokenizer, 2, 12)
    assert global_rows(config, tokenizer, 1, 12) == global_rows(config, tokenizer, 4, 12)


@pytest.mark.parametrize("strategy", ["round_robin", "sequential", "weighted"])
def test_resume_equals_the_uninterrupted_sequence(strategy, corpus, tokenizer):
    weights = {"source_weights": {"many": 2.5}} if strategy == "weighted" else {}
    config = DataConfig(sources=corpus, mix_strategy=strategy, **weights)
    # 7 rows a step: a step ends anywhere in the order of lanes.
    odd = {"micro_batch_size": 7, "accumulation_steps": 1}
    whole = take(make(config, tokenizer, **odd), 45)
    rng = random.Random(3)
    for cut in rng.sample(range(1, 35), 3):
        state = json.loads(json.dumps(whole[cut - 1].state))
        first = take(make(config, tokenizer, state=state, **odd), 5)
        second = take(make(config, tokenizer, state=json.loads(json.dumps(first[-1].state)), **odd), 5)
        assert [rows_of(batch) for batch in first + second] == [rows_of(batch) for batch in whole[cut : cut + 10]]
        assert second[-1].state == whole[cut + 9].state


def test_resume_beside_a_source_that_is_dry_in_most_lanes(corpus, tmp_path, texts, tokenizer, write_json_lines):
    some = trained_documents([text for text in texts if len(text) < 2000])[:2]
    write_json_lines(tmp_path / "tiny", some, 1)
    config = DataConfig(sources=[corpus[0], {"type": "files", "path": str(tmp_path / "tiny")}])
    whole = take(make(config, tokenizer), 20)
    for cut in (1, 2, 9):
        again = take(make(config, tokenizer, state=json.loads(json.dumps(whole[cut - 1].state))), 10)
        assert [rows_of(batch) for batch in again] == [rows_of(batch) for batch in whole[cut : cut + 10]]
        assert [batch.state for batch in again] == [batch.state for batch in whole[cut : cut + 10]]


def test_a_resume_may_change_the_number_of_ranks(corpus, tokenizer):
    config = DataConfig(sources=corpus)
    whole = [row for batch in take(make(config, tokenizer, micro_batch_size=8), 9) for row in rows_of(batch)]
    state, rows, worlds = None, [], (2, 4, 1)
    for world_size in worlds:
        options = {"world_size": world_size, "micro_batch_size": 8 // world_size, "state": state}
        ranks = [take(make(config, tokenizer, rank=r, **options), 3) for r in range(world_size)]
        for step in range(3):
            per_rank = [rows_of(batches[step]) for batches in ranks]
            rows += [per_rank[i % world_size][i // world_size] for i in range(16)]
        state = json.loads(json.dumps(merge_states([batches[-1].state for batches in ranks])))
    assert rows == whole
    assert sum(state["tokens_per_source"].values()) == len(rows) * T


def test_prefetch_changes_nothing(corpus, tokenizer):
    config = DataConfig(sources=corpus)
    one, many = take(make(config, tokenizer, prefetch=1), 6), take(make(config, tokenizer, prefetch=5), 6)
    assert [batch.state for batch in one] == [batch.state for batch in many]


def test_states_that_do_not_belong_together_are_refused(corpus, tokenizer):
    config = DataConfig(sources=corpus)
    ranks = [take(make(config, tokenizer, rank=r, world_size=2), 2) for r in range(2)]
    with pytest.raises(ValueError, match="different steps"):
        merge_states([ranks[0][0].state, ranks[1][1].state])
    with pytest.raises(ValueError, match="4 of 8 lanes"):
        merge_states([ranks[0][0].state])
    with pytest.raises(ValueError, match=r"8 lanes.*1, 2, 4, 8\."):
        make(config, tokenizer, world_size=3)


def test_choose_num_lanes():
    assert [choose_num_lanes(world) for world in (1, 2, 3, 6, 8, 16, 24)] == [8, 8, 12, 12, 8, 16, 24]


def test_batches_have_the_promised_form(corpus, tokenizer):
    (batch,) = take(make(DataConfig(sources=corpus), tokenizer, accumulation_steps=3, micro_batch_size=2), 1)
    assert batch.input_ids.shape == batch.labels.shape == (3, 2, T)
    assert batch.input_ids.dtype == batch.labels.dtype == batch.source_ids.dtype == torch.int64
    assert batch.num_tokens == 6 * T
    assert torch.equal(batch.input_ids[..., 1:], batch.labels[..., :-1])
    assert set(batch.source_ids.flatten().tolist()) == {0, 1}  # lanes beside each other begin with different sources


def test_held_out_documents_are_never_trained_on(tmp_path, texts, tokenizer, write_json_lines):
    pieces = list(dict.fromkeys(text[n : n + 120] for text in texts for n in range(0, len(text) - 120, 120)))
    held = [piece for piece in pieces if is_held_out(piece)][:10]
    trained = trained_documents(pieces)[:60]
    assert len(held) == 10
    write_json_lines(tmp_path / "mixed", [*trained[:30], *held, *trained[30:]], 2)
    config = DataConfig(sources=[{"type": "files", "path": str(tmp_path / "mixed")}])
    rows = global_rows(config, tokenizer, 1, 15)
    seen: set[str] = set()
    for lane in range(8):
        seen.update(tokenizer.decode([t for _, _, labels in rows[lane::8] for t in labels]).split("<|endoftext|>")[:-1])
    assert seen == set(trained)


@pytest.mark.parametrize("weights", [{"many": 1.0, "few": 1.0}, {"many": 3.0, "few": 0.5}])
def test_shares_hold_within_one_percent(weights, corpus, tokenizer):
    config = DataConfig(sources=corpus, mix_strategy="weighted", source_weights=weights)
    totals = take(make(config, tokenizer, micro_batch_size=32), 40)[-1].state["tokens_per_source"]
    for name, weight in weights.items():
        assert abs(totals[name] / sum(totals.values()) - weight / sum(weights.values())) < 0.01


def test_sequential_gives_whole_passes_in_turn(corpus, tokenizer):
    config = DataConfig(sources=corpus, mix_strategy="sequential")
    rows = global_rows(config, tokenizer, 1, 100)
    opened = open_sources(config)
    for lane in range(8):
        owners = [owner for owner, _, _ in rows[lane::8]]
        turns = [owner for position, owner in enumerate(owners) if position == 0 or owners[position - 1] != owner]
        assert turns[:3] == [0, 1, 0]
        first = next(p for p, owner in enumerate(owners) if owner == 1)
        labels = [token for _, _, labels in rows[lane::8][:first] for token in labels]
        documents = [text for shard in range(lane, 11, 8) for text, _ in opened.sources["many"].read(shard, None)]
        assert tokenizer.decode(labels).startswith("<|endoftext|>".join(trained_documents(documents)))


def test_a_source_with_fewer_documents_than_lanes(tmp_path, texts, tokenizer, write_json_lines):
    some = [text for text in texts if len(text) < 2000 and not is_held_out(text)][:3]
    write_json_lines(tmp_path / "tiny", some, 1)
    config = DataConfig(sources=[{"type": "files", "path": str(tmp_path / "tiny")}])
    for world_size in (1, 4):
        ranks = [take(make(config, tokenizer, rank=r, world_size=world_size), 3) for r in range(world_size)]
        tokens = [sum(batch.num_tokens for batch in batches) for batches in ranks]
        # Document n belongs to lane n; ranks that own none of the lanes 0..2 have nothing and say so.
        assert tokens == [3 * 8 * T if rank < 3 else 0 for rank in range(world_size)]
    assert all((batch.labels == -100).all() for batch in ranks[3])


class Failing:
    """A real source that fails after so many documents, so many times, as a network does but not on demand."""

    def __init__(self, inner, documents: int, times: int):
        self.inner, self.documents, self.times = inner, documents, times
        self.name, self.num_shards = inner.name, inner.num_shards
        self.notices, self.counts = inner.notices, inner.counts

    def pin(self):
        return self.inner.pin()

    def read(self, shard, cursor):
        for document in self.inner.read(shard, cursor):
            if self.documents <= 0 and self.times > 0:
                self.times -= 1
                raise SourceError("the connection was lost, token hf_abcdef")
            self.documents -= 1
            yield document


@pytest.fixture
def no_wait(monkeypatch):
    monkeypatch.setattr("sources.lanes.BACKOFF", 0.0)


def test_a_failure_that_passes_is_retried_and_loses_nothing(corpus, tokenizer, no_wait):
    config = DataConfig(sources=corpus)
    expected = take(make(config, tokenizer), 10)
    opened = open_sources(config)
    opened.sources["few"] = Failing(opened.sources["few"], 5, 2)
    batches = take(make(config, tokenizer, opened), 10)
    assert [rows_of(batch) for batch in batches] == [rows_of(batch) for batch in expected]
    retries = [event for batch in batches for event in batch.events if event["what"] == "retry"]
    assert len(retries) == 2
    assert retries[0]["name"] == "few" and "hf_***" in retries[0]["message"]


def test_a_source_that_stays_away_is_dropped_and_later_goes_on_where_it_was(corpus, tokenizer, no_wait):
    config = DataConfig(sources=corpus)
    opened = open_sources(config)
    opened.sources["few"] = Failing(opened.sources["few"], 600, 10**9)
    batches = take(make(config, tokenizer, opened), 60)
    dropped = [event for batch in batches for event in batch.events if event["what"] == "dropped"]
    assert len(dropped) == 1 and dropped[0]["name"] == "few"
    assert {owner for owner, _, _ in rows_of(batches[-1])} == {0}
    # Back again: from every lane the next row of "few" is the one that the uninterrupted sequence has there.
    state = json.loads(json.dumps(batches[-1].state))
    delivered = {lane: kept["streams"]["few"]["tokens"] // T for lane, kept in state["lanes"].items()}
    assert sum(delivered.values()) > 0
    only_few = DataConfig(sources=corpus[1:])
    rows = global_rows(only_few, tokenizer, 1, 60)
    resumed = take(make(config, tokenizer, state=state), 4)
    first_seen: dict[int, tuple] = {}
    for position, (owner, inputs, labels) in enumerate(row for batch in resumed for row in rows_of(batch)):
        lane = (state["row"] + position) % 8
        if owner == 1 and lane not in first_seen:
            first_seen[lane] = (inputs, labels)
    assert len(first_seen) == 8
    for lane, row in first_seen.items():
        assert rows[lane::8][delivered[str(lane)]][1:] == row


def test_absent_sources_keep_their_place(corpus, tokenizer):
    config = DataConfig(sources=corpus)
    state = take(make(config, tokenizer), 5)[-1].state
    opened = open_sources(config)
    without = OpenedSources({"many": opened.sources["many"]}, {"few": "not today"})
    later = take(make(config, tokenizer, without, state=state), 3)[-1]
    assert set(later.source_ids.flatten().tolist()) == {0}
    for lane, kept in state["lanes"].items():
        assert later.state["lanes"][lane]["streams"]["few"] == kept["streams"]["few"]
    assert later.state["tokens_per_source"]["few"] == state["tokens_per_source"]["few"]


def test_when_every_source_failed_the_reasons_travel(corpus, tokenizer, no_wait, tmp_path):
    config = DataConfig(sources=[corpus[0], {"type": "pdf", "path": str(tmp_path / "none"), "name": "papers"}])
    opened = open_sources(config)
    opened.sources["many"] = Failing(opened.sources["many"], 0, 10**9)
    loader = make(config, tokenizer, opened)
    for _ in range(2):
        with pytest.raises(AllSourcesFailed) as caught:
            next(iter(loader))
    loader.close()
    assert set(caught.value.reasons) == {"many", "papers"}
    assert "connection was lost" in str(caught.value) and "does not exist" in str(caught.value)
    with pytest.raises(AllSourcesFailed):
        make(config, tokenizer, OpenedSources({}, {"many": "a", "papers": "b"}))


def test_passes_are_announced_once(corpus, tokenizer):
    batches = take(make(DataConfig(sources=corpus[:1]), tokenizer), 60)
    passes = [event["message"] for batch in batches for event in batch.events if event["what"] == "next_pass"]
    assert passes[0] == "many begins pass 2"
    assert len(passes) == len(set(passes))
