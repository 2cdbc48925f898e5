"""Shares by tokens, renormalised when a source leaves."""

import json
from collections import Counter
from itertools import cycle

from hypothesis import given, settings
from hypothesis import strategies as st

from sources.loading.mixing import SequentialMixer, WeightedMixer

WEIGHTS = {"a": 2.0, "b": 1.0, "c": 0.5}


def picks(mixer, live, number) -> list[str]:
    chosen = []
    for _ in range(number):
        chosen.append(mixer.pick(live))
        mixer.charge(chosen[-1], live, 256)
    return chosen


def test_shares_hold_to_within_a_row():
    chosen = picks(WeightedMixer(WEIGHTS, 256), list(WEIGHTS), 700)
    for number in (7, 70, 700):
        counts = Counter(chosen[:number])
        assert all(abs(counts[name] - number * WEIGHTS[name] / 3.5) <= 1 for name in WEIGHTS)


def test_a_lost_source_gives_its_share_to_the_others():
    mixer = WeightedMixer(WEIGHTS, 256)
    picks(mixer, list(WEIGHTS), 10)
    without = Counter(picks(mixer, ["a", "c"], 500))
    assert abs(without["a"] - 400) <= 1
    back = Counter(picks(mixer, list(WEIGHTS), 350))
    assert abs(back["b"] - 100) <= 2


def test_state_goes_on_exactly():
    mixer = WeightedMixer(WEIGHTS, 256, phase=3)
    picks(mixer, list(WEIGHTS), 17)
    other = WeightedMixer(WEIGHTS, 256)
    other.load(json.loads(json.dumps(mixer.state())))
    assert picks(other, list(WEIGHTS), 50) == picks(mixer, list(WEIGHTS), 50)


def test_phases_spread_the_lanes_first_rows():
    weights = {"a": 1.0, "b": 1.0}
    first = [WeightedMixer(weights, 256, phase=lane).pick(["a", "b"]) for lane in range(8)]
    assert Counter(first) == {"a": 4, "b": 4}


def test_sequential_follows_whole_epochs():
    epochs = {"a": 0, "b": 0, "c": 0}
    mixer = SequentialMixer(list(epochs), epochs.get)
    order = []
    for turn in range(7):
        name = mixer.pick(["a", "b", "c"])
        assert mixer.pick(["a", "b", "c"]) == name
        order.append(name)
        epochs[name] += 1
        if turn == 3:
            saved = json.loads(json.dumps(mixer.state()))
            mixer = SequentialMixer(list(epochs), epochs.get)
            mixer.load(saved)
    assert order == ["a", "b", "c", "a", "b", "c", "a"]
    assert mixer.pick(["a", "c"]) == "c"  # b is gone


def test_a_turn_without_a_row_for_this_lane_is_skipped():
    epochs = {"a": 0, "b": 2}  # this lane's next row of b belongs to the third epoch
    mixer, order = SequentialMixer(list(epochs), epochs.get), []
    for _ in range(6):
        order.append(mixer.pick(["a", "b"]))
        epochs[order[-1]] += 1 if order[-1] == "a" else 3
        saved = json.loads(json.dumps(mixer.state()))
        mixer = SequentialMixer(list(epochs), epochs.get)
        mixer.load(saved)
    assert order == ["a", "a", "a", "b", "a", "a"]


def test_a_state_of_an_older_version_finishes_its_turn():
    epochs = {"a": 5, "b": 3}
    mixer = SequentialMixer(list(epochs), epochs.get)
    mixer.load({"current": "a", "until": 6})
    assert mixer.pick(["a", "b"]) == "a"
    epochs["a"] = 6
    assert mixer.pick(["a", "b"]) == "b"
    epochs["b"] = 4
    assert mixer.pick(["a", "b"]) == "a"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(0.1, 10.0), min_size=2, max_size=5),
    st.lists(st.lists(st.integers(1, 256), min_size=1, max_size=8), min_size=5, max_size=5),
    st.integers(0, 15),
)
def test_shares_of_tokens_hold_whatever_the_rows_hold(weights, lengths, phase):
    """Each source's rows have lengths of its own, over and over; no share is ever more than a few rows off."""
    shares = {str(number): weight for number, weight in enumerate(weights)}
    mixer, live = WeightedMixer(shares, 256, phase), list(shares)
    given_tokens = Counter(dict.fromkeys(live, 0))
    rows = {name: cycle(lengths[int(name)]) for name in live}
    for _ in range(600):
        name = mixer.pick(live)
        tokens = next(rows[name])
        given_tokens[name] += tokens
        mixer.charge(name, live, tokens)
    for name in live:
        owed = sum(given_tokens.values()) * shares[name] / sum(shares.values())
        assert abs(given_tokens[name] - owed) <= 256 * (len(live) + 1)
