"""engine/data/validation.py: the rows lie in the checkpoint folder, which others may have changed."""

import itertools
import json
from pathlib import Path
from pydoc_data.topics import topics
from types import SimpleNamespace

from engine import train
from engine.data.validation import FILE_NAME, SAVED_LATER, ValidationSource
from engine.events import EventLog, read
from engine.screen.console import Console
from model.snapshot import container
from sources.held_out import sample_training_texts
from sources.readers.files import FilesSource
from sources.registry import open_sources
from sources.rows.filters import is_held_out
from sources.rows.near_copies import condense
from sources.rows.tokenizer import train_bpe
from sources.source import SourceError
from tests.helpers.training import TOKENS_PER_STEP

ALONE = SimpleNamespace(is_main=True, broadcast=lambda value: value, broadcast_tensor=lambda tensor: None)


def open_with_tokenizer(preset):
    opened = open_sources(preset.data)
    return opened, train_bpe(sample_training_texts(opened.sources, preset.data, 100_000), 512)


def validation_source(preset, opened, tokenizer, pins=None) -> ValidationSource:
    seq_length, eval_tokens = preset.model.seq_length, preset.train.eval_tokens
    return ValidationSource(opened, pins or {}, preset.data, tokenizer, seq_length, eval_tokens)


def quiet(folder: Path) -> EventLog:
    return EventLog(folder, Console(enabled=False))


def test_rows_are_not_written_through_links(tiny, tmp_path: Path):
    outside, folder = tmp_path / "outside", tmp_path / "checkpoints"
    outside.write_text("of somebody else")
    folder.mkdir()
    for name in (FILE_NAME, f".writing-{FILE_NAME}"):
        (folder / name).symlink_to(outside)
    assert train(tiny(), token_budget=TOKENS_PER_STEP, checkpoint_dir=folder).eval_loss
    assert outside.read_text() == "of somebody else"
    assert not (folder / FILE_NAME).is_symlink()


def test_rows_with_a_flipped_bit_are_collected_again(tiny, tmp_path: Path):
    whole = train(tiny(), token_budget=TOKENS_PER_STEP, checkpoint_dir=tmp_path / "whole").eval_loss
    rows = (tmp_path / "whole" / FILE_NAME).read_bytes()
    damaged = bytearray(rows)
    damaged[len(damaged) // 2] ^= 4
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / FILE_NAME).write_bytes(damaged)
    assert train(tiny(), token_budget=TOKENS_PER_STEP, checkpoint_dir=tmp_path / "other").eval_loss == whole
    assert (tmp_path / "other" / FILE_NAME).read_bytes() != bytes(damaged)


def test_rows_of_a_source_that_failed_are_not_kept(tiny, tmp_path: Path, monkeypatch):
    class Failing(FilesSource):
        """Gives twenty texts of a shard, then refuses."""

        def read(self, shard, cursor):
            yield from itertools.islice(super().read(shard, cursor), 20)
            raise SourceError("access to it was withdrawn")

    preset = tiny()
    opened, tokenizer = open_with_tokenizer(preset)
    for source in opened.sources.values():
        source.__class__ = Failing
    validation = validation_source(preset, opened, tokenizer)
    short = validation.rows(tmp_path, None, ALONE, quiet(tmp_path))
    assert not (tmp_path / FILE_NAME).exists()
    for source in opened.sources.values():
        source.__class__ = FilesSource
    whole = validation.rows(tmp_path, None, ALONE, quiet(tmp_path))
    assert len(whole.labels) > len(short.labels) and (tmp_path / FILE_NAME).exists()


def test_a_run_does_not_train_on_near_copies_of_its_validation_set(tiny, tmp_path: Path):
    """With one word more, a document has another hash and was trained on."""
    documents = [text[:1500] for text in topics.values() if len(text) > 1500]  # far fewer than the run reads
    held = list(
        itertools.islice(filter(is_held_out, (text[: 1400 - cut] for cut in range(50) for text in documents)), 5)
    )
    copies = [copy for text in held for number in range(9) if not is_held_out(copy := f"Word {number}. {text}")]
    lines = [json.dumps({"text": text}) for text in [*copies, *documents, *held]]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines))
    sources = [{"type": "files", "path": str(tmp_path / "texts.jsonl"), "name": "texts"}]
    preset = tiny(data={"sources": sources}, train={"eval_tokens": 20_000})
    train(preset, token_budget=60 * TOKENS_PER_STEP, checkpoint_dir=tmp_path / "checkpoints")
    (counts,) = (e["counts"] for e in read(tmp_path / "checkpoints") if e.get("what") == "passed_over")
    assert counts["similar to a validation document"] >= len(copies)


def test_an_older_file_is_read_and_knows_its_texts_by_the_rows(tiny, tmp_path: Path):
    preset = tiny(model={"seq_length": 128})
    validation = validation_source(preset, *open_with_tokenizer(preset))
    rows = validation.rows(tmp_path, None, ALONE, quiet(tmp_path))
    saved = container.read(tmp_path / FILE_NAME)
    container.write(tmp_path / FILE_NAME, {name: saved[name] for name in saved if name not in SAVED_LATER})
    older = validation.rows(tmp_path, None, ALONE, quiet(tmp_path))
    assert older.labels.equal(rows.labels) and not older.texts and any(rows.texts.values())
    known = validation.near_copies(older)
    long = [text for texts in rows.texts.values() for text in texts if len(text) > 400]
    assert long and all(known.recognize(condense(f"Another word. {text}")) for text in long)


def test_a_source_that_is_gone_for_one_start_keeps_its_part(tiny, tmp_path: Path):
    pieces = [text[start : start + 400] for text in topics.values() for start in range(0, len(text), 400)]
    for name, texts in (("a", pieces[::2]), ("b", pieces[1::2])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    specs = [{"type": "files", "path": str(tmp_path / f"{name}.jsonl"), "name": name} for name in "ab"]
    preset = tiny(data={"sources": specs})
    opened, tokenizer = open_with_tokenizer(preset)
    both = validation_source(preset, opened, tokenizer).rows(
        tmp_path, None, ALONE, EventLog(tmp_path, Console(enabled=False))
    )
    alone, pins = opened.without("b", "it is gone"), opened.pins()
    kept = validation_source(preset, alone, tokenizer, pins).rows(
        tmp_path, None, ALONE, EventLog(tmp_path, Console(enabled=False))
    )
    assert kept.texts == both.texts and kept.texts["b"]
    (tmp_path / FILE_NAME).unlink()
    less = validation_source(preset, alone, tokenizer, pins).rows(
        tmp_path, None, ALONE, EventLog(tmp_path, Console(enabled=False))
    )
    assert less.shortfalls["b"] == "is not open" and not (tmp_path / FILE_NAME).exists()
