"""When the page is written, where that is said, and what happens when it cannot be."""

from pathlib import Path

import pytest

from engine import train
from engine.events import REPORT_NAME, read
from engine.screen.report import page_of_events, updates
from tests.helpers.training import TOKENS_PER_STEP


def test_a_run_adds_to_the_page_that_it_found(tiny, tmp_path: Path, monkeypatch):
    """The history is read once, at the first evaluation or save, and the page is that of all events."""
    train(tiny(), token_budget=4 * TOKENS_PER_STEP, checkpoint_dir=tmp_path)
    read_history, readings = updates.read_history, []
    monkeypatch.setattr(updates, "read_history", lambda folder: readings.append(folder) or read_history(folder))
    train(tiny(), token_budget=8 * TOKENS_PER_STEP, checkpoint_dir=tmp_path)
    assert len(readings) == 1
    assert (tmp_path / REPORT_NAME).read_text() == page_of_events(read(tmp_path))


def test_the_first_evaluation_and_the_summary_say_where_it_is(tiny, tmp_path: Path, capsys):
    preset = tiny(train={"eval_interval_tokens": 4 * TOKENS_PER_STEP})
    result = train(preset, token_budget=12 * TOKENS_PER_STEP, checkpoint_dir=tmp_path)
    said = " ".join(capsys.readouterr().out.split())
    evaluations = [event for event in read(tmp_path) if event["event"] == "evaluation"]
    assert len(evaluations) == 3 and said.count(f"The report is {tmp_path / REPORT_NAME}") == 1
    assert f"The report is {tmp_path / REPORT_NAME}" in result.summary()


def test_a_journal_that_has_lost_a_bit_ends_no_run(tiny, tmp_path: Path, capsys):
    train(tiny(), token_budget=4 * TOKENS_PER_STEP, checkpoint_dir=tmp_path)
    journal = tmp_path / "metrics.jsonl"
    lost = '{"event": "source", "time": 0, "what": "dropped", "namd": "topics", "message": "gone"}\n'
    journal.write_text(journal.read_text() + lost)
    with pytest.raises(KeyError):
        page_of_events(read(tmp_path))
    assert train(tiny(), token_budget=8 * TOKENS_PER_STEP, checkpoint_dir=tmp_path).tokens == 8 * TOKENS_PER_STEP
    assert "Training goes on without it" in " ".join(capsys.readouterr().out.split())
