"""engine/run/batches.py: what a rank says while it waits for the others."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch

from engine.device.ranks import Agreement
from engine.run.batches import Feed
from sources.loading.loader import Batch

RETRY = {"event": "source", "what": "retry", "name": "wikipedia", "message": "the connection was lost"}


class Late:
    """Ranks of which another has its batch only in the third round."""

    rounds = 0

    def agree(self, mine: Agreement) -> Agreement:
        self.rounds += 1
        return replace(mine, waiting=int(self.rounds < 3))

    def gather_json(self, mine: Any) -> list[Any]:
        return [mine]


def test_what_happened_is_told_once_however_long_another_rank_is_late():
    nothing = torch.zeros(0)
    batch = Batch(nothing, nothing, nothing, nothing, num_tokens=7, number=0, state={}, events=[RETRY])
    feed, told = object.__new__(Feed), []
    feed.ranks, feed._events, feed._told = Late(), [], set()
    feed.metrics = SimpleNamespace(write=lambda **event: told.append(event))
    feed.loader = SimpleNamespace(next=lambda timeout: batch, take_events=list)
    assert feed.next(Agreement)[0] is batch
    assert feed.ranks.rounds == 3 and told == [RETRY]
