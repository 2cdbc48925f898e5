"""engine/data/batches.py: what a rank reports while it waits for the others, and what was read of each source."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from engine.data.batches import Batches, LoaderFactory
from engine.data.final_sources import ChangingWeights
from engine.device.ranks import Agreement
from engine.events import EventLog, read
from engine.screen.console import Console
from sources.config import DataConfig
from sources.held_out import sample_training_texts
from sources.loading.loader import BatchShape, LoaderOptions
from sources.registry import open_sources
from sources.rows.tokenizer import train_bpe


class LateRanks:
    """Ranks of which another one has its batch only in the third round."""

    rounds, rank, world_size = 0, 0, 1

    def agree(self, mine: Agreement) -> Agreement:
        self.rounds += 1
        return replace(mine, waiting=int(self.rounds < 3))

    def gather(self, mine: Any) -> list[Any]:
        return [mine]


def make_batches(data: DataConfig, folder: Path, ranks: LateRanks) -> Batches:
    opened = open_sources(data)
    tokenizer = train_bpe(sample_training_texts(opened.sources, data, 50_000), 300)
    log = EventLog(folder, Console(enabled=False))
    factory = LoaderFactory(data, tokenizer, BatchShape(4, 1, 32), LoaderOptions())
    return Batches(opened, factory, ChangingWeights({}, None, None), {}, ranks, log)


def test_events_are_logged_once_while_another_rank_is_late(tiny, tmp_path: Path):
    ranks = LateRanks()
    batches = make_batches(tiny().data, tmp_path, ranks)
    batches._events.append(
        {"event": "source", "what": "retry", "name": "wikipedia", "message": "the connection was lost"}
    )
    batch, agreed = batches.next(Agreement)
    batches.close()
    assert ranks.rounds == 3 and batch.num_tokens == agreed.labels > 0
    assert [event["message"] for event in read(tmp_path) if event["what"] == "retry"] == ["the connection was lost"]


def test_what_was_trained_on_is_counted_by_source(tiny, tmp_path: Path):
    batches = make_batches(tiny().data, tmp_path, LateRanks())
    nothing = {"tokens": 0, "epoch": 1}
    assert {key: batches.reading()["topics"][key] for key in nothing} == nothing
    tokens = 0
    for _ in range(5):
        batch, _ = batches.next(Agreement)
        batches.advance(batch, torch.zeros(2, 1), 0)
        tokens += batch.num_tokens
    read_so_far = batches.reading()
    batches.close()
    assert read_so_far.keys() == {"topics"} and read_so_far["topics"]["tokens"] == tokens
    assert read_so_far["topics"]["documents"] > 10
    assert read_so_far["topics"]["filtered"]["held out for evaluation"] > 0
