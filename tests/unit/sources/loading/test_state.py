"""The loader's resume state is changed by its owner alone."""

import copy

from sources.loading.state import (
    is_newer_format,
    is_readable,
    new_state,
    upgraded,
    with_rows,
    without_sources,
)


def lane(**taken: int) -> dict:
    streams = {name: {"state": None, "taken": rows, "tokens": 10 * rows} for name, rows in taken.items()}
    return {"streams": streams, "mixer": {"owed": dict.fromkeys(taken, 0.5)}}


STATE = new_state(7, True, 16, {"seq_length": 32, "packing": "pad"}) | {"lanes": {"0": lane(a=1, b=2), "9": lane(b=3)}}


def test_a_source_is_taken_out_of_every_lane():
    before = copy.deepcopy(STATE)
    after = without_sources(STATE, {"b", "unknown"})
    assert {number: list(lane["streams"]) for number, lane in after["lanes"].items()} == {"0": ["a"], "9": []}
    assert after["lanes"]["0"]["streams"]["a"] == STATE["lanes"]["0"]["streams"]["a"]
    assert after["lanes"]["9"]["mixer"] == STATE["lanes"]["9"]["mixer"] and before == STATE


LONGER = {"seq_length": 64, "packing": "pad"}


def nowhere(name: str) -> None:
    """No source is open."""


def begins(name: str) -> dict:
    return {"block": 0, "pass": 0}


def test_other_rows_say_what_was_taken_and_keep_the_counts():
    after = with_rows(STATE, LONGER, (), begins)
    assert after["rows"] == LONGER
    handover = {"rows": STATE["rows"], "taken": [[0, 2]]}
    expected = {"state": {**begins("b"), "handover": handover}, "taken": 0, "tokens": 20}
    assert after["lanes"]["0"]["streams"]["b"] == expected
    again = with_rows(after, STATE["rows"], (), begins)
    assert again["lanes"] == after["lanes"], "nothing was taken in between"
    again["lanes"]["0"]["streams"]["b"]["taken"] = 3
    last = with_rows(again, LONGER, (), begins)["lanes"]["0"]["streams"]["b"]["state"]["handover"]
    assert last == {"rows": STATE["rows"], "taken": [[0, 3]], "before": handover}


def test_a_source_that_is_not_open_begins_its_first_block_again():
    after = with_rows(STATE, LONGER, (), nowhere)
    assert after["lanes"]["0"]["streams"]["b"] == {"state": None, "taken": 0, "tokens": 20}


def standing(**positions: list[dict | None]) -> dict:
    """The state of three lanes that stand at these positions, source by source."""
    lanes = {
        str(number): {
            "streams": {name: {"state": at[number], "taken": 7, "tokens": 9} for name, at in positions.items()},
            "mixer": {},
        }
        for number in range(3)
    }
    return {**STATE, "format": 3, "lanes": lanes}


def test_other_rows_keep_the_lanes_of_a_chain_together():
    chain = [{"block": block, "rows": 16 * block} for block in (5, 4, 5)]
    own = [{"block": block} for block in (8, 9, 7)]
    before = {**standing(a=chain, b=own), "num_lanes": 3}
    after = with_rows(before, LONGER, {"a"}, begins)
    streams = [lane["streams"] for lane in after["lanes"].values()]
    handover = {"rows": before["rows"], "taken": [[1, 7], [0, 7], [1, 7]]}
    assert [stream["a"] for stream in streams] == [
        {"state": {**chain[1], "handover": handover}, "taken": 0, "tokens": 9}
    ] * 3
    handover = {"rows": before["rows"], "taken": [[0, 7]]}
    assert [stream["b"]["state"] for stream in streams] == [{**state, "handover": handover} for state in own]


def test_a_chain_of_which_nothing_was_taken_is_as_it_was():
    state = {**standing(a=[None] * 3), "num_lanes": 3}
    for lane in state["lanes"].values():
        lane["streams"]["a"]["taken"] = 0
    assert with_rows(state, LONGER, {"a"}, begins)["lanes"]["1"]["streams"]["a"]["state"] == begins("a")


def test_lanes_with_orders_of_their_own_come_to_share_one():
    own, first = [{"pass": 2}, None, {"pass": 3}], [None] * 3
    before = standing(small=own, begun=first, large=own, absent=own)

    def start(name: str, epoch: int) -> dict | None:
        return None if name == "absent" else {"pass": epoch, **({"cycle": 3} if name == "large" else {"rows": 0})}

    after, epochs = upgraded(before, {"small", "begun", "gone"}, start)
    assert epochs == {"small": 5, "begun": 0}  # so often the three lanes together have read all of it
    streams = [lane["streams"] for lane in after["lanes"].values()]
    for name, epoch in epochs.items():
        expected = {"state": {"pass": epoch, "rows": 0}, "taken": 0, "tokens": 9}
        assert [stream[name] for stream in streams] == [expected] * 3
    assert [stream["large"]["state"] for stream in streams] == [own[0], {"pass": 0}, own[2]]
    assert {stream["large"]["taken"] for stream in streams} == {7}
    assert [stream["absent"]["taken"] for stream in streams] == [7, 0, 7]  # the second begins again
    assert after["format"] == 4 and upgraded(after, {"small", "begun"}, start) == (after, {})


def test_lanes_in_the_first_block_of_a_chain_stay_there():
    state = {**standing(small=[None] * 3), "format": 4}
    assert upgraded(state, {"small"}, lambda name, epoch: {"pass": epoch, "rows": 0}) == (state, {})


def test_only_formats_that_are_known_are_continued():
    assert is_readable(STATE) and is_readable({**STATE, "format": 3})
    assert not is_readable({**STATE, "format": 2}) and not is_readable({"lanes": {}})
    later = {**STATE, "format": STATE["format"] + 1}
    assert is_newer_format(later) and not is_readable(later)
    assert not any(map(is_newer_format, (STATE, {**STATE, "format": 2}, {"lanes": {}}, {"format": "4"})))
