"""Retries before training: how long they last, and where reading resumes."""

import time
from collections import Counter

import pytest

from sources.source import Backoff, SourceError, read_on


class Numbers:
    """Yields "0" to "9" and fails before the texts in `failures`, which are used up one by one."""

    name, num_shards = "numbers", 1

    def __init__(self, failures: list[int], transient: bool = True):
        self.failures, self.transient = failures, transient
        self.notices: list[str] = []
        self.counts: Counter[str] = Counter()

    def pin(self) -> dict[str, object]:
        return {}

    def fingerprint(self) -> None:
        return None

    def read(self, shard: int, cursor: int | None):
        for number in range(cursor or 0, 10):
            if number in self.failures:
                self.failures.remove(number)
                raise SourceError(f"{number} is lost", transient=self.transient)
            yield str(number), number + 1


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr("sources.source.FIRST_WAIT", 0.01)
    monkeypatch.setattr("sources.source.TRYING_SECONDS", 0.2)


def test_a_backoff_ends_in_time():
    began, backoff, tries = time.monotonic(), Backoff(), 0
    while backoff.sleep():
        tries += 1
    assert 2 <= tries <= 6 and time.monotonic() - began < 1


def test_reading_resumes_where_it_failed():
    source = Numbers([0, 4, 4, 9])
    assert [text for text, _ in read_on(source, 0)] == list("0123456789")
    assert [notice.split(";")[0] for notice in source.notices] == [f"{n} is lost" for n in (0, 4, 4, 9)]


@pytest.mark.parametrize(("failures", "transient"), [([3], False), ([3] * 50, True)])
def test_reading_ends_at_a_refusal_or_in_time(failures, transient):
    reading = read_on(Numbers(failures, transient), 0)
    assert [next(reading)[0] for _ in range(3)] == ["0", "1", "2"]
    with pytest.raises(SourceError, match="3 is lost"):
        next(reading)
