"""What an evaluation is made of lies in the checkpoint folder, where others may have been."""

from pathlib import Path

from engine import train
from engine.evaluation import CACHE_NAME
from tests.engine.test_loop import STEP


def test_evaluation_rows_are_not_written_through_links(tiny, tmp_path: Path):
    outside, folder = tmp_path / "outside", tmp_path / "checkpoints"
    outside.write_text("of somebody else")
    folder.mkdir()
    for name in (CACHE_NAME, f".writing-{CACHE_NAME}"):
        (folder / name).symlink_to(outside)
    assert train(tiny(), token_budget=STEP, checkpoint_dir=folder).eval_loss
    assert outside.read_text() == "of somebody else"
    assert not (folder / CACHE_NAME).is_symlink()


def test_evaluation_rows_with_a_flipped_bit_are_collected_again(tiny, tmp_path: Path):
    whole = train(tiny(), token_budget=STEP, checkpoint_dir=tmp_path / "whole").eval_loss
    rows = (tmp_path / "whole" / CACHE_NAME).read_bytes()
    damaged = bytearray(rows)
    damaged[len(damaged) // 2] ^= 4
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / CACHE_NAME).write_bytes(damaged)
    assert train(tiny(), token_budget=STEP, checkpoint_dir=tmp_path / "other").eval_loss == whole
    assert (tmp_path / "other" / CACHE_NAME).read_bytes() != bytes(damaged)
