"""How long something is tried again, what is announced, and where reading resumes."""

import threading
import time
from collections import Counter

import pytest

from sources.retries import Retries, read_on
from sources.source import SourceError


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
    monkeypatch.setattr("sources.retries.FIRST_WAIT", 0.01)
    monkeypatch.setattr("sources.retries.TRYING_SECONDS", 0.2)


def tries_of(retries: Retries, error: SourceError, most: int = 50) -> tuple[int, float]:
    """How many tries fail with `error` until it is raised, and after how many seconds."""
    began = time.monotonic()
    for number in range(1, most):
        try:
            retries.wait(error)
        except SourceError as raised:
            assert raised is error
            return number, time.monotonic() - began
    raise AssertionError("it is tried for ever")


def test_tries_end_when_patience_does():
    events: list[tuple[str, str, str]] = []
    lost = SourceError("it is lost", transient=True)
    tries, seconds = tries_of(Retries("numbers", 0.3, lambda *event: events.append(event)), lost)
    assert 3 <= tries <= 9 and 0.3 <= seconds < 1
    assert len(events) == tries - 1 and {event[:2] for event in events} == {("numbers", "retry")}
    assert events[0][2].startswith("it is lost; retrying in 0 s (for ")
    assert tries_of(Retries("numbers", 60.0), SourceError("it is refused"))[0] == 1
    doubtful = SourceError("it is refused", transient=True, patience=0.2)
    assert 0.2 <= tries_of(Retries("numbers", 60.0), doubtful)[1] < 1


def test_a_server_is_asked_again_when_it_wants_to_be():
    asked = SourceError("asks for fewer requests", transient=True, retry_after=0.5)
    assert 0.2 <= tries_of(Retries("numbers", 0.2), asked)[1] < 0.5, "no longer than there is patience"
    retries = Retries("numbers", 0.0, asked_patience=0.7)
    tries, seconds = tries_of(retries, asked)
    assert tries == 3 and 0.7 <= seconds < 1.2
    assert tries_of(Retries("numbers", 0.0), SourceError("it is lost", transient=True))[0] == 1
    for absurd in (0.0, 10.0**9):
        error = SourceError("asks for fewer requests", transient=True, retry_after=absurd)
        assert tries_of(Retries.before_training("numbers", 0.5 / 60), error, 10**4)[1] < 2


def test_a_stop_ends_a_wait_at_once():
    stop, began = threading.Event(), time.monotonic()
    threading.Timer(0.3, stop.set).start()
    asked = SourceError("asks for fewer requests", transient=True, retry_after=600.0)
    with pytest.raises(SourceError):
        Retries("numbers", 3600.0, stopping=stop.is_set).wait(asked)
    assert 0.3 <= time.monotonic() - began < 1.3


def test_reading_resumes_where_it_failed():
    source, events = Numbers([0, 4, 4, 9]), []
    retries = Retries.before_training("numbers", 10.0, lambda *event: events.append(event))
    assert [text for text, _ in read_on(source, 0, retries)] == list("0123456789")
    assert [message.split(";")[0] for _, _, message in events] == [f"{n} is lost" for n in (0, 4, 4, 9)]


@pytest.mark.parametrize(("failures", "transient"), [([3], False), ([3] * 50, True)])
def test_reading_ends_at_a_refusal_or_in_time(failures, transient):
    reading = read_on(Numbers(failures, transient), 0, Retries.before_training("numbers", 10.0))
    assert [next(reading)[0] for _ in range(3)] == ["0", "1", "2"]
    with pytest.raises(SourceError, match="3 is lost"):
        next(reading)
