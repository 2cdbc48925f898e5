"""Blocks made ahead: a thread and worker processes make the same ones, and whatever ends on the way is reported."""

import json
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shard_cache import ShardCache
from sources.loading import prefetch
from sources.loading.prefetch import SHARED_BLOCKS, Prefetcher, ProcessProducer, WorkerError
from sources.rows.pipeline import BlockResult, PipelineCallbacks
from sources.rows.producer import LocalProducer, ProducerSetup
from sources.source import READER, Source, SourceError
from tests.helpers.sources import Unreadable

LANES = (0, 2)  # of four: those of one of two ranks


def same(one: BlockResult, other: BlockResult) -> bool:
    names = ("ids", "lengths", "pieces")
    return one.after == other.after and all(
        np.array_equal(getattr(one.block, n), getattr(other.block, n)) for n in names
    )


@pytest.fixture
def expected(setup: ProducerSetup) -> dict[int, list[BlockResult]]:
    """Each lane's first blocks, as made in this process."""
    producer = LocalProducer(setup, PipelineCallbacks())
    blocks: dict[int, list[BlockResult]] = {lane: [] for lane in LANES}
    for lane, made in blocks.items():
        for _ in range(3):
            made.append(producer.produce("many", lane, made[-1].after if made else None))
    return blocks


def processes(prefetcher: Prefetcher) -> list[Any]:
    producers = [thread.producer for thread in prefetcher.threads]
    assert all(isinstance(producer, ProcessProducer) for producer in producers)
    return [producer.process for producer in producers]


def test_a_thread_makes_the_blocks_that_are_asked_for(setup, expected):
    prefetcher = Prefetcher(setup, 0)
    asked = [(lane, number) for number in (0, 2, 1) for lane in LANES]
    states = {lane: [None, *(block.after for block in blocks)] for lane, blocks in expected.items()}
    futures = [prefetcher.submit("many", lane, states[lane][number]) for lane, number in asked]
    assert all(same(future.result(), expected[lane][n]) for future, (lane, n) in zip(futures, asked, strict=True))
    (thread,) = prefetcher.threads
    assert thread.name == READER and thread.daemon
    prefetcher.close()
    assert not thread.is_alive()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_block_that_all_lanes_share_is_made_once(num_workers, setup):
    prefetcher = Prefetcher(replace(setup, config=replace(setup.config, shared=frozenset({"few"}))), num_workers)
    assert (prefetcher.lanes_of_chain("few"), prefetcher.lanes_of_chain("many")) == (4, 1)
    first = prefetcher.submit("few", 1, None)
    after = json.loads(json.dumps(first.result().after))
    assert prefetcher.submit("few", 3, None) is first
    assert prefetcher.submit("few", 3, after) is prefetcher.submit("few", 0, first.result().after) is not first
    for _ in range(SHARED_BLOCKS):
        after = prefetcher.submit("few", 0, after).result().after
    assert prefetcher.submit("few", 3, None) is not first  # one that far behind has it made again
    assert same(prefetcher.submit("few", 3, None).result(), first.result())
    prefetcher.close()


@pytest.mark.parametrize("lanes", [(0, 1), LANES], ids=["of one rank", "of two"])
def test_all_workers_work_and_none_outlives_the_loader(setup, expected, lanes):
    prefetcher = Prefetcher(setup, 2)
    futures = {lane: prefetcher.submit("many", lane, None) for lane in lanes}
    blocks = {lane: future.result() for lane, future in futures.items()}
    assert all(same(blocks[lane], expected[lane][0]) for lane in lanes if lane in expected)
    workers = processes(prefetcher)
    assert len(workers) == 2 and all(process.poll() is None for process in workers)
    prefetcher.close()
    assert all(process.poll() is not None for process in workers)


def test_a_killed_worker_is_started_again_and_changes_no_row(setup, expected):
    prefetcher, state = Prefetcher(setup, 1), None
    for number, block in enumerate(expected[0]):
        result = prefetcher.submit("many", 0, state).result()
        state = result.after
        assert same(result, block)
        if number == 0:
            (worker,) = processes(prefetcher)
            worker.kill()
    prefetcher.close()
    (event,) = prefetcher.events
    assert event == {
        "event": "source",
        "name": "many",
        "what": "notice",
        "message": "a data worker ended unexpectedly; it is started again",
    }


def test_a_worker_reads_the_cache_without_torch(setup, expected, tmp_path):
    """webdataset takes torch along where it can be imported: 180 MB in each worker."""
    setup = replace(setup, cached={"many": ShardCache(tmp_path / "cache", 1.0).source({"name": "many"}, None, None)})
    filling = LocalProducer(setup, PipelineCallbacks())
    filling.produce("many", 0, None)
    filling.flush()
    prefetcher = Prefetcher(replace(setup, sources={"many": Unreadable(setup.sources["many"])}), 1)
    assert same(prefetcher.submit("many", 0, None).result(), expected[0][0])
    (worker,) = processes(prefetcher)
    maps = Path(f"/proc/{worker.pid}/maps")
    if not maps.exists():
        pytest.skip("this system does not show what a process has loaded")
    assert "numpy" in maps.read_text() and "torch" not in maps.read_text()
    prefetcher.close()


class Deadly:
    """Ends the process in which it is unpickled."""

    def __reduce__(self):
        return os._exit, (9,)


def test_a_worker_that_keeps_dying_is_given_up(setup, monkeypatch):
    monkeypatch.setattr(prefetch, "RESTARTS", 1)
    prefetcher = Prefetcher(replace(setup, sources={"many": Deadly()}), 1)
    with pytest.raises(WorkerError, match=r"ended 2 times in a row, perhaps for want of memory; lower data\.num"):
        prefetcher.submit("many", 0, None).result()
    assert len(prefetcher.events) == 1
    prefetcher.close()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_failure_travels_to_whoever_waits_for_the_block(setup, num_workers: int):
    failing = replace(setup, sources={"many": Unreadable(setup.sources["many"])})
    prefetcher = Prefetcher(failing, num_workers)
    with pytest.raises(SourceError, match="the data is gone") as caught:
        prefetcher.submit("many", 0, None).result()
    assert not caught.value.transient
    with pytest.raises((WorkerError, KeyError), match="unknown"):
        prefetcher.submit("unknown", 0, None).result()
    prefetcher.close()


class Gated:
    """A source that gives nothing before its gate is open."""

    def __init__(self, inner: Source):
        self.inner, self.reading, self.gate = inner, threading.Event(), threading.Event()
        self.name, self.num_shards = inner.name, inner.num_shards
        self.notices, self.counts = inner.notices, inner.counts

    def read(self, shard, cursor):
        self.reading.set()
        self.gate.wait()
        yield from self.inner.read(shard, cursor)


def test_closing_waits_for_no_network_and_drops_the_rest(setup, expected, monkeypatch):
    monkeypatch.setattr(prefetch, "CLOSE_SECONDS", 0.1)
    source = Gated(setup.sources["many"])
    prefetcher = Prefetcher(replace(setup, sources={"many": source}), 0)
    first, second = (prefetcher.submit("many", lane, None) for lane in LANES)
    assert source.reading.wait(30)
    prefetcher.close()
    assert not first.done() and not second.done()
    source.gate.set()
    assert same(first.result(timeout=30), expected[LANES[0]][0])
    with pytest.raises(SourceError, match="the loader is closed"):
        second.result(timeout=30)
