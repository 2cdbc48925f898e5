"""What a planner weighed at one place of a text, and what it chose."""

from typing import NamedTuple


class Candidate(NamedTuple):
    """A token that was weighed; scores in nats."""

    token: int
    logprob: float  # by the distribution of which greedy writing takes the likeliest token
    foreseen: float  # its score by what the core foresees
    verified: float | None  # its score by what the model says; None where it was not read
    following: tuple[int, ...]  # what the model itself writes after it, as far as it was verified


class Choice(NamedTuple):
    """The candidates at a place, the likeliest first, and which of them is written."""

    candidates: tuple[Candidate, ...]
    chosen: int
