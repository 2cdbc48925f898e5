"""The loader's resume state is changed by its owner alone."""

import copy

from sources.loading.state import is_current_format, is_newer_format, new_state, with_rows, without_sources


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


def test_other_rows_restart_the_blocks_and_keep_the_counts():
    after = with_rows(STATE, {"seq_length": 64, "packing": "pad"})
    assert after["rows"]["seq_length"] == 64
    assert after["lanes"]["0"]["streams"]["b"] == {"state": None, "taken": 0, "tokens": 20}


def test_only_the_current_format_is_continued():
    assert is_current_format(STATE)
    assert not is_current_format({**STATE, "format": 2}) and not is_current_format({"lanes": {}})
    later = {**STATE, "format": STATE["format"] + 1}
    assert is_newer_format(later) and not is_current_format(later)
    assert not any(map(is_newer_format, (STATE, {**STATE, "format": 2}, {"lanes": {}}, {"format": "4"})))
