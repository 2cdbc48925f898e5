"""One lane: whose row is next, what a state resumes with, and sources that fail, end or are absent."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from sources.config import DataConfig
from sources.loading.lanes import Lane, RowSpan, SourceLost
from sources.loading.prefetch import Prefetcher
from sources.registry import open_sources
from sources.rows.filters import Filters
from sources.rows.producer import ProducerSetup
from tests.helpers.sources import Flaky

Row = tuple[str, tuple[int, ...]]
EQUAL = {"many": 1.0, "few": 1.0}


@pytest.fixture
def open_lane(setup: ProducerSetup) -> Iterator[Callable[..., Lane]]:
    """Opens lane 2 over `setup` with changes; `names` are the open sources."""
    prefetchers: list[Prefetcher] = []

    def make(weights: dict[str, float] | None = EQUAL, names=("many", "few"), state=None, number=2, **changes) -> Lane:
        prefetchers.append(Prefetcher(replace(setup, **changes), 0))
        return Lane(number, list(names), weights, 32, prefetchers[-1], state)

    yield make
    for prefetcher in prefetchers:
        prefetcher.close()


def take(lane: Lane, count: int) -> list[Row]:
    """(source, labels) of the next rows, by their places."""
    places = list(range(100, 100 + count))
    spans = lane.take(places)
    rows = {place: row for span in spans for place, row in zip(span.places, rows_of(span), strict=True)}
    assert sorted(rows) == places[: len(rows)]
    return [rows[place] for place in sorted(rows)]


def rows_of(span: RowSpan) -> list[Row]:
    _, labels, _ = span.block.unpack()
    return [(span.source, tuple(row)) for row in labels[span.first : span.first + len(span.places)].tolist()]


def saved(lane: Lane):
    return json.loads(json.dumps(lane.state()))


@pytest.mark.parametrize("weights", [EQUAL, None], ids=["weighted", "sequential"])
def test_a_state_resumes_right_after_the_last_row(open_lane, setup, weights):
    config = replace(setup.config, whole_epochs=weights is None)
    whole = take(open_lane(weights, config=config), 300)
    assert {name for name, _ in whole} == {"many", "few"}
    lane, rows = open_lane(weights, config=config), []
    for count in (1, 70, 130):
        rows += take(lane, count)
        lane = open_lane(weights, state=saved(lane), config=config)
    assert rows + take(lane, 99) == whole


@pytest.mark.parametrize("whole_epochs", [False, True])
def test_lanes_take_the_rows_of_a_shared_chain_in_turn(whole_epochs, open_lane, setup):
    config = replace(setup.config, shared=frozenset({"few"}), whole_epochs=whole_epochs)
    single = replace(config, num_lanes=1)
    chain = take(open_lane(names=["few"], config=single, number=0), 1100)
    lanes = [open_lane(names=["few"], config=config, number=number) for number in range(4)]
    assert [take(lane, 275) for lane in lanes] == [chain[number::4] for number in range(4)]
    states = [saved(lane)["streams"]["few"]["state"] for lane in lanes]
    assert states[0]["pass"] > 1 and states[1:] == states[:-1]
    again = open_lane(names=["few"], config=config, number=3, state=saved(lanes[3]))
    assert take(again, 40) == take(lanes[3], 40)


def test_an_epoch_of_fewer_rows_than_lanes_is_one_turn_of_all_lanes(open_lane, setup, tmp_path, texts):
    """In sequential mixing each lane has at most its own rows of the epoch, and often none."""
    (tmp_path / "tiny.txt").write_text(texts[0][:60])
    tiny = DataConfig(sources=[{"type": "files", "path": str(tmp_path / "tiny.txt"), "name": "tiny"}])
    sources = {"many": setup.sources["many"], **open_sources(tiny).sources}
    config = replace(setup.config, shared=frozenset({"tiny", "many"}), whole_epochs=True)
    options = {"weights": None, "names": ["many", "tiny"], "config": config, "sources": sources}
    lanes = [open_lane(number=number, **options) for number in range(4)]
    given = [name for lane in lanes for name, _ in take(lane, 600)]
    rounds = 1 + max(lane.queues["many"].epoch for lane in lanes)
    (ids,) = config.tokenizer.encode_batch([texts[0][:60]])
    epoch = math.ceil((len(ids) + 1) / config.seq_length)
    assert rounds > 3 and epoch < 4 and epoch * (rounds - 2) <= given.count("tiny") <= epoch * rounds


def test_tokens_are_shared_out_by_weight(open_lane):
    lane = open_lane({"many": 3.0, "few": 1.0})
    rows = take(lane, 200)
    labels = {name: sum(label >= 0 for owner, row in rows if owner == name for label in row) for name in EQUAL}
    assert {name: stream["tokens"] for name, stream in lane.state()["streams"].items()} == labels
    assert abs(labels["many"] - 3 * labels["few"]) <= 4 * 32


def test_new_weights_count_from_the_next_row(open_lane):
    lane = open_lane()
    before = take(lane, 60)
    lane.set_weights({"many": 1.0, "few": 9.0})
    after = take(lane, 100)
    assert [name for name, _ in before].count("few") == 30 and [name for name, _ in after].count("few") >= 88


def test_without_weights_epochs_are_read_whole_and_in_turn(open_lane, setup):
    owners = [name for name, _ in take(open_lane(None, config=replace(setup.config, whole_epochs=True)), 400)]
    turns = [owner for owner, before in zip(owners, ["", *owners], strict=False) if owner != before]
    assert turns[:3] == ["many", "few", "many"]


def test_an_absent_source_keeps_its_place(open_lane):
    lane = open_lane()
    take(lane, 41)
    state = saved(lane)
    alone = open_lane(names=["many"], state=state)
    assert {name for name, _ in take(alone, 30)} == {"many"}
    assert alone.state()["streams"]["few"] == state["streams"]["few"]
    back = open_lane(state=saved(alone))
    expected = [row for row in take(lane, 60) if row[0] == "few"]
    found = [row for row in take(back, 60) if row[0] == "few"]
    assert found and found == expected[: len(found)]


def test_a_lost_source_is_reported_on_every_call(open_lane, setup):
    failing = Flaky(setup.sources["few"], 40, 10**9, transient=False)
    lane = open_lane(sources={**setup.sources, "few": failing})
    for _ in range(2):
        with pytest.raises(SourceLost, match="few: the connection was lost") as caught:
            take(lane, 500)
        assert caught.value.name == "few" and "hf_***" in caught.value.reason


def test_a_lane_without_text_gives_fewer_rows_or_none(open_lane, setup):
    assert take(open_lane(config=replace(setup.config, filters=Filters(10**6))), 10) == []
    lane = open_lane(names=["few"], config=replace(setup.config, filters=Filters(10**6)))
    assert take(lane, 10) == [] and lane.queues["few"].dry and lane.queues["few"].epoch == 0
    assert set(lane.queues["few"].filtered) == {"shorter than min_text_length"}
