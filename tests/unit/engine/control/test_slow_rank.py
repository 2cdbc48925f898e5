"""Which rank is slow: the timer, and the judgement over several ranks' times."""

import time

import pytest
import torch

from engine.control.slow_rank import ForwardTimer, find_slow_rank
from engine.device.ranks import Ranks


class Known(Ranks):
    """Ranks that have told each other their times."""

    def gather(self, value):
        return value


def ranks(*hosts: str) -> Known:
    return Known(0, 4, torch.device("cpu"), None, hosts)


@pytest.mark.parametrize(
    ("seconds", "found"),
    [
        ([1.0, 1.0, 1.0, 1.0], None),
        ([1.0, 1.4, 1.0, 1.0], None),
        ([1.0, 1.0, 1.8, 1.0], {"rank": 2, "host": None, "times_median": 1.8}),
        ([1.0, 3.0], {"rank": 1, "host": None, "times_median": 3.0}),
        ([1.0, None, 3.0], None),  # a rank without a step since the last event
    ],
)
def test_a_rank_over_one_and_a_half_times_the_median_is_slow(seconds: list, found: dict | None):
    assert find_slow_rank(ranks(), seconds) == found


def test_it_is_named_with_its_machine():
    assert find_slow_rank(ranks("a", "a", "b", "b"), [1.0, 1.0, 1.0, 2.0]) == {
        "rank": 3,
        "host": "b",
        "times_median": 2.0,
    }


def test_the_timer_gives_the_median_once():
    timer = ForwardTimer(torch.device("cpu"))
    assert timer.take() is None
    for seconds in (0.01, 0.01, 0.2):
        with timer:
            time.sleep(seconds)
    assert 0.01 <= timer.take() < 0.1 and timer.take() is None


def test_alone_no_rank_is_slow():
    assert find_slow_rank(Ranks(0, 1, torch.device("cpu"), None), 1.0) is None
