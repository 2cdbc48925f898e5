"""Lanes and loader: the same rows in the same order whatever serves them, and resumes that change nothing."""

import json
import random
import re
import time
from collections import Counter

import pytest
import torch

from shard_cache import ShardCache
from sources.config import DataConfig
from sources.loading.loader import BatchShape, Loader, LoaderOptions, SourceLost, merge_states
from sources.loading.state import without_sources
from sources.registry import AllSourcesFailed, OpenedSources, open_sources
from sources.rows.filters import is_held_out
from tests.helpers.sources import Flaky, Unreadable

T = 32


@pytest.fixture(params=["dealt", "shared"])
def dealing(request, monkeypatch) -> str:
    """Whether a source of few texts counts as a small one, of which all lanes share a chain of blocks."""
    if request.param == "dealt":
        monkeypatch.setattr("sources.registry.SMALL_SOURCE", 0)
    return request.param


@pytest.fixture
def corpus(tmp_path, texts, write_json_lines, dealing):
    """Two sources: 24 shards (more than the lanes) and 3 (fewer)."""
    short = [text[:700] for text in texts] + [text[700:800] for text in texts]
    many = write_json_lines(tmp_path / "many", short[: len(short) // 2], 24)
    few = write_json_lines(tmp_path / "few", short[len(short) // 2 :], 3)
    return [{"type": "files", "path": str(many), "name": "many"}, {"type": "files", "path": str(few), "name": "few"}]


def make(config, tokenizer, opened=None, state=None, **options) -> Loader:
    """A loader of 2 x 4 rows; `options` are those of its shape and LoaderOptions."""
    shape = {"micro_batch_size": 4, "grad_accumulation_steps": 2, "seq_length": T}
    shape |= {name: options.pop(name) for name in BatchShape.__dataclass_fields__ if name in options}
    options = LoaderOptions(**{"seed": 7} | options)
    return Loader(opened or open_sources(config), config, tokenizer, BatchShape(**shape), options, state)


def take(loader: Loader, number: int) -> list:
    batches = [batch for batch, _ in zip(loader, range(number), strict=False)]
    loader.close()
    return batches


def rows_of(batch) -> list[tuple]:
    """(source, input ids, labels, segment ids) of each row."""
    parts = (batch.input_ids.view(-1, T), batch.labels.view(-1, T), batch.segment_ids.view(-1, T))
    rows = zip(batch.source_ids.flatten().tolist(), *(part.tolist() for part in parts), strict=True)
    return [(owner, tuple(i), tuple(x), tuple(s)) for owner, i, x, s in rows]


def serve(config, tokenizer, world_size, num_workers, steps, rows=16, state=None, **options) -> tuple[list, dict]:
    """The rows that all ranks are given in `steps` steps, in their global order, and the merged state behind them."""
    options = {"world_size": world_size, "num_workers": num_workers, "grad_accumulation_steps": 1, **options}
    ranks = [
        take(make(config, tokenizer, state=state, rank=r, micro_batch_size=rows // world_size, **options), steps)
        for r in range(world_size)
    ]
    ordered = []
    first = state["row"] if state else 0
    for step in range(steps):
        given = [iter(rows_of(batches[step])) for batches in ranks]
        last = ranks[0][step].state["row"]
        num_lanes = ranks[0][step].state["num_lanes"]
        ordered += [next(given[row % num_lanes % world_size]) for row in range(first, last)]
        assert all(label == -100 for rest in given for row in rest for label in row[2])
        first = last
    return ordered, json.loads(json.dumps(merge_states([batches[-1].state for batches in ranks])))


@pytest.mark.parametrize(("world_size", "num_workers"), [(2, 1), pytest.param(1, 3, marks=pytest.mark.slow), (4, 0)])
def test_ranks_and_workers_do_not_change_the_rows(world_size, num_workers, corpus, tokenizer):
    config = DataConfig(sources=corpus)
    whole, state = serve(config, tokenizer, 1, 0, 20)
    other, other_state = serve(config, tokenizer, world_size, num_workers, 20)
    assert other == whole and other_state == state


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["round_robin", "sequential"])
def test_any_worlds_and_workers_stopped_and_resumed(strategy, corpus, tokenizer, tmp_path):
    """Worlds 1, 2, 4 x workers 0, 1, 3, stopped two and four times, cold, from the cache, and from both in turn."""
    config = DataConfig(sources=corpus, mix_strategy=strategy)
    whole, _ = serve(config, tokenizer, 1, 0, 80)
    rng = random.Random(11)
    grid = [(world, workers) for world in (1, 2, 4) for workers in (0, 1, 3)]
    for stops in (2, 4):
        for caching in ("never", "always", "sometimes"):
            cuts = sorted(rng.sample(range(1, 80), stops))
            rows, state = [], None
            for begin, end in zip([0, *cuts], [*cuts, 80], strict=True):
                world, workers = rng.choice(grid)
                cached = caching == "always" or (caching == "sometimes" and rng.random() < 0.5)
                cache = ShardCache(tmp_path / f"cache-{strategy}", 1.0) if cached else None
                found, state = serve(config, tokenizer, world, workers, end - begin, state=state, cache=cache)
                rows += found
            assert rows == whole


@pytest.mark.parametrize(
    ("strategy", "packing"),
    [
        ("round_robin", "best_fit"),
        ("sequential", "pad"),
        ("weighted", "best_fit"),
        pytest.param("round_robin", "pad", marks=pytest.mark.slow),
        pytest.param("sequential", "best_fit", marks=pytest.mark.slow),
        pytest.param("weighted", "pad", marks=pytest.mark.slow),
    ],
)
def test_resume_equals_the_uninterrupted_sequence(strategy, packing, corpus, tokenizer):
    weights = {"source_weights": {"many": 2.5}} if strategy == "weighted" else {}
    config = DataConfig(sources=corpus, mix_strategy=strategy, packing=packing, **weights)
    # 7 rows a step: a step ends anywhere in the order of lanes.
    odd = {"micro_batch_size": 7, "grad_accumulation_steps": 1}
    whole = take(make(config, tokenizer, **odd), 60)
    rng = random.Random(3)
    for cut in rng.sample(range(1, 50), 2):
        state = json.loads(json.dumps(whole[cut - 1].state))
        first = take(make(config, tokenizer, state=state, **odd), 5)
        second = take(make(config, tokenizer, state=json.loads(json.dumps(first[-1].state)), **odd), 5)
        assert [rows_of(batch) for batch in first + second] == [rows_of(batch) for batch in whole[cut : cut + 10]]
        assert second[-1].state == whole[cut + 9].state
        assert [batch.number for batch in first] == list(range(cut, cut + 5))


def test_a_resume_may_change_the_number_of_ranks(corpus, tokenizer):
    """Also to one that does not divide the number of lanes."""
    config = DataConfig(sources=corpus)
    whole, _ = serve(config, tokenizer, 1, 0, 40, rows=24)
    state, rows = None, []
    for world_size in (2, 3, 1, 4, 6):
        found, state = serve(config, tokenizer, world_size, 0, 4, rows=24, state=state)
        rows += found
    assert rows == whole[: 20 * 24] and state["row"] == 20 * 24
    assert sum(state["tokens_per_source"].values()) == sum(label != -100 for row in rows for label in row[2])


def test_cached_rows_are_the_sources_rows_and_need_no_source(corpus, tokenizer, tmp_path):
    config = DataConfig(sources=corpus)
    cold, _ = serve(config, tokenizer, 1, 0, 30)
    filling, _ = serve(config, tokenizer, 1, 0, 30, cache=ShardCache(tmp_path / "cache", 1.0))
    opened = open_sources(config)
    for name, source in opened.sources.items():
        opened.sources[name] = Unreadable(source)
    shape = {"micro_batch_size": 16, "grad_accumulation_steps": 1}
    cached = take(make(config, tokenizer, opened, cache=ShardCache(tmp_path / "cache", 1.0), **shape), 30)
    assert filling == cold == [row for batch in cached for row in rows_of(batch)]
    assert (tmp_path / "cache").is_dir()


def test_a_damaged_cache_is_made_again_from_the_source(corpus, tokenizer, tmp_path):
    config = DataConfig(sources=corpus[:1], retry_minutes=10.0)
    shape = {"micro_batch_size": 16, "grad_accumulation_steps": 1}
    cold, _ = serve(config, tokenizer, 1, 0, 60, cache=ShardCache(tmp_path / "cache", 1.0))
    for path in (tmp_path / "cache").rglob("*.tar"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    opened = open_sources(config)
    opened.sources["many"] = Unreadable(opened.sources["many"])
    loader = make(config, tokenizer, opened, cache=ShardCache(tmp_path / "cache", 1.0), **shape)
    with pytest.raises(SourceLost, match="the data is gone"):
        loader.next()
    loader.close()

    loader = make(config, tokenizer, cache=ShardCache(tmp_path / "cache", 1.0), **shape)
    batches = take(loader, 60)
    assert [row for batch in batches for row in rows_of(batch)] == cold
    assert any("SHA-256" in event["message"] for batch in batches for event in batch.events)
    again = take(make(config, tokenizer, opened, cache=ShardCache(tmp_path / "cache", 1.0), **shape), 60)
    assert [row for batch in again for row in rows_of(batch)] == cold


def test_a_cache_of_other_rows_is_not_used(corpus, tokenizer, tmp_path):
    config = DataConfig(sources=corpus)
    cache = {"cache": ShardCache(tmp_path / "cache", 1.0)}
    serve(config, tokenizer, 1, 0, 5, **cache)
    for changed, options in (
        (DataConfig(sources=corpus, packing="pad"), {}),
        (DataConfig(sources=corpus, min_text_length=300), {}),
        (config, {"seed": 8}),
        (config, {"num_lanes": 32}),
    ):
        cold, _ = serve(changed, tokenizer, 1, 0, 5, **options)
        assert serve(changed, tokenizer, 1, 0, 5, **options, **cache)[0] == cold


def test_states_that_do_not_belong_together_are_refused(corpus, tokenizer):
    config = DataConfig(sources=corpus)
    ranks = [take(make(config, tokenizer, rank=r, world_size=2), 2) for r in range(2)]
    with pytest.raises(ValueError, match="different steps"):
        merge_states([ranks[0][0].state, ranks[1][1].state])
    with pytest.raises(ValueError, match="8 of 16 lanes"):
        merge_states([ranks[0][0].state])
    with pytest.raises(ValueError, match="at most 16 processes"):
        make(config, tokenizer, world_size=17, num_lanes=16)
    with pytest.raises(ValueError, match="another version"):
        make(config, tokenizer, state={"lanes": {}})


def test_batches_have_the_promised_form(corpus, tokenizer):
    (batch,) = take(make(DataConfig(sources=corpus), tokenizer, grad_accumulation_steps=3, micro_batch_size=2), 1)
    assert batch.input_ids.shape == batch.labels.shape == batch.segment_ids.shape == (3, 2, T)
    assert batch.input_ids.dtype == batch.labels.dtype == batch.source_ids.dtype == torch.int64
    assert batch.segment_ids.dtype == torch.int32 and batch.number == 0
    assert batch.num_tokens == (batch.labels != -100).sum() > 5 * T
    inner = batch.segment_ids[..., 1:] == batch.segment_ids[..., :-1]
    inner &= batch.segment_ids[..., 1:] >= 0
    assert torch.equal(batch.input_ids[..., 1:][inner], batch.labels[..., :-1][inner])
    assert set(batch.source_ids.flatten().tolist()) == {0, 1}  # lanes beside each other begin with different sources


@pytest.mark.parametrize("packing", ["best_fit", "pad"])
@pytest.mark.parametrize("weights", [{"many": 1.0, "few": 1.0}, {"many": 3.0, "few": 0.5}])
def test_shares_of_tokens_hold_whatever_the_lengths(weights, packing, corpus, tokenizer):
    config = DataConfig(sources=corpus, mix_strategy="weighted", source_weights=weights, packing=packing)
    state = take(make(config, tokenizer, micro_batch_size=64), 25)[-1].state
    totals = merge_states([state])["tokens_per_source"]
    for name, weight in weights.items():
        # Each lane is at most a row of T tokens off.
        assert abs(totals[name] - sum(totals.values()) * weight / sum(weights.values())) < 16 * T


def test_live_weights_count_from_their_batch_on(corpus, tokenizer):
    config = DataConfig(sources=corpus, mix_strategy="weighted")

    def weights_at(number: int) -> dict[str, float]:
        return {"many": 1.0, "few": 1.0} if number < 10 else {"many": 1.0, "few": 9.0}

    options = {"weights_at": weights_at, "micro_batch_size": 32}
    slow = make(config, tokenizer, **options)
    batches = []
    for batch, _ in zip(slow, range(30), strict=False):
        time.sleep(0.01)
        batches.append(batch)
    slow.close()
    shares = [torch.cat([b.source_ids for b in part]).float().mean() for part in (batches[:10], batches[10:])]
    assert abs(shares[0] - 0.5) < 0.03 and abs(shares[1] - 0.9) < 0.03
    again = take(make(config, tokenizer, state=json.loads(json.dumps(batches[7].state)), **options), 10)
    assert [rows_of(b) for b in again] == [rows_of(b) for b in batches[8:18]]


def test_sequential_gives_whole_epochs_in_turn(corpus, tokenizer):
    config = DataConfig(sources=corpus, mix_strategy="sequential")
    rows, _ = serve(config, tokenizer, 1, 0, 300)
    for lane in range(16):
        owners = [owner for owner, *_ in rows[lane::16]]
        turns = [owner for position, owner in enumerate(owners) if position == 0 or owners[position - 1] != owner]
        assert turns[:3] == [0, 1, 0]


def test_a_lost_source_goes_on_later_where_it_was(corpus, tokenizer, dealing):
    config = DataConfig(sources=corpus, retry_minutes=0.0)
    whole, _ = serve(config, tokenizer, 1, 0, 250)
    opened = open_sources(config)
    opened.sources["few"] = Flaky(opened.sources["few"], 12_000 if dealing == "dealt" else 400, 10**9)
    loader, batches = make(config, tokenizer, opened, micro_batch_size=16, grad_accumulation_steps=1), []
    with pytest.raises(SourceLost, match="few: the connection was lost, token hf_\\*\\*\\*"):
        for batch in loader:
            batches.append(batch)
    with pytest.raises(SourceLost):
        loader.next()
    loader.close()
    assert len(batches) > 3
    without = open_sources(config).without("few", "gone")
    state = json.loads(json.dumps(batches[-1].state))
    meanwhile = take(make(config, tokenizer, without, state=state, micro_batch_size=16, grad_accumulation_steps=1), 3)
    assert set(meanwhile[-1].source_ids.flatten().tolist()) == {0}
    # Back again: from every lane the next row of "few" is the one that the uninterrupted sequence has there.
    seen = {lane: [row[1:] for row in whole[lane::16] if row[0] == 1] for lane in range(16)}
    given = {lane: 0 for lane in range(16)}
    for position, row in enumerate(row for batch in batches for row in rows_of(batch)):
        given[position % 16] += row[0] == 1
    back, _ = serve(config, tokenizer, 1, 0, 3, state=json.loads(json.dumps(meanwhile[-1].state)))
    for lane in range(16):
        follows = next(row[1:] for row in back[lane::16] if row[0] == 1)
        assert follows == seen[lane][given[lane]]


def test_absent_sources_keep_their_place(corpus, tokenizer):
    config = DataConfig(sources=corpus)
    state = merge_states([take(make(config, tokenizer), 5)[-1].state])
    without = open_sources(config).without("few", "not today")
    later = merge_states([take(make(config, tokenizer, without, state=state), 3)[-1].state])
    for lane, kept in state["lanes"].items():
        assert later["lanes"][lane]["streams"]["few"] == kept["streams"]["few"]
    assert later["tokens_per_source"]["few"] == state["tokens_per_source"]["few"]


def test_a_source_taken_out_of_the_state_starts_again(corpus, tokenizer):
    config = DataConfig(sources=corpus)
    whole, state = serve(config, tokenizer, 1, 0, 20)
    again, _ = serve(config, tokenizer, 1, 0, 10, state=without_sources(state, {"few"}))
    for lane in range(16):
        old, new = ([row[1:] for row in rows[lane::16] if row[0] == 1] for rows in (whole, again))
        assert new and new == old[: len(new)]


def test_without_any_source_there_is_no_loader(corpus, tokenizer):
    with pytest.raises(AllSourcesFailed, match="many: a; few: b"):
        make(DataConfig(sources=corpus), tokenizer, OpenedSources({}, {"many": "a", "few": "b"}))


def test_a_small_source_fills_every_lane(tmp_path, texts, tokenizer, write_json_lines):
    write_json_lines(tmp_path / "tiny", texts[:5], 1)
    config = DataConfig(sources=[{"type": "files", "path": str(tmp_path / "tiny")}])
    for world_size in (1, 4):
        rows, _ = serve(config, tokenizer, world_size, 0, 10)
        assert all(row[2][0] != -100 for row in rows)
    (source,) = open_sources(config).sources.values()
    assert any("it is small, with " in notice for notice in source.notices)


def numbers_of(rows: list[tuple], tokenizer) -> Counter[int]:
    """How often each document begins in these rows, by the number that it begins with."""
    found: Counter[int] = Counter()
    for _, inputs, labels, segments in rows:
        begins = [place for place in range(T) if inputs[place] == tokenizer.eos_id and segments[place] >= 0]
        for place in begins:
            match = re.match(
                r"No\. (\d+):", tokenizer.decode([label for label in labels[place : place + 12] if label >= 0])
            )
            found.update([int(match[1])] if match else [])
    return found


@pytest.mark.parametrize("world_size", [1, 3])
def test_a_small_sources_documents_come_equally_often(world_size, tmp_path, texts, tokenizer, write_json_lines):
    """Whatever their lengths, and whichever ranks serve them."""
    documents = [f"No. {number}: {text[: (60, 400, 150)[number % 3]]}" for number, text in enumerate(texts)]
    documents = [text for text in documents if not is_held_out(text)][:60]
    write_json_lines(tmp_path / "small", documents, 2)
    config = DataConfig(sources=[{"type": "files", "path": str(tmp_path / "small")}])
    epoch = sum(len(ids) + 1 for ids in tokenizer.encode_batch(documents)) / T
    rows, _ = serve(config, tokenizer, world_size, 0, round(8 * epoch / 24), rows=24)
    counts = numbers_of(rows, tokenizer)
    assert len(counts) > 50 and set(counts.values()) <= {6, 7, 8, 9, 10}


def test_lanes_of_an_older_version_come_to_share_a_chain(tmp_path, texts, tokenizer, write_json_lines):
    write_json_lines(tmp_path / "small", [text[:300] for text in texts[:40]], 2)
    config = DataConfig(sources=[{"type": "files", "path": str(tmp_path / "small"), "name": "small"}])
    dealt = open_sources(config)
    dealt.small.clear()  # each lane has a chain of its own, as it had in format 3
    state = merge_states([take(make(config, tokenizer, dealt, micro_batch_size=64), 40)[-1].state])
    older = json.loads(json.dumps(state | {"format": 3}))
    passed = sum(lane["streams"]["small"]["state"]["pass"] for lane in older["lanes"].values())
    batches = take(make(config, tokenizer, state=older), 10)
    (notice,) = [
        event["message"] for batch in batches for event in batch.events if "order of its own" in event["message"]
    ]
    assert notice.endswith(f"begin epoch {passed + 1}")
    after = merge_states([batches[-1].state])
    assert after["tokens_per_source"]["small"] > state["tokens_per_source"]["small"] and after["format"] == 4
    again = take(make(config, tokenizer, state=json.loads(json.dumps(batches[3].state))), 6)
    assert [rows_of(batch) for batch in again] == [rows_of(batch) for batch in batches[4:]]
    assert not any("order of its own" in event["message"] for batch in again for event in batch.events)


@pytest.mark.parametrize("change", ["seq_length", "packing"])
def test_rows_of_another_form_keep_lanes_on_one_chain(change, tmp_path, texts, tokenizer, write_json_lines):
    write_json_lines(tmp_path / "small", [text[:300] for text in texts[:40]], 2)
    values = {"sources": [{"type": "files", "path": str(tmp_path / "small"), "name": "small"}]}
    batch = take(make(DataConfig(**values), tokenizer, micro_batch_size=7), 44)[-1]
    changed = DataConfig(**values, packing="pad" if change == "packing" else "best_fit")
    options = {"seq_length": 16} if change == "seq_length" else {}
    state = take(make(changed, tokenizer, state=json.loads(json.dumps(batch.state)), **options), 1)[-1].state
    positions = [lane["streams"]["small"]["state"] for lane in state["lanes"].values()]
    assert positions[0] is not None and all(position == positions[0] for position in positions)


def test_epochs_are_announced_once_with_filtered_documents(corpus, tokenizer):
    batches = take(make(DataConfig(sources=corpus[:1]), tokenizer), 150)
    epochs = [event for batch in batches for event in batch.events if event["what"] == "next_pass"]
    assert epochs[0]["message"].startswith("many begins epoch 2") and "held out" in epochs[0]["message"]
    assert [event["pass"] for event in epochs] == sorted({event["pass"] for event in epochs})
