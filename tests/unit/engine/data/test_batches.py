"""engine/data/batches.py: what a rank reports while it waits for the others."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.data.batches import Batches, LoaderFactory
from engine.device.ranks import Agreement
from engine.events import EventLog, read
from engine.screen.console import Console
from sources.loading.loader import BatchShape, LoaderOptions
from sources.registry import open_sources
from sources.rows.held_out import sample_training_texts
from sources.rows.tokenizer import train_bpe


class LateRanks:
    """Ranks of which another one has its batch only in the third round."""

    rounds = 0

    def agree(self, mine: Agreement) -> Agreement:
        self.rounds += 1
        return replace(mine, waiting=int(self.rounds < 3))

    def gather(self, mine: Any) -> list[Any]:
        return [mine]


def test_events_are_logged_once_while_another_rank_is_late(tiny, tmp_path: Path):
    data, ranks = tiny().data, LateRanks()
    opened = open_sources(data)
    tokenizer = train_bpe(sample_training_texts(opened.sources, data, 50_000), 300)
    log = EventLog(tmp_path, Console(enabled=False))
    batches = Batches(
        opened, LoaderFactory(data, tokenizer, BatchShape(4, 1, 32), LoaderOptions()), None, {}, ranks, log
    )
    batches._events.append(
        {"event": "source", "what": "retry", "name": "wikipedia", "message": "the connection was lost"}
    )
    batch, agreed = batches.next(Agreement)
    batches.close()
    assert ranks.rounds == 3 and batch.num_tokens == agreed.labels > 0
    assert [event["message"] for event in read(tmp_path) if event["what"] == "retry"] == ["the connection was lost"]
