"""Fixtures that several suites share: folders of real text, tiny presets over them, a hub on the loopback address."""

import gc
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest

# Tests share two cores with each other; spinning OpenMP threads would only wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from engine.config import Preset, parse_preset
from tests.helpers.hub_server import HubServer, parquet
from tests.helpers.text import write_topics
from tests.helpers.training import tiny_values

# A shell's background job, or one under nohup, ignores these, and so would all that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
for number in (signal.SIGQUIT, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, lambda *_: None)  # a handler, unlike SIG_IGN, is not inherited

# A run begins with two full collections, of a quarter of a second each in a process that has half a million objects of
# all libraries to look through. What a test leaves behind is young.
_collect = gc.collect
gc.collect = lambda generation=1: _collect(generation)


@pytest.fixture(scope="session")
def topics_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every third of Python's documentation topics, 140 kB, in files of some 1,000 characters."""
    return write_topics(tmp_path_factory.mktemp("topics"), every=3)


@pytest.fixture
def tiny(topics_folder: Path) -> Callable[..., Preset]:
    """Makes a preset of 512 tokens a step; keyword arguments are merged into its sections."""

    def make(**sections: dict[str, Any]) -> Preset:
        return parse_preset(tiny_values(topics_folder, **sections))

    return make


@pytest.fixture
def hub():
    with HubServer() as served:
        lines = [line for text in topics.values() for line in text.split("\n\n") if len(line) > 60]
        pairs = [{"query": line[:60], "answer": line} for line in lines[:1500]]
        # Shaped as the reference preset's second source is: it asks for `question`, the column is `query`.
        served.repositories["sentence-transformers/natural-questions"] = {"data/train-0.parquet": parquet(pairs, 50)}
        yield served


@pytest.fixture
def home(tmp_path: Path, topics_folder: Path) -> Path:
    """A folder to start main.py in, with one tiny preset."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "00_tiny.json").write_text(json.dumps(tiny_values(topics_folder)))
    return tmp_path
