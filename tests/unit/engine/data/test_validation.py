"""engine/data/validation.py: the rows lie in the checkpoint folder, which others may have changed."""

import itertools
from pathlib import Path
from types import SimpleNamespace

from engine import train
from engine.data.validation import FILE_NAME, ValidationSource
from sources.readers.files import FilesSource
from sources.registry import open_sources
from sources.rows.held_out import sample_training_texts
from sources.rows.tokenizer import train_bpe
from sources.source import SourceError
from tests.helpers.training import TOKENS_PER_STEP


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
    opened = open_sources(preset.data)
    tokenizer = train_bpe(sample_training_texts(opened.sources, preset.data, 100_000), 512)
    alone = SimpleNamespace(is_main=True, broadcast=lambda value: value, broadcast_tensor=lambda tensor: None)
    for source in opened.sources.values():
        source.__class__ = Failing
    validation = ValidationSource(opened, {}, preset.data, tokenizer, preset.model.seq_length, preset.train.eval_tokens)
    short = validation.rows(tmp_path, None, alone)
    assert not (tmp_path / FILE_NAME).exists()
    for source in opened.sources.values():
        source.__class__ = FilesSource
    whole = validation.rows(tmp_path, None, alone)
    assert len(whole.labels) > len(short.labels) and (tmp_path / FILE_NAME).exists()
