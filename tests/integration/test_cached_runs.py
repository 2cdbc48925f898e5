"""Runs from the shard cache alone: what was cached stands in for sources, tokenizer and other files that are gone."""

import shutil
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest

from engine import train
from engine.config import Preset, parse_preset
from engine.errors import Interrupted, SourcesFailed
from engine.events import read
from sources.readers import python_packages
from tests.helpers.folders import data_state, equal, weights
from tests.helpers.hub_runs import of
from tests.helpers.hub_server import parquet
from tests.helpers.pdf_files import plain_book
from tests.helpers.text import write_topics
from tests.helpers.training import TOKENS_PER_STEP, by_step, signal_after, tiny_values, train_with

TEXTS = sorted(text for text in topics.values() if len(text.strip()) >= 200)


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a source of each kind below it; the working directory is beside it."""
    folder = tmp_path / "sources"
    for name in ("files", "pdf", "packages", "hub/data"):
        (folder / name).mkdir(parents=True)
    write_topics(folder / "files", every=3)
    (folder / "files" / "empty.gz").write_bytes(b"\0")  # which is skipped, and counted
    rows = [{"text": paragraph} for text in TEXTS[::4] for paragraph in text.split("\n\n") if len(paragraph) > 60]
    (folder / "hub" / "data" / "train-0.parquet").write_bytes(parquet([{"text": None}, *rows]))
    lines = [line.strip() for line in TEXTS[7].encode("ascii", "ignore").decode().splitlines() if line.strip()]
    (folder / "pdf" / "one.pdf").write_bytes(plain_book(["\n".join(lines[n : n + 40]) for n in range(0, 400, 40)]))
    write_topics(folder / "packages", every=5)
    for path in (folder / "packages").iterdir():
        path.rename(path.with_suffix(".py"))
    (folder / "exam.txt").write_text(TEXTS[3])
    monkeypatch.setattr(python_packages, "python_roots", lambda: {"stdlib": folder / "packages"})
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def preset(sources: Path, topics_folder: Path, tmp_path: Path) -> Callable[..., Preset]:
    def make(**data: Any) -> Preset:
        kinds = [
            {"type": "files", "path": str(sources / "files"), "name": "files"},
            {"type": "hf", "dataset": "sources/hub", "name": "hub"},  # without the folder, a repository's name
            {"type": "pdf", "path": "sources/pdf", "name": "pdf"},
            {"type": "python_packages", "name": "packages"},
        ]
        cache = {"cache": True, "cache_dir": str(tmp_path / "cache")}
        usual = {"sources": kinds, "decontaminate": [str(sources / "exam.txt")], **cache}
        return parse_preset(tiny_values(topics_folder, data=usual | data))

    return make


def told(folder: Path) -> dict[str, Any]:
    """What a run says of itself, beside times."""
    events = read(folder)
    evaluations = [(event["ce"], event["sources"]) for event in events if event["event"] == "evaluation"]
    filtered = {event["name"]: event["counts"] for event in of(events, "passed_over")}
    assert not of(events, "dropped") and not of(events, "skipped")
    return {"losses": by_step(events), "evaluations": evaluations, "filtered": filtered}


def test_a_run_repeats_to_the_bit_without_any_source(preset, sources: Path, tmp_path: Path, capsys):
    budget = 40 * TOKENS_PER_STEP
    train(preset(), token_budget=budget, checkpoint_dir=tmp_path / "first")
    first = told(tmp_path / "first")
    assert set(first["evaluations"][-1][1]) >= {"files", "hub"} <= set(first["filtered"])
    assert "damaged files" in first["filtered"]["files"] and "rows without text" in first["filtered"]["hub"]
    capsys.readouterr()
    shutil.rmtree(sources)
    train(preset(), token_budget=budget, checkpoint_dir=tmp_path / "second")
    assert told(tmp_path / "second") == first
    assert equal(weights(tmp_path / "first"), weights(tmp_path / "second"))
    assert equal(data_state(tmp_path / "first"), data_state(tmp_path / "second"))
    shown = " ".join(capsys.readouterr().out.split())
    for name in ("files", "hub", "pdf", "packages"):
        assert f"source {name}: its cached rows are used: " in shown
    assert "data.decontaminate: what the cache knows of" in shown and "Training a byte-level" not in shown


def test_a_lineage_goes_on_without_its_sources(preset, sources: Path, tmp_path: Path):
    """As far as another one has read; in a worker process, too."""
    budget = 30 * TOKENS_PER_STEP
    train(preset(), token_budget=budget, checkpoint_dir=tmp_path / "whole")
    signal_after(tmp_path / "parts", 8)
    with pytest.raises(Interrupted):
        train(preset(), token_budget=budget, checkpoint_dir=tmp_path / "parts")
    shutil.rmtree(sources)
    train(preset(num_workers=1), token_budget=budget, checkpoint_dir=tmp_path / "parts")
    assert told(tmp_path / "parts")["losses"] == told(tmp_path / "whole")["losses"]


@pytest.mark.slow
def test_ranks_agree_on_sources_that_are_gone(preset, sources: Path, tmp_path: Path):
    here = {"type": "files", "path": str(sources / "packages"), "name": "here"}
    gone = {"type": "hf", "dataset": str(sources / "hub"), "name": "gone"}
    budget = 20 * TOKENS_PER_STEP * 2
    train_with(2, preset(sources=[here, gone]), tmp_path / "first", budget)
    shutil.rmtree(sources / "hub")
    train_with(2, preset(sources=[here, gone]), tmp_path / "second", budget)
    assert told(tmp_path / "first") == told(tmp_path / "second")


def test_a_source_that_is_gone_is_lost_where_its_rows_end(preset, sources: Path, tmp_path: Path):
    files = {"type": "files", "path": str(sources / "files"), "name": "files"}
    train(preset(sources=[files]), token_budget=2 * TOKENS_PER_STEP, checkpoint_dir=tmp_path / "one")
    shutil.rmtree(sources / "files")
    with pytest.raises(SourcesFailed, match=r"Every source failed: files: more of it is needed than the cache holds"):
        train(preset(sources=[files]), token_budget=10**6, checkpoint_dir=tmp_path / "two")
    events = read(tmp_path / "two")
    (dropped,) = of(events, "dropped")
    assert (
        "more of it is needed than the cache holds: " in dropped["message"] and "does not exist" in dropped["message"]
    )
    assert len(by_step(events)) > 2 and events[-1]["event"] != "step"


def test_a_source_that_has_changed_is_not_answered_from_the_cache(preset, sources: Path, tmp_path: Path):
    files = {"type": "files", "path": str(sources / "files"), "name": "files"}
    losses = []
    for number in range(3):
        train(preset(sources=[files]), token_budget=3 * TOKENS_PER_STEP, checkpoint_dir=tmp_path / str(number))
        losses.append(by_step(read(tmp_path / str(number))))
        if number == 0:
            for path in (sources / "files").iterdir():
                path.write_bytes(path.read_bytes().upper())
    assert losses[0] != losses[1] == losses[2]
