"""The validation set: chosen by each text's hash alone, packed whole, never more than asked for."""

import json

import pytest
import torch

from sources.config import DataConfig
from sources.held_out import collect_validation_set, sample_training_texts, texts_in_rows
from sources.readers.files import FilesSource
from sources.registry import open_sources
from sources.rows.filters import is_held_out
from sources.rows.tokenizer import TextTokenizer
from tests.helpers.sources import Flaky


@pytest.fixture
def opened(tmp_path, texts, write_json_lines):
    pieces = [text[start : start + 400] for text in texts for start in range(0, len(text) - 400, 400)]
    write_json_lines(tmp_path / "a", pieces[::2], 20)
    write_json_lines(tmp_path / "b", pieces[1::2], 2)
    config = DataConfig(sources=[{"type": "files", "path": str(tmp_path / name), "name": name} for name in "ab"])
    return config, open_sources(config), pieces


def test_rows_cover_the_texts(opened, tokenizer):
    config, sources, pieces = opened
    held = collect_validation_set(sources.sources, config, tokenizer, seq_length=64, eval_tokens=4000)
    assert held.input_ids.shape == held.labels.shape == (len(held.source_ids), 64)
    assert held.input_ids.dtype == torch.int64
    for owner, name in enumerate("ab"):
        labels = held.labels[held.source_ids == owner]
        kept = labels[labels != -100]
        texts = held.texts[name]
        assert len(kept) == sum(len(ids) + 1 for ids in tokenizer.encode_batch(texts))
        assert held.bytes_per_source[name] == sum(len(text.encode()) for text in texts)
        assert all(is_held_out(text) and text in pieces for text in texts)
        assert 1500 <= len(kept) <= 2000
        assert held.input_ids[held.source_ids == owner][0, 0] == tokenizer.eos_id
        assert len({sources.sources["a"].num_shards}) == 1


def test_short_texts_are_not_used_and_nothing_is_an_answer(tmp_path, tokenizer, write_json_lines):
    write_json_lines(tmp_path / "short", [f"text {number}" for number in range(500)], 1)
    config = DataConfig(sources=[{"type": "files", "path": str(tmp_path / "short"), "name": "short"}])
    sources = {"short": FilesSource(config.sources[0])}
    held = collect_validation_set(sources, config, tokenizer, seq_length=64, eval_tokens=1000)
    assert held.input_ids.shape == (0, 64) and held.texts == {"short": []}
    assert held.shortfalls == {"short": "has no document that is held out, as one in 50 is; add documents"}


def test_only_long_documents_give_the_beginning_of_one(tmp_path, texts, tokenizer, write_json_lines):
    longest = max(texts, key=len)
    kept = next(text for end in range(3000, len(longest)) if is_held_out(text := longest[:end]))
    long = [kept, *(text for text in texts if 3000 < len(text) < 9000)]
    write_json_lines(tmp_path / "long", long, 1)
    config = DataConfig(sources=[{"type": "files", "path": str(tmp_path / "long"), "name": "long"}])
    held = collect_validation_set(open_sources(config).sources, config, tokenizer, seq_length=64, eval_tokens=500)
    (text,) = held.texts["long"]
    assert any(document.startswith(text) and is_held_out(document) for document in long)
    assert (held.labels != -100).sum() == 500


def test_what_a_set_lacks_is_explained(opened, tokenizer, monkeypatch):
    config, sources, _ = opened
    b, shape = {"b": sources.sources["b"]}, {"seq_length": 64}
    assert collect_validation_set(sources.sources, config, tokenizer, **shape, eval_tokens=4000).shortfalls == {}
    found = collect_validation_set(b, config, tokenizer, **shape, eval_tokens=10**6)
    assert found.shortfalls == {"a": "is not open", "b": "holds no more documents that are held out"}
    monkeypatch.setattr("sources.held_out.SCAN_FACTOR", 1)
    found = collect_validation_set(b, config, tokenizer, **shape, eval_tokens=1000)
    assert found.shortfalls["b"] == "was searched in 4,000 characters only, 1 times its part"
    flaky = Flaky(sources.sources["b"], 5, 10**9)
    monkeypatch.setattr("sources.retries.TRYING_SECONDS", 0.0)
    found = collect_validation_set({"b": flaky}, config, tokenizer, **shape, eval_tokens=1000)
    assert found.shortfalls["b"].startswith("could not be read to its end (")


def test_texts_come_back_from_rows(opened, tokenizer):
    config, sources, _ = opened
    held = collect_validation_set(sources.sources, config, tokenizer, seq_length=512, eval_tokens=4000)
    pieces, texts = texts_in_rows(held, tokenizer), [text for found in held.texts.values() for text in found]
    assert sum(map(len, pieces)) == sum(map(len, texts))
    assert len(set(pieces) & set(texts)) > len(texts) / 2


def test_a_text_that_cannot_be_encoded_is_left_out(opened, tokenizer):
    config, sources, _ = opened
    described = json.loads(tokenizer.to_json())
    pattern = {"type": "Split", "pattern": {"Regex": "(x+x+)+y"}, "behavior": "Isolated", "invert": False}
    described["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [pattern, described["pre_tokenizer"]]}
    # Each "module" becomes what the pattern never ends on.
    described["normalizer"] = {"type": "Replace", "pattern": {"String": "module"}, "content": "x" * 50 + " y"}
    failing = TextTokenizer.from_json(json.dumps(described), tokenizer.eos_id)
    held = collect_validation_set(sources.sources, config, failing, seq_length=64, eval_tokens=4000)
    assert held.texts["a"] and not held.whole
    assert not any("module" in text for texts in held.texts.values() for text in texts)
    assert any("a text of the validation set is left out" in notice for notice in sources.sources["a"].notices)


def test_sample_of_training_texts(opened):
    config, sources, pieces = opened
    sample = list(sample_training_texts(sources.sources, config, 40_000))
    assert 40_000 <= sum(len(text.encode()) for text in sample) < 41_000
    assert not any(is_held_out(text) for text in sample)
    assert len(set(sample)) > 0.9 * len(sample)
    everything = list(sample_training_texts(sources.sources, config, 10**9))
    assert sorted(everything) == sorted(p for p in pieces if not is_held_out(p) and len(p.strip()) >= 50)


@pytest.mark.parametrize("failures", [3, 10**9])
def test_a_lost_connection_at_the_start_is_tried_again(failures, opened, tokenizer, monkeypatch):
    """What is collected here decides a lineage's evaluation and tokenizer."""
    monkeypatch.setattr("sources.retries.FIRST_WAIT", 0.01)
    monkeypatch.setattr("sources.retries.TRYING_SECONDS", 0.5)
    config, sources, _ = opened
    shape = {"seq_length": 64, "eval_tokens": 4000}
    expected = collect_validation_set(sources.sources, config, tokenizer, **shape)
    sample = list(sample_training_texts(sources.sources, config, 40_000))
    for source in list(sources.sources.values()):
        sources.sources[source.name] = Flaky(source, 5, failures)
    events: list[tuple[str, str, str]] = []
    held = collect_validation_set(
        sources.sources, config, tokenizer, **shape, announce=lambda *event: events.append(event)
    )
    if failures == 3:
        assert held.whole and torch.equal(held.labels, expected.labels) and held.texts == expected.texts
        assert [what for name, what, _ in events if name == "a"] == ["retry"] * 3
        sources.sources["a"] = Flaky(sources.sources["a"], 5, failures)
        assert list(sample_training_texts(sources.sources, config, 40_000)) == sample
    else:
        assert not held.whole and len(held.labels) < len(expected.labels)
