"""Adaptive weights: what follows from the losses, when it takes effect, and that a restart changes nothing."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sources.loading.adaptive import AdaptiveWeights

BASE = {"wiki": 2.0, "web": 1.0, "notes": 0.5}
SETTINGS = {"interval_tokens": 1000, "min_weight": 0.5, "max_weight": 2.0, "smoothing": 0.5, "delay": 4}

# By step: tokens, and the losses that an update at that step would be given (sources without tokens are absent).
STEPS = st.lists(
    st.tuples(
        st.integers(1, 2500),
        st.dictionaries(st.sampled_from(sorted(BASE)), st.floats(0.0, 20.0), max_size=3),
        st.sets(st.sampled_from(sorted(BASE)), max_size=3),
    ),
    max_size=30,
)


def drive(adaptive: AdaptiveWeights, first: int, steps) -> list[dict[str, float]]:
    """The weights for steps `first` + delay onwards, asked for as early as a loader may."""
    weights = []
    for step, (tokens, losses, dropped) in enumerate(steps, first):
        if adaptive.after_step(step, tokens):
            adaptive.update(step, losses, dropped)
        weights.append(adaptive.weights_at(step + adaptive.delay))
    return weights


def test_the_harder_source_gets_more():
    adaptive = AdaptiveWeights(BASE, **SETTINGS)
    effective, weights = adaptive.update(10, {"wiki": 3.0, "web": 6.0, "notes": 3.0})
    assert effective == 14
    assert weights == pytest.approx({"wiki": 2.0 * 0.75, "web": 1.5, "notes": 0.5 * 0.75})
    assert adaptive.weights_at(13) == BASE
    assert adaptive.weights_at(14) == adaptive.weights_at(1000) == weights


def test_averages_are_smoothed_and_clamped():
    adaptive = AdaptiveWeights({"a": 1.0, "b": 1.0}, **SETTINGS)
    adaptive.update(1, {"a": 1.0, "b": 3.0})
    assert adaptive.average == {"a": 0.5, "b": 1.5}
    _, weights = adaptive.update(2, {"a": 0.0, "b": 4.0})
    assert adaptive.average == {"a": 0.25, "b": 1.75}
    assert weights == {"a": 0.5, "b": 1.75}


def test_a_source_without_tokens_keeps_its_weight():
    """And stays in the mean."""
    adaptive = AdaptiveWeights(BASE, **SETTINGS)
    _, before = adaptive.update(1, {"wiki": 2.0, "web": 4.0, "notes": 6.0})
    _, after = adaptive.update(2, {"wiki": 2.0, "web": 4.0})
    assert after == before


def test_a_dropped_source_is_left_out_of_the_mean():
    adaptive = AdaptiveWeights({"a": 1.0, "b": 1.0, "c": 1.0}, **SETTINGS | {"smoothing": 0.0})
    adaptive.update(1, {"a": 2.0, "b": 4.0, "c": 12.0})
    _, weights = adaptive.update(2, {"a": 2.0, "b": 4.0, "c": 12.0}, dropped={"c"})
    assert weights == {"a": pytest.approx(2 / 3), "b": pytest.approx(4 / 3), "c": 2.0}


def test_nothing_known_changes_nothing():
    adaptive = AdaptiveWeights(BASE, **SETTINGS)
    assert adaptive.update(1, {})[1] == BASE
    assert adaptive.update(2, dict.fromkeys(BASE, 0.0))[1] == BASE


def test_an_update_is_due_every_interval():
    adaptive = AdaptiveWeights(BASE, **SETTINGS)
    assert [adaptive.after_step(step, 400) for step in range(4)] == [False, False, True, True]
    adaptive.update(3, {"web": 1.0})
    assert [adaptive.after_step(step, 400) for step in range(4, 7)] == [False, False, True]


def test_a_restart_with_other_sources_keeps_what_it_can():
    adaptive = AdaptiveWeights(BASE, **SETTINGS)
    adaptive.update(1, {"wiki": 2.0, "web": 4.0})
    resumed = AdaptiveWeights({"web": 3.0, "new": 1.0}, **SETTINGS)
    resumed.load(json.loads(json.dumps(adaptive.state())))
    assert resumed.weights_at(5) == {"web": pytest.approx(4.0), "new": 1.0}
    assert resumed.average.keys() == {"web"}


@given(STEPS)
def test_weights_stay_within_their_bounds(steps):
    for weights in drive(AdaptiveWeights(BASE, **SETTINGS), 0, steps):
        assert weights.keys() == BASE.keys()
        assert all(0.5 * BASE[name] <= weight <= 2.0 * BASE[name] for name, weight in weights.items())


@given(STEPS, st.integers(1, 6))
def test_no_weight_changes_once_it_was_asked_for(steps, delay):
    """Whoever asks as early as allowed and whoever asks at the last moment get the same."""
    adaptive = AdaptiveWeights(BASE, **SETTINGS | {"delay": delay})
    early = drive(adaptive, 0, steps)
    adaptive, late = AdaptiveWeights(BASE, **SETTINGS | {"delay": delay}), []
    for step, (tokens, losses, dropped) in enumerate(steps):
        late.append(adaptive.weights_at(step))
        if adaptive.after_step(step, tokens):
            effective, _ = adaptive.update(step, losses, dropped)
            assert effective == step + delay
    assert late[:delay] == [BASE] * len(late[:delay])
    assert late[delay:] == early[: max(0, len(steps) - delay)]


@given(STEPS, st.integers(0, 30))
def test_a_restart_in_the_middle_equals_no_restart(steps, middle):
    whole = AdaptiveWeights(BASE, **SETTINGS)
    expected = drive(whole, 0, steps)
    first, second = AdaptiveWeights(BASE, **SETTINGS), AdaptiveWeights(BASE, **SETTINGS)
    before = drive(first, 0, steps[:middle])
    second.load(json.loads(json.dumps(first.state())))
    begin = len(steps[:middle])
    # the loader prepares again what it had prepared ahead
    ahead = [second.weights_at(begin + n) for n in range(SETTINGS["delay"])]
    assert ahead == [first.weights_at(begin + n) for n in range(SETTINGS["delay"])]
    assert before + drive(second, begin, steps[middle:]) == expected
    assert second.state() == whole.state()
